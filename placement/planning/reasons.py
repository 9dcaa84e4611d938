"""Why an option ranks where it does, and what binds when none will do, in sentences with their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from placement.cost.prediction import Load
from placement.layout import Infeasible
from placement.parts import PARTS
from placement.planning.option import Option
from placement.workload import Slo, Workload

_MS = 1e3
_ALIKE = 0.005  # prices that nobody would tell apart
_TWICE = 2.0
_SURE = 0.99


def price(option: Option, *, is_sized: bool, by_money: bool) -> float:
    """GPUs, or USD per hour, for what is asked; for one output token/s where the workload does not say how much is."""
    amount = option.usd_per_hour if by_money else None
    whole = option.gpus if amount is None else amount
    return whole if is_sized else whole / (option.tokens_per_s_per_gpu * option.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Why options rank as they do. `is_sized` is whether the workload says how much is asked."""

    slo: Slo
    is_sized: bool
    by_money: bool

    def won(self, best: Option, others: Sequence[Option]) -> str:
        """Why the first option is the first: its cost, how surely it keeps the SLO, and what is cheaper."""
        serves = f"{_replicas(best)}, {_speed(best.load)}"
        cheapest = min(others, key=self._price, default=best)
        if self._ratio(best, cheapest) > 1 + _ALIKE:
            return f"{self._against(best, cheapest)}: {serves}."
        cheap = f"cheapest at {self._amount(best)}" if self.is_sized else f"most output, {self._amount(best)}"
        kept = f"keeps {promise(self.slo)} with {per_cent(best.chance)} chance"
        return f"{cheap}: {serves}; {kept if has_limits(self.slo) else 'no SLO was given'}."

    def lost(self, option: Option, best: Option) -> str:
        """What the winner does better: cost, the chance to keep the SLO, or what it could answer beyond the asked."""
        share = option.load.communication_share
        spent = f", {share:.0%} of its step is communication" if share > best.load.communication_share + 0.05 else ""
        return f"{self._against(option, best)}{spent} ({_speed(option.load)})."

    def _against(self, option: Option, other: Option) -> str:
        name, ratio = _name(other, option), self._ratio(option, other)
        cost = f"costs {_compared(ratio)} {name}{'' if self.is_sized else ' for each token'}"
        amounts = f"{self._number(option)} against {self._amount(other)}"
        if abs(ratio - 1) > _ALIKE:
            return f"{cost} ({amounts}){self._kept(option, other, is_dearer=ratio > 1)}"
        most, others = three_digits(option.most_requests_per_s), three_digits(other.most_requests_per_s)
        return f"{cost} ({self._amount(option)}){self._kept(option, other)}, at most {most} requests/s against {others}"

    def _kept(self, option: Option, other: Option, *, is_dearer: bool = False) -> str:
        mine, theirs = per_cent(option.chance), per_cent(other.chance)
        if not has_limits(self.slo):
            return ""
        if mine == theirs:
            return f" and keeps {promise(self.slo)} as surely ({mine})"
        is_surer = option.chance > other.chance
        joint = " but" if is_dearer == is_surer else " and"
        mine, theirs = (mine, f"only {theirs}") if is_surer else (f"only {mine}", theirs)
        return f"{joint} keeps {promise(self.slo)} with {mine} chance, {_name(other, option)} with {theirs}"

    def _ratio(self, option: Option, other: Option) -> float:
        return self._price(option) / self._price(other)

    def _price(self, option: Option) -> float:
        return price(option, is_sized=self.is_sized, by_money=self.by_money)

    def _amount(self, option: Option) -> str:
        if self.is_sized and not self.by_money:
            return count(option.gpus, "GPU")
        return f"{self._number(option)} {'USD per hour' if self.is_sized else 'tokens/s per GPU'}"

    def _number(self, option: Option) -> str:
        if not self.is_sized:
            return f"{option.tokens_per_s_per_gpu:.0f}"
        return f"{option.usd_per_hour:.2f}" if self.by_money else f"{option.gpus}"


def asked_of(workload: Workload) -> str:
    """How much is asked."""
    if workload.requests_per_s is not None:
        return f"{workload.requests_per_s:g} request{'s' if workload.requests_per_s != 1 else ''}/s"
    if workload.concurrency is not None:
        return f"{workload.concurrency:g} concurrent requests"
    return "what one replica can do"


def has_limits(slo: Slo) -> bool:
    """Whether there is anything to keep."""
    return slo.ttft_s is not None or slo.tpot_s is not None


def promise(slo: Slo) -> str:
    """What an SLO limits."""
    limited = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s))
    return " and ".join(name for name, limit_s in limited if limit_s is not None)


def per_cent(chance: float) -> str:
    """Never wholly sure."""
    return ">99%" if chance > _SURE else f"{chance:.0%}"


def three_digits(number: float) -> str:
    """1900, 8.45, 0.355: never 1.9e+03."""
    return f"{float(f'{number:.3g}'):g}"


def count(number: int, thing: str) -> str:
    """1 GPU, 8 GPUs."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def binding_sentence(option: Option, slo: Slo, ttft_s: float, tpot_s: float) -> Infeasible:
    """Which part of the SLO the closest option misses, what that time is made of, and the SLO that it would meet."""
    p = f"p{slo.percentile * 100:g}"
    late = slo.ttft_s is not None and ttft_s > slo.ttft_s
    slow = slo.tpot_s is not None and tpot_s > slo.tpot_s
    missed = []
    if late and slo.ttft_s is not None:
        missed.append(f"{p} TTFT {ttft_s * _MS:.0f} ms against {slo.ttft_s * _MS:g} ms")
    if slow and slo.tpot_s is not None:
        missed.append(
            f"TPOT {tpot_s * _MS:.1f} ms against {slo.tpot_s * _MS:g} ms, of which {_largest_parts(option.load)}"
        )
    wanted = []
    if late:
        wanted.append(f"TTFT of {ttft_s * _MS:.0f} ms")
    if slow:
        wanted.append(f"TPOT of {tpot_s * _MS:.1f} ms")
    return Infeasible(
        constraint=f"no shape on this cluster meets the SLO; {option.shape} comes closest with {' and '.join(missed)}",
        nearest=f"an SLO with {' and '.join(wanted)}, faster GPUs, or weights in a smaller format",
    )


def tails_sentence(option: Option, slo: Slo) -> Infeasible:
    """What share of requests is late although means are not, whatever the number of replicas."""
    kept = (option.tails.attainment if option.tails else None) or 0.0
    return Infeasible(
        constraint=(
            f"no shape on this cluster meets the SLO for {slo.percentile * 100:g}% of requests; {option.shape} comes "
            f"close with {kept:.1%} in {option.replicas} replicas, {_speed(option.load)} on average"
        ),
        nearest="a lower percentile, a longer TTFT or TPOT, or faster GPUs",
    )


def _largest_parts(load: Load) -> str:
    """The two parts that take most of a decode step, with milliseconds."""
    parts = sorted(load.parts_s.items(), key=lambda part: -part[1])[:2]
    return " and ".join(f"{PARTS[name.removesuffix('_s')]} {seconds * _MS:.1f} ms" for name, seconds in parts)


def _compared(ratio: float) -> str:
    if abs(ratio - 1) <= _ALIKE:
        return "as much as"
    if ratio < 1:
        return f"{1 - ratio:.0%} less than"
    return f"{ratio - 1:.0%} more than" if ratio < _TWICE else f"{ratio:.1f} times as much as"


def _name(option: Option, other: Option) -> str:
    kind = option.prediction.region.kind.kind
    return f"{option.shape}" if kind == other.prediction.region.kind.kind else f"{option.shape} on {kind}"


def _replicas(option: Option) -> str:
    return f"{option.replicas} x {option.shape}" if option.replicas > 1 else f"one replica of {option.shape}"


def _speed(load: Load) -> str:
    return f"TTFT {load.ttft_s * _MS:.0f} ms, TPOT {load.tpot_s * _MS:.1f} ms with {load.running:.0f} running requests"
