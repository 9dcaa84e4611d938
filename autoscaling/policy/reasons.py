"""Why an option won or lost, and why nothing is done, in sentences with their numbers, for who runs the system."""

import math

from autoscaling.decision import Option
from autoscaling.observation import Observation, Pools, gpus_of, spelled
from autoscaling.policy.bounds import Bounds
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.imbalance import Imbalance
from autoscaling.policy.outlook import Outlook
from autoscaling.policy.past import Asked
from autoscaling.policy.pricing import Offer
from autoscaling.policy.ranking import OUT_OF_BOUNDS, Choice, Loser
from autoscaling.policy.rules import Rules
from autoscaling.policy.stability import duration
from placement import Shape

_MS = 1e3


class Reasons:
    """Sentences about one tick."""

    def __init__(
        self,
        observation: Observation,
        lopsided: Imbalance | None,
        outlook: Outlook,
        estimates: Estimates,
        rules: Rules,
        limits: Bounds,
    ) -> None:
        self._observation, self._lopsided, self._outlook = observation, lopsided, outlook
        self._estimates, self._rules, self._limits = estimates, rules, limits

    def of_options(self, choice: Choice) -> tuple[Option, ...]:
        """All that were priced, the best first, each with what it won or lost by."""
        won = Option(
            kind=choice.winner.kind,
            pools=choice.winner.pools,
            price=choice.winner.price,
            why=self.of_choice(choice),
        )
        lost = (
            Option(
                kind=loser.offer.kind,
                pools=loser.offer.pools,
                price=loser.offer.price,
                why=self._of_loser(loser, choice),
            )
            for loser in choice.losers
        )
        return (won, *lost)

    def of_choice(self, choice: Choice) -> str:
        """Why the winner won."""
        winner, hold = choice.winner, choice.hold
        if choice.is_least_bad:
            return self._least_bad(choice)
        if choice.is_hold:
            return f"{self._enough(winner)}; {self._nearest_loser(choice)}"
        if not (hold.keeps and choice.may_stay):
            return f"{self._trouble(choice)}. {self._cure(winner)}"
        past_s = self._outlook.lasting_s if winner.kind == "repartition" else self._outlook.recent_s
        return (
            f"{spelled(winner.pools)} would serve all that was asked in the last {duration(past_s)} and is "
            f"expected in the next {duration(self._outlook.horizon_s)}, with {winner.gpus} GPUs instead of {hold.gpus}."
        )

    def of_schedule(self, choice: Choice) -> str:
        """Which of its bounds the winner is up against; empty where one replica more or less would do too."""
        pools, at_s = choice.winner.pools, self._observation.at_s
        gpus, step = gpus_of(pools), min((shape.gpus for shape in pools), default=0)
        said = []
        for one in self._limits.due:
            wanted, replicas = one.bounds, sum(pools.values())
            if gpus - step < wanted.min_gpus:
                said.append(f" The schedule wants at least {wanted.min_gpus} GPUs {one.shown(at_s)}.")
            if replicas - 1 < wanted.min_replicas:
                said.append(f" The schedule wants at least {wanted.min_replicas} replicas {one.shown(at_s)}.")
            if wanted.max_gpus is not None and gpus + step > wanted.max_gpus and one.opens_s <= at_s:
                said.append(f" The schedule allows at most {wanted.max_gpus} GPUs {one.shown(at_s)}.")
        return "".join(said)

    def of_imbalance(self) -> str:
        """That one replica has a queue and the others have room; empty where that is not so."""
        found = self._lopsided
        if found is None:
            return ""
        one = found.load
        return (
            f" Of {found.waiting:.0f} requests that wait {one.waiting:.0f} do on replica {one.replica} ({found.shape}, "
            f"{one.running:.0f} running, {one.kv_usage:.0%} of its KV cache in use) while the others have room: "
            "neither replicas nor another cut cure that."
        )

    def _enough(self, offer: Offer) -> str:
        rate = self._outlook.expected.requests_per_s
        return f"{spelled(offer.pools)} keep the SLO for {rate:.3g} requests/s at {_load(offer.load)} of what they can"

    def _nearest_loser(self, choice: Choice) -> str:
        """What would have saved most, and why it was not to be."""
        nearest = choice.nearest_saving
        if nearest is None:
            return "nothing cheaper does."
        return f"{spelled(nearest.offer.pools)} {self._of_loser(nearest, choice)}"

    def _trouble(self, choice: Choice) -> str:
        """What is wrong with the present fleet, and what cannot cure it."""
        hold, winner = choice.hold, choice.winner
        if not hold.pools:
            return "Nothing runs" if hold.keeps else "Nothing runs and requests come"
        if hold.keeps:
            return f"{spelled(hold.pools)} {OUT_OF_BOUNDS.sentence}"
        sentence = self._incapable(hold.pools, self._hardest(hold.pools))
        if sentence is None:
            return self._why_too_little(hold)
        widest = next(iter(hold.pools))
        others = [shape for shape in winner.pools if shape not in hold.pools]
        if not others:
            return sentence
        return f"{sentence}: more replicas of {widest} cannot change that, {' and '.join(map(str, others))} can"

    def _cure(self, winner: Offer) -> str:
        way = f", and serves in {duration(winner.price.transition_s)}" if winner.price.transition_s else ""
        return (
            f"{spelled(winner.pools)} is the cheapest that keeps the SLO: {winner.gpus} GPUs at {_load(winner.load)} "
            f"of what they can{way}."
        )

    def _least_bad(self, choice: Choice) -> str:
        hold, winner = choice.hold, choice.winner
        budget = self._limits.max_gpus
        if hold.keeps:
            trouble = self._trouble(choice)
        else:
            trouble = self._incapable(hold.pools, self._hardest(hold.pools)) or self._why_too_little(hold)
        if choice.is_hold:
            return f"{trouble}. Nothing within {budget} GPUs keeps the SLO, and nothing gains enough to change."
        return (
            f"{trouble}. Nothing within {budget} GPUs keeps the SLO; {spelled(winner.pools)} comes nearest: it serves "
            f"{_share(1 / winner.load if winner.load else 1.0)} of what is needed within the SLO, "
            f"{spelled(hold.pools)} {_share(1 / hold.load if hold.load else 1.0)}."
        )

    def _why_too_little(self, offer: Offer) -> str:
        return f"{spelled(offer.pools)} {self._too_little(offer)}"

    def _of_loser(self, loser: Loser, choice: Choice) -> str:
        offer, winner = loser.offer, choice.winner
        if loser.refusal is not None:
            return f"{loser.refusal.sentence}."
        if loser.loss in ("misses", "no-better"):
            sentence = self._incapable(offer.pools, self._hardest(offer.pools))
            return f"{sentence}." if sentence else f"{self._too_little(offer)}."
        if loser.loss == "forgets" and offer.forgets is not None:
            return self._forgets(offer.pools, offer.forgets)
        if loser.loss == "slower":
            return (
                f"would keep the SLO for {_share(offer.price.attainment)} of the arrivals of the next "
                f"{duration(self._outlook.horizon_s)} only: {self._way(offer)}."
            )
        if loser.loss == "not-worth-it" and offer.cost_gpu_s < winner.cost_gpu_s:
            saved = 1 - offer.cost_gpu_s / winner.cost_gpu_s
            return (
                f"would save {saved:.0%} of the GPU-seconds, the way there included; a repartition must save "
                f"{self._rules.hysteresis:.0%}."
            )
        if offer.gpus > winner.gpus:
            return f"takes {offer.gpus} GPUs; {winner.gpus} are enough."
        return f"takes as many GPUs or more in all: {self._way(offer)}."

    def _way(self, offer: Offer) -> str:
        price = offer.price
        stall = f", nothing serves for {duration(price.stall_s)}" if price.stall_s else ""
        spent = f"{price.transition_gpu_s:,.0f} GPU-seconds go on the way"
        return f"it serves in {duration(price.transition_s)}{stall}, and {spent}"

    def _too_little(self, offer: Offer) -> str:
        hardest = self._hardest(offer.pools)
        servable = self._estimates.servable_per_s(offer.pools, hardest.demand)
        backlog = f" ({self._waiting()})" if self._outlook.backlog >= 1 else ""
        when = f"in {duration(hardest.in_s)}" if hardest.in_s > 0 else "now"
        return (
            f"can serve {servable:.3g} requests/s of {_lengths(hardest)} within the SLO; "
            f"{hardest.demand.requests_per_s:.3g} are to be served {when}{backlog}"
        )

    def _waiting(self) -> str:
        """How many wait, and how much of the TTFT that is: queueing wants capacity, slow prefills another cut."""
        seen, percentile = self._observation, f"p{100 * self._rules.slo.percentile:g}"
        waits = f"{self._outlook.backlog:.0f} requests wait"
        if seen.queue_s is None or seen.ttft_s is None:
            return waits
        return f"{waits}; {percentile} of the wait is {seen.queue_s:.1f} s, of the TTFT {seen.ttft_s:.1f} s"

    def _forgets(self, pools: Pools, forgotten: Asked) -> str:
        servable = self._estimates.servable_per_s(pools, forgotten.demand)
        when = f"{duration(-forgotten.in_s)} ago" if forgotten.in_s < 0 else f"in {duration(forgotten.in_s)}"
        return (
            f"would be enough now, but not for the {forgotten.demand.requests_per_s:.3g} requests/s of "
            f"{_lengths(forgotten)} of {when}: {servable:.3g} requests/s."
        )

    def _hardest(self, pools: Pools) -> Asked:
        return max(self._outlook.need, key=lambda asked: self._estimates.load(pools, asked.demand))

    def _incapable(self, pools: Pools, asked: Asked) -> str | None:
        """Why no number of replicas would do, where none would."""
        if not pools or self._estimates.load(pools, asked.demand) < math.inf:
            return None
        return self._too_slow(next(iter(pools)), asked, sum(pools.values()))

    def _too_slow(self, shape: Shape, asked: Asked, total: int) -> str:
        slo, seen = self._rules.slo, self._observation
        one = self._estimates.capacity(shape, asked.demand, total)
        if slo.tpot_s is not None and one.lone_tpot_s > slo.tpot_s:
            met, over = (
                max(one.lone_tpot_s, seen.tpot_s or 0.0) if shape in seen.fleet.serving else one.lone_tpot_s,
                slo.tpot_s,
            )
            return f"TPOT is {met * _MS:.0f} ms, {met / over:.1f}x the target, {self._at_load(shape, asked, total)}"
        if slo.ttft_s is not None and one.lone_ttft_s > slo.ttft_s:
            return (
                f"TTFT is {one.lone_ttft_s * _MS:.0f} ms, {one.lone_ttft_s / slo.ttft_s:.1f}x the target, with {shape} "
                f"for a request of {_lengths(asked)} that is alone"
            )
        tokens = asked.demand.input_tokens.mean_tokens + asked.demand.output_tokens.mean_tokens
        if one.binding == "kv":
            return (
                f"a request of {tokens:.0f} tokens leaves too little room in the KV cache of {shape}, "
                f"{one.room_tokens:.0f} tokens"
            )
        return f"{shape} keeps the SLO for too few requests of {_lengths(asked)} even where each is alone"

    def _at_load(self, shape: Shape, asked: Asked, total: int) -> str:
        pools = self._observation.fleet.serving
        saturation = self._estimates.saturation_per_s(pools, asked.demand) if shape in pools else 0.0
        if saturation <= 0:
            return f"with {shape} even for a request that is alone"
        return f"at {_load(asked.demand.requests_per_s / saturation)} of what {spelled(pools)} can answer"


def _lengths(asked: Asked) -> str:
    demand = asked.demand
    return f"{demand.input_tokens.mean_tokens:.0f}+{demand.output_tokens.mean_tokens:.0f} tokens"


def _load(load: float) -> str:
    return f"{load:.0%}"


def _share(share: float) -> str:
    return f"{min(share, 1.0):.1%}"
