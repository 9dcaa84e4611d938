"""Which offer wins, and what each of the others lost by.

Of the offers that keep the SLO the cheapest wins. Where none does, the one that comes nearest, if it is worth a change.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from autoscaling.decision import Cause
from autoscaling.policy.pricing import Offer
from autoscaling.policy.rules import Rules

# What an offer lost by; the words for it are in `reasons`.
Loss = Literal["refused", "misses", "forgets", "slower", "not-worth-it", "dearer", "no-better"]
_AS_GOOD = 0.01  # of the arrivals of a horizon: so many are given up to save GPUs where some must be late anyway
# A request that is late costs as much as so many, served, of the cheapest fleet that keeps the SLO.
_WORTH = 4.0
_BETTER = 0.02  # of attainment: a change that brings less is not worth it
_EVEN_BETTER = 1.1  # times what is served within the SLO, where attainment says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why something is not done that would win otherwise."""

    cause: Cause
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loser:
    """An offer that did not win, and by what."""

    offer: Offer
    loss: Loss
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The winner and the others, the best first. `hold` is one of them; `may_stay`: it is within the bounds."""

    winner: Offer
    hold: Offer
    may_stay: bool
    is_least_bad: bool
    losers: tuple[Loser, ...]

    @property
    def is_hold(self) -> bool:
        return self.winner is self.hold

    @property
    def nearest_saving(self) -> Loser | None:
        """Of the offers that keep the SLO with fewer GPUs than now, the cheapest, where none of them won."""
        saving = [
            loser
            for loser in self.losers
            if loser.offer.keeps and loser.offer.gpus < self.hold.gpus and loser.loss != "dearer"
        ]
        return min(saving, key=lambda loser: loser.offer.cost_gpu_s, default=None)


def choose(
    hold: Offer, offers: Sequence[Offer], rules: Rules, *, may_stay: bool, refusal: Callable[[Offer], Refusal | None]
) -> Choice:
    """The best of `hold` and `offers`.

    Args:
        may_stay: whether the present fleet is within the bounds.
        refusal: what forbids an offer for good, such as a limit.
    """
    losers: list[Loser] = []
    free = [hold] if may_stay else []
    for offer in offers:
        refused = refusal(offer)
        if refused is None:
            free.append(offer)
        else:
            losers.append(Loser(offer=offer, loss="refused", refusal=refused))
    is_cure = not (may_stay and hold.keeps)
    rest, losses = _sound(free, hold, is_cure=is_cure)
    losers += losses
    if not rest:
        return _least_bad(hold, free, losers, may_stay=may_stay)
    cost = _cost_of_cure(rest) if is_cure else _cost
    if not is_cure:
        rest, losses = _gentle(rest, rules.slo.percentile)
        losers += losses
    rest, losses = _worth_it(rest, rules.hysteresis, cost)
    losers += losses
    winner = min(rest, key=lambda offer: (cost(offer), *_simplest(offer)))
    losers += [
        Loser(offer=offer, loss="slower" if offer.cost_gpu_s < winner.cost_gpu_s else "dearer")
        for offer in rest
        if offer is not winner
    ]
    if not may_stay:
        losers.append(Loser(offer=hold, loss="refused", refusal=OUT_OF_BOUNDS))
    return Choice(
        winner=winner, hold=hold, may_stay=may_stay, is_least_bad=False, losers=tuple(sorted(losers, key=_place))
    )


OUT_OF_BOUNDS = Refusal(cause="limit", sentence="is outside the bounds that are set for GPUs and replicas")


def _sound(offers: Sequence[Offer], hold: Offer, *, is_cure: bool) -> tuple[list[Offer], list[Loser]]:
    """Those that keep the SLO for what is needed, and, to save GPUs only, for what must not be forgotten.

    A repartition that cures shall serve that too, if one can: two phases that take turns would drive it back and forth.
    """
    able = [offer for offer in offers if offer.keeps]
    losers = [Loser(offer=offer, loss="misses") for offer in offers if not offer.keeps]
    lasting_cure = any(offer.kind == "repartition" and offer.forgets is None for offer in able)

    def is_sound(offer: Offer) -> bool:
        if offer is hold or offer.forgets is None:
            return True
        return is_cure and (offer.kind == "replicas" or not lasting_cure)

    sound = [offer for offer in able if is_sound(offer)]
    return sound, losers + [Loser(offer=offer, loss="forgets") for offer in able if not is_sound(offer)]


def _gentle(offers: Sequence[Offer], percentile: float) -> tuple[list[Offer], list[Loser]]:
    """Those that keep the SLO over the horizon: a fleet that does so is not left for one that breaks it on the way."""
    most = min(offer.shortfall for offer in offers) + _AS_GOOD

    def is_gentle(offer: Offer) -> bool:
        return offer.price.attainment >= percentile or offer.shortfall <= most

    return (
        [offer for offer in offers if is_gentle(offer)],
        [Loser(offer=offer, loss="slower") for offer in offers if not is_gentle(offer)],
    )


def _worth_it(
    offers: Sequence[Offer], hysteresis: float, cost: Callable[[Offer], float]
) -> tuple[list[Offer], list[Loser]]:
    """Repartitions only where they save enough against what can be done without."""
    plain = min((cost(offer) for offer in offers if offer.kind != "repartition"), default=math.inf)
    dear = [offer for offer in offers if offer.kind == "repartition" and cost(offer) > plain * (1 - hysteresis)]
    return (
        [offer for offer in offers if offer not in dear],
        [Loser(offer=offer, loss="not-worth-it" if cost(offer) < plain else "dearer") for offer in dear],
    )


def _cost_of_cure(offers: Sequence[Offer]) -> Callable[[Offer], float]:
    """GPU-seconds, and what those who are late on the way there are worth in GPU-seconds.

    What a larger fleet keeps beyond the SLO once it serves does not make up for them.
    """
    least = min(offer.price.gpu_s for offer in offers)
    return lambda offer: offer.cost_gpu_s + _WORTH * offer.shortfall * least


def _cost(offer: Offer) -> float:
    return offer.cost_gpu_s


def _simplest(offer: Offer) -> tuple[bool, bool, int, str]:
    """Of two that cost the same no change comes first, then replicas, then the smaller fleet."""
    return offer.kind != "hold", offer.kind == "repartition", offer.gpus, " ".join(map(str, offer.pools))


def _least_bad(hold: Offer, free: Sequence[Offer], losers: Sequence[Loser], *, may_stay: bool) -> Choice:
    """The offer that comes nearest, but the present fleet unless it gains by it."""
    best = min(free, key=lambda offer: (-round(offer.price.attainment, 2), offer.load, offer.cost_gpu_s), default=hold)
    winner = best if not may_stay or _gains(best, hold) else hold
    others = [loser for loser in losers if loser.offer is not winner and loser.loss != "misses"]
    others += [Loser(offer=offer, loss="no-better") for offer in free if offer is not winner]
    if winner is not hold and hold not in free:
        others.append(Loser(offer=hold, loss="refused", refusal=OUT_OF_BOUNDS))
    ordered = sorted(others, key=lambda loser: (-loser.offer.price.attainment, loser.offer.load))
    return Choice(winner=winner, hold=hold, may_stay=may_stay, is_least_bad=True, losers=tuple(ordered))


def _gains(offer: Offer, hold: Offer) -> bool:
    gained = max(
        offer.price.attainment - hold.price.attainment, offer.price.final_attainment - hold.price.final_attainment
    )
    loses = offer.price.attainment < hold.price.attainment - _AS_GOOD
    return not loses and (gained >= _BETTER or offer.load * _EVEN_BETTER <= hold.load < float("inf"))


_ORDER: tuple[Loss, ...] = ("dearer", "not-worth-it", "slower", "forgets", "refused", "misses", "no-better")


def _place(loser: Loser) -> tuple[int, float, float]:
    return _ORDER.index(loser.loss), loser.offer.cost_gpu_s, loser.offer.load
