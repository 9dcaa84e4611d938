"""The highest rate at which enough requests keep the SLO, for one case, found with few runs of `trial`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from autoscaling.capacity.site import Site
from autoscaling.capacity.trial import Draws, Stage, Trial, draw, run
from placement.cost.prediction import Load, predict
from placement.cost.simulation import step_table
from placement.cost.simulation_replica import StepTable, slowed
from placement.models.memory import STEP_TOKENS
from placement.planning.option import excess
from placement.shape import Shape
from placement.workload import Lengths, Slo, Workload

Binding = Literal["ttft", "tpot", "kv", "none"]

_ROUGH, _FINE = 240, 1000  # requests of a run while searching, and at the end
_BUSIEST = 0.97  # of saturation: beyond, a queue grows without end
_TAILS = 0.9  # of the rate that keeps the SLO on average, a first guess of the one that keeps it in the tails
_IDLE = 0.01  # of saturation: as good as alone
LOADS = (0.02, 0.1, 0.3, 0.5, 0.75, 0.9, 1.0, 1.05, 1.1, 1.2, 1.4, 1.6)  # of the ceiling: where attainment is told
_TRIED = (0.75, 1.2, 1.6)  # where it is looked at beside what the search has seen
_ROOMIER = 1.5  # times the KV cache: where that helps, it is what binds
_HELPS = 1.05
_CROWD = 2048  # requests running at once, beyond which a run takes longer and says no more
# A ceiling is known to 2 %, attainment falls off steeply beyond it, and rates and lengths wander. Of what short runs
# with exact means say, fleets keep an SLO of p90 up to nearly all in simulations of forty minutes, of p95 up to 0.92,
# of p99 up to 0.75 to 0.82: the rarer a miss may be, the more of them come in clusters that short runs hardly see.
_MARGIN, _LEAST_MARGIN, _PER_HALVING = 0.98, 0.6, 0.05
_STEEPEST = 0.7  # a queue that blows up says nothing of how far away the crossing is


class Case(NamedTuple):
    """What a ceiling is for. `computed_share` is the share of prompt tokens that is not found in a prefix cache."""

    shape: Shape
    input_tokens: Lengths
    output_tokens: Lengths
    computed_share: float
    dispersion: float
    slo: Slo
    replicas: int
    step_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Of one replica. Fields are those of `performance.Capacity`; all rates are 0 where the model does not fit.

    `attainments` are those at `LOADS` times `requests_per_s`, or `saturation_per_s` where that is 0.
    """

    requests_per_s: float = 0.0
    saturation_per_s: float = 0.0
    lone_ttft_s: float = math.inf
    lone_tpot_s: float = math.inf
    room_tokens: float = 0.0
    prefill_tokens_per_s: float = 0.0
    binding: Binding = "kv"
    attainments: tuple[float, ...] = (0.0,) * len(LOADS)


def ceiling_of(site: Site, case: Case) -> Ceiling:
    """Make the runs. The same case has the same ceiling."""
    workload = Workload(
        input_tokens=case.input_tokens, output_tokens=case.output_tokens, prefix_hit_rate=1 - case.computed_share
    )
    question, region = site.question(workload), site.region_of(case.shape)
    (prediction,) = predict(question, [(case.shape, region)])
    if not prediction.fits:
        return Ceiling()
    load = _fullest(prediction.loads, case.slo)
    factor = load.measured_factor * case.step_factor
    stage = Stage(
        table=slowed(step_table(question, case.shape, region), factor),
        room_tokens=prediction.room.tokens,
        replicas=case.replicas,
    )
    search = _Search(stage, case, load.requests_per_s / case.step_factor * _TAILS)
    requests_per_s = search.ceiling()
    alone = prediction.loads[0]
    return Ceiling(
        requests_per_s=requests_per_s,
        saturation_per_s=search.saturation_per_s,
        lone_ttft_s=alone.ttft_s * factor,
        lone_tpot_s=alone.tpot_s * case.step_factor,
        room_tokens=prediction.room.tokens * case.shape.dp,
        prefill_tokens_per_s=_prefill_tokens_per_s(stage.table),
        binding=search.binding(requests_per_s),
        attainments=search.attainments(requests_per_s),
    )


def crossing(
    curve: Callable[[float], float], guess: float, least: float, most: float, *, step: float, close: float
) -> float:
    """Where `curve`, which rises, is 0: `most` where it is below there, 0 where it is above even at `least`.

    Regula falsi over the logarithm of the argument, in a bracket that widens from `guess` by `step`, then twice as far.
    It ends with a bracket of at most `close`, in which the curve is taken to be straight.
    """
    at, end, start = math.log(min(max(guess, least), most)), math.log(most), math.log(least)
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    while not (low and high and high[0] - low[0] <= close):
        value = min(max(curve(math.exp(at)), -_STEEPEST), _STEEPEST)
        if value <= 0:
            low = at, value
            if at >= end:
                return most
        else:
            high = at, value
            if at <= start:
                return 0.0
        if low and high:
            at = _between(low, high, margin=0.15)
        else:
            at, step = (min(at + step, end) if low else max(at - step, start)), step * 2
    return math.exp(_between(low, high, margin=0.0))


def _between(low: tuple[float, float], high: tuple[float, float], *, margin: float) -> float:
    """Where the straight line crosses 0, kept away from both ends by a share of their distance."""
    share = -low[1] / (high[1] - low[1])
    return low[0] + (high[0] - low[0]) * min(max(share, margin), 1 - margin)


class _Search:
    """The runs for one case, rough ones first."""

    def __init__(self, stage: Stage, case: Case, guess_per_s: float) -> None:
        self._case, self._guess_per_s = case, guess_per_s
        self._fine, self._rough = self._draws(_FINE), self._draws(_ROUGH)
        self._stage = _few_enough(stage, self._fine, guess_per_s)
        self._runs: list[Trial] = []
        self.saturation_per_s = stage.saturation_per_s(self._fine)

    def _draws(self, count: int) -> Draws:
        return draw(self._case.input_tokens, self._case.output_tokens, self._case.dispersion, count)

    def ceiling(self) -> float:
        least, most = self.saturation_per_s * _IDLE, self.saturation_per_s * _BUSIEST
        if self._case.slo.ttft_s is None and self._case.slo.tpot_s is None:
            return most
        rough = crossing(self._excess(self._rough), self._guess_per_s, least, most, step=0.15, close=0.15)
        if rough == 0:
            return 0.0
        self._runs.clear()
        fine = crossing(self._excess(self._fine), rough, least, most, step=0.05, close=0.1)
        return margin(self._case.slo.percentile) * fine

    def _excess(self, draws: Draws) -> Callable[[float], float]:
        """Logarithm of how far the SLO's percentile is beyond the SLO."""

        def curve(requests_per_s: float) -> float:
            return math.log(max(self._run(draws, requests_per_s).excess(self._case.slo.percentile), 1e-9))

        return curve

    def _run(self, draws: Draws, requests_per_s: float) -> Trial:
        made = run(self._stage, draws, requests_per_s, self._case.slo)
        self._runs.append(made)
        return made

    def binding(self, requests_per_s: float) -> Binding:
        """What most requests miss that do not keep the SLO a little beyond the ceiling, and if for want of room."""
        roomier = replace(self._stage, room_tokens=self._stage.room_tokens * _ROOMIER)
        beyond = [made for made in self._runs if made.requests_per_s > requests_per_s and made.excesses[-1] > 1]
        if not beyond:
            return "kv" if roomier.saturation_per_s(self._fine) > _HELPS * self.saturation_per_s else "none"
        nearest = min(beyond, key=lambda made: made.requests_per_s)
        if nearest.tpot_missed > nearest.ttft_missed:
            return "tpot"
        here, there = (
            run(stage, self._rough, nearest.requests_per_s, self._case.slo) for stage in (self._stage, roomier)
        )
        return "kv" if there.ttft_missed < here.ttft_missed / 2 else "ttft"

    def attainments(self, requests_per_s: float) -> tuple[float, ...]:
        """At `LOADS`, never rising: what the SLO wants at the ceiling if that is what binds, 0 from saturation on."""
        whole, percentile = requests_per_s or self.saturation_per_s, self._case.slo.percentile
        for load in _TRIED:
            if load * whole < self.saturation_per_s * _BUSIEST:
                self._run(self._rough, load * whole)
        seen = [(made.requests_per_s / whole, made.attainment) for made in self._runs]
        if 0 < requests_per_s < self.saturation_per_s * _BUSIEST * margin(percentile):
            # A rough run may say otherwise; what it is for is how steep the curve is.
            seen = [(load, max(kept, percentile) if load < 1 else min(kept, percentile)) for load, kept in seen]
            seen.append((1.0, percentile))
        loads, kept = zip(*sorted([*seen, (self.saturation_per_s / whole, 0.0)]), strict=True)
        falling = np.minimum.accumulate(kept)
        return tuple(np.interp(LOADS, loads, falling, right=0.0).tolist())


def margin(percentile: float) -> float:
    """The share of a ceiling that `requests_per_s` is, to count on for an SLO of this percentile."""
    halvings = max(0.0, math.log2(0.1 / (1 - percentile)))  # of the misses that p90 allows
    return max(_LEAST_MARGIN, _MARGIN - _PER_HALVING * halvings)


def _few_enough(stage: Stage, draws: Draws, requests_per_s: float) -> Stage:
    """As many of the replicas as have `_CROWD` requests running: where each has many, a shared queue gains nothing."""
    replicas = stage.replicas
    while replicas > 1 and replicas * stage.running(draws, requests_per_s) > _CROWD:
        replicas //= 2
    return replace(stage, replicas=replicas)


def _fullest(loads: Sequence[Load], slo: Slo) -> Load:
    """The fullest load that keeps the SLO on average, else that of a request alone."""
    keeping = [load for load in loads if excess(load, slo) <= 1]
    return max(keeping, key=lambda load: load.requests_per_s, default=loads[0])


def _prefill_tokens_per_s(table: StepTable) -> float:
    """Prompt tokens that a replica with nothing else to do reads."""
    tokens = float(STEP_TOKENS * table.ranks)
    return tokens * table.stages / table.pass_s(0, tokens)
