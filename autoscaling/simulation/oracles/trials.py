"""What fleets that never change miss in every minute of a trace: each is simulated, so that no estimate flatters it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoscaling.capacity.performance import Performance
from autoscaling.observation import Array, Demand, Pools, pools_of
from autoscaling.simulation.oracles.scripted import Scripted
from autoscaling.simulation.oracles.windows import demand_of
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace
from placement import Shape

MINUTE_S = 60.0
_MOST_SHAPES = 6
_MIXED_SHAPES = 3  # of them, those that are tried two at a time
_HARDLY_MISSED = 0.05  # of what may be missed: more replicas would gain next to nothing


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trials:
    """`missed` has a row for each of `fleets` and a column for each minute: arrivals that did not keep the SLO.

    `arrivals` are those of every minute; minutes within the scenario's settling have none.
    """

    fleets: tuple[Pools, ...]
    missed: Array
    arrivals: Array


def trials(trace: Trace, scenario: Scenario, shapes: Sequence[Shape]) -> Trials:
    """Try fleets of each of `shapes`, from one replica to as many as are needed or fit, and some of two shapes."""
    found: dict[tuple[tuple[Shape, int], ...], tuple[Pools, Array]] = {}
    arrivals = np.zeros(0)

    def misses_hardly_any(pools: Pools) -> bool:
        nonlocal arrivals
        missed, arrivals = _missed(trace, scenario, pools)
        found[tuple(pools.items())] = pools, missed
        return bool(missed.sum() <= _HARDLY_MISSED * (1 - scenario.slo.percentile) * arrivals.sum())

    misses_hardly_any(pools_of(scenario.initial))
    enough = scenario.max_gpus
    for shape in shapes:
        for replicas in range(1, scenario.max_gpus // shape.gpus + 1):
            if misses_hardly_any({shape: replicas}):
                enough = min(enough, shape.gpus * replicas)
                break
    for pools in _mixed(shapes[:_MIXED_SHAPES], enough):
        misses_hardly_any(pools)
    fleets, missed = zip(*found.values(), strict=True)
    return Trials(fleets=fleets, missed=np.array(missed), arrivals=arrivals)


def _mixed(shapes: Sequence[Shape], enough: int) -> Iterable[Pools]:
    """Two shapes at once, with fewer GPUs than are enough in one."""
    for position, one in enumerate(shapes):
        for other in shapes[position + 1 :]:
            for count in range(1, enough // one.gpus + 1):
                for more in range(1, (enough - 1 - count * one.gpus) // other.gpus + 1):
                    yield pools_of({one: count, other: more})


def _missed(trace: Trace, scenario: Scenario, pools: Pools) -> tuple[Array, Array]:
    """Arrivals of each minute that miss the SLO, and all of them."""
    result = run(trace, replace(scenario, initial=pools), Scripted(steps=((0.0, pools),), name="trial"), 0)
    series = result.series
    kept = np.array([1.0 if share is None else share for share in series.attainment])
    arrivals = np.array(series.requests_per_s) * MINUTE_S
    arrivals[: int(scenario.settling_s // MINUTE_S)] = 0.0
    return arrivals * (1 - kept), arrivals


def promising(scenario: Scenario, trace: Trace, performance: Performance) -> tuple[Shape, ...]:
    """Shapes that take fewest GPUs for the trace's mean or its hardest minute, best first; the initial ones too."""
    starts_s = np.arange(0, trace.duration_s, MINUTE_S).tolist()
    demands = [demand_of(scenario, trace, at_s, at_s + MINUTE_S) for at_s in starts_s]
    busy = [demand for demand in demands if demand.requests_per_s > 0]
    whole = demand_of(scenario, trace, 0.0, trace.duration_s)

    def cost(shape: Shape, demand: Demand) -> float:
        able_per_s = performance.capacity(shape, demand, scenario.slo, replicas=8).requests_per_s
        return shape.gpus * demand.requests_per_s / able_per_s if able_per_s else float("inf")

    hardest = max(busy, key=lambda one: one.prefill_tokens_per_s)
    fitting = [shape for shape in scenario.site.shapes if shape.gpus <= scenario.max_gpus]
    ranked: list[Shape] = []
    for demand in (whole, hardest):
        best = sorted(fitting, key=lambda shape: (cost(shape, demand), shape.gpus))
        ranked += [shape for shape in best if cost(shape, demand) < float("inf")][: _MOST_SHAPES // 2 + 1]
    return tuple(dict.fromkeys((*ranked, *scenario.initial)))[: _MOST_SHAPES + len(scenario.initial)]
