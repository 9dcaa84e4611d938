"""A bound below every policy: the fewest GPUs for each window's tokens, changes free and nobody queueing."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from autoscaling.capacity.performance import MOST_REPLICAS, Performance
from autoscaling.observation import Array
from autoscaling.simulation.oracles.windows import demand_of
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace

_HOUR_S = 3600.0
_HALF = 0.5  # of the requests keep the SLO: waiting behind others is left out


def fluid_bound_gpu_hours(
    scenario: Scenario, trace: Trace, performance: Performance, *, window_s: float = 60.0
) -> float:
    """GPU-hours that no policy gets below, if the performance model is right.

    Work may move out of a window for as long as the SLO lets a request wait, and as many requests may be dropped as
    may miss the SLO: those whose windows get cheapest by it. At least the smallest replica is held.
    """
    from_s = np.arange(scenario.settling_s, trace.duration_s, window_s)
    slack_s = scenario.slo.ttft_s or 0.0
    steps = [_steps(scenario, trace, performance, at_s, window_s, slack_s) for at_s in from_s.tolist()]
    gpus = np.array([max(least, _fewest(most, arrivals)) for most, arrivals, least in steps], dtype=float)
    lengths_s = np.minimum(window_s, trace.duration_s - from_s)
    may_miss = (1 - scenario.slo.percentile) * sum(arrivals for _, arrivals, _ in steps)
    return (float(gpus @ lengths_s) - _saved_gpu_s(steps, gpus, lengths_s, may_miss)) / _HOUR_S


def _steps(
    scenario: Scenario, trace: Trace, performance: Performance, at_s: float, window_s: float, slack_s: float
) -> tuple[Array, float, int]:
    """Most requests of a window that each number of GPUs answers, those that arrive, and the fewest GPUs there are."""
    demand = demand_of(scenario, trace, at_s, min(at_s + window_s, trace.duration_s))
    loose = replace(scenario.slo, percentile=_HALF)
    shapes = [shape for shape in scenario.site.shapes if shape.gpus <= scenario.max_gpus]
    most = np.zeros(scenario.max_gpus + 1)
    able = [(shape.gpus, performance.capacity(shape, demand, loose, replicas=MOST_REPLICAS)) for shape in shapes]
    for gpus in range(1, len(most)):
        most[gpus] = max(
            (most[gpus - size] + one.requests_per_s * (window_s + slack_s) for size, one in able if size <= gpus),
            default=0.0,
        )
    least = min(shape.gpus for shape in shapes)
    return most, demand.requests_per_s * window_s, least


def _fewest(most: Array, arrivals: float) -> int:
    """All of the GPUs where they are too few."""
    enough = np.flatnonzero(most >= arrivals)
    return int(enough[0]) if len(enough) else len(most) - 1


def _saved_gpu_s(steps: list[tuple[Array, float, int]], gpus: Array, lengths_s: Array, may_miss: float) -> float:
    """GPU-seconds saved by dropping requests where that saves most; a bound may divide the last replica."""
    offers = []
    for (most, arrivals, least), held, length_s in zip(steps, gpus.astype(int).tolist(), lengths_s, strict=True):
        dropped = np.maximum(0.0, arrivals - most[least : held + 1])[::-1]
        for (before, after), fewer in _hull(dropped - dropped[0]):
            offers.append((after - before, fewer * float(length_s)))
    offers.sort(key=lambda one: one[0] / one[1])
    saved_gpu_s = 0.0
    for drops, gpu_s in offers:
        if drops > may_miss:
            return saved_gpu_s + gpu_s * may_miss / drops
        may_miss -= drops
        saved_gpu_s += gpu_s
    return saved_gpu_s


def _hull(values: Array) -> list[tuple[tuple[float, float], int]]:
    """The edges of the lower convex hull of values at 0, 1, 2, ...: the two values of each, and its width."""
    corners: list[int] = [0]
    for at in range(1, len(values)):
        while len(corners) > 1 and _is_above(values, corners[-2], corners[-1], at):
            corners.pop()
        corners.append(at)
    return [((float(values[one]), float(values[other])), other - one) for one, other in pairwise(corners)]


def _is_above(values: Array, left: int, middle: int, right: int) -> bool:
    rise = (values[right] - values[left]) / (right - left)
    return bool(values[middle] >= values[left] + rise * (middle - left))
