"""Whether a change did what was predicted of it, and whether it was better than leaving things as they were.

What was realised is compared with what the cost model says of the demand that really came, never with the demand that
was forecast: so traffic that turned out heavier is not blamed on the shape. What the pools before would have had is
what the model says of them at that same demand, moved by how far off the model was when they served.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoscaling.decision import Decision
from autoscaling.ledger.entries import Basis, Entry, Figures, Outcome, Verdict
from autoscaling.observation import Demand, Fleet, Observation, Pools, gpus_of, spelled
from placement import Lengths, Slo

MARGIN = 0.05  # of attainment; less is not told from the ups and downs of a few minutes
FEWEST_ANSWERS = 50.0
_ALIKE = 1.25  # demands of which one is at most so many times the other
_LEAST_KNOWN = 0.5  # share of the looks at which the attainment was known

Predict = Callable[[Pools, Demand], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was asked and how it was served, over a stretch of time. `answers` is about how many requests that was."""

    demand: Demand
    figures: Figures
    answers: float


def measured(observations: Sequence[Observation]) -> Measured | None:
    """The mean of several observations, weighted by their requests; None where nothing was asked."""
    asked = [one for one in observations if one.demand.requests_per_s > 0]
    if not asked:
        return None
    weights = [one.demand.requests_per_s for one in asked]

    def certain(values: Sequence[float]) -> float:
        return math.fsum(map(operator.mul, values, weights)) / math.fsum(weights)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
        if len(known) < _LEAST_KNOWN * len(values):
            return None
        return math.fsum(value * weight for value, weight in known) / math.fsum(weight for _, weight in known)

    def length(of: Sequence[Lengths]) -> Lengths:
        return Lengths(mean_tokens=certain([one.mean_tokens for one in of]), spread=certain([one.spread for one in of]))

    rate = math.fsum(weights) / len(observations)
    return Measured(
        demand=Demand(
            requests_per_s=rate,
            input_tokens=length([one.demand.input_tokens for one in asked]),
            output_tokens=length([one.demand.output_tokens for one in asked]),
            prefix_hit_rate=certain([one.demand.prefix_hit_rate for one in asked]),
            dispersion=certain([one.demand.dispersion for one in asked]),
        ),
        figures=Figures(
            requests_per_s=rate,
            gpus=math.fsum(gpus_of(one.fleet.serving) for one in observations) / len(observations),
            attainment=mean([one.attainment for one in asked]),
            ttft_s=mean([one.ttft_s for one in asked]),
            tpot_s=mean([one.tpot_s for one in asked]),
        ),
        answers=rate * (observations[-1].at_s - observations[0].at_s + observations[0].window_s),
    )


def basis_of(pools: Pools, now: Measured | None, predict: Predict) -> Basis | None:
    """How far off the model is of `pools`; None where that is not known."""
    if now is None or now.figures.attainment is None or now.answers < FEWEST_ANSWERS:
        return None
    return Basis(
        bias=now.figures.attainment - (predict(pools, now.demand).attainment or 0.0),
        prefill_tokens_per_s=now.demand.prefill_tokens_per_s,
        decode_tokens_per_s=now.demand.decode_tokens_per_s,
    )


def _bias(basis: Basis | None, demand: Demand) -> float:
    """How far off the model is at a demand: what was seen at one like it. Further away it says nothing, since
    attainment falls from all to nothing within a small range of demand."""
    if basis is None:
        return 0.0
    pairs = (
        (basis.prefill_tokens_per_s, demand.prefill_tokens_per_s),
        (basis.decode_tokens_per_s, demand.decode_tokens_per_s),
    )
    return basis.bias if all(one <= _ALIKE * other and other <= _ALIKE * one for one, other in pairs) else 0.0


def judged(entry: Entry, after: Measured | None, *, predict: Predict, slo: Slo) -> Outcome:
    """What became of a change whose target has served for a while. `predict` is for any pools at any demand."""
    if after is None or after.figures.attainment is None or after.answers < FEWEST_ANSWERS:
        return Outcome(
            verdict="inconclusive",
            why="Too little was asked since then to tell.",
            realised=after.figures if after else None,
        )
    predicted = predict(entry.target, after.demand)
    without = predict(entry.before, after.demand)
    before = min(1.0, max(0.0, (without.attainment or 0.0) + _bias(entry.basis, after.demand)))
    without = replace(without, attainment=before)
    realised = after.figures.attainment
    margin = max(MARGIN, 2 * math.sqrt(realised * (1 - realised) / after.answers))
    # The way back is not taken back again, whatever it brings: two bad shapes would take turns.
    may_regret = entry.decision.kind == "repartition" and entry.decision.cause != "revert"
    is_worse = may_regret and realised < min(slo.percentile, before - margin)
    verdict = _verdict(realised - (predicted.attainment or 0.0), margin)
    why = (
        f"{realised:.1%} of the requests kept the SLO with {spelled(entry.target)}; {predicted.attainment or 0.0:.1%} "
        f"were predicted for this demand, and {before:.1%} with {spelled(entry.before)}."
    )
    return Outcome(
        verdict=verdict,
        why=f"{why} That is worse than what it replaced." if is_worse else why,
        predicted=predicted,
        realised=after.figures,
        without=without,
        is_regretted=is_worse,
    )


def _verdict(difference: float, margin: float) -> Verdict:
    if difference < -margin:
        return "worse"
    return "better" if difference > margin else "as predicted"


def revert(entries: Sequence[Entry], fleet: Fleet, at_s: float) -> Decision | None:
    """The way back from the last change of a model, where that did worse than what it replaced and still stands."""
    last = next((entry for entry in reversed(entries) if entry.state == "acted"), None)
    if last is None or last.outcome is None or not last.outcome.is_regretted or fleet.desired != last.target:
        return None
    return Decision(
        at_s=at_s,
        kind="repartition",
        cause="revert",
        target=last.before,
        reason=f"Back to {spelled(last.before)} from {spelled(last.target)} (decision {last.number}). "
        f"{last.outcome.why}",
    )
