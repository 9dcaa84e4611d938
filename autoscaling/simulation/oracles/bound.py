"""A bound below every plan of changes, in the simulator's own terms.

The trace is cut into windows. Of a plan no more is used than the most replicas of each shape that serve in each window;
they hold their GPUs at the same time, as a start takes two windows or longer. From this follows, at the least,

    what is missed  around the border of two windows: what the larger numbers of both miss when they serve all the time,
                    begin with nothing to do and are then left alone (`unhindered`)
    what is held    by a replica that serves in k windows in a row: k - 2 windows, its start before and its stop after

A dynamic programme takes the fleets for which GPU-seconds and a price for each miss add up to least. That sum less the
price of all that may be missed is a bound at any price (weak duality); the highest is given.

Two things are taken for granted, which hold on average: starts take their mean time, and in a stretch of the trace
more replicas that have less to do miss no more (which replica gets which request makes it a few more or less).
"""

import math

import numpy as np

from autoscaling.observation import Array
from autoscaling.simulation.oracles.unhindered import Unhindered, unhindered
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace

_HOUR_S = 3600.0
_WINDOW_S = 10.0  # longer ones say less of what is held, shorter ones of what is missed: 7 to 10 s serve best
_PRICES = (1e-1, 1e5)  # GPU-seconds for a missed request
_HALVINGS = 16


def bound_gpu_hours(scenario: Scenario, trace: Trace, *, window_s: float = _WINDOW_S) -> float:
    """GPU-hours that no plan gets below that keeps the SLO, of all shapes of the scenario's site.

    Windows are at most half as long as the shortest start.
    """
    shortest_s = min(map(scenario.times.start_s, scenario.site.shapes))
    return bound_of(unhindered(trace, scenario, min(window_s, shortest_s / 2)), scenario, trace.duration_s)


def bound_of(given: Unhindered, scenario: Scenario, duration_s: float) -> float:
    """The same, when it is known what is missed at the least."""
    relaxed = _Relaxed(given, scenario, duration_s)
    may_miss = (1 - scenario.slo.percentile) * given.arrivals
    low, high = np.log(_PRICES)
    best_gpu_s = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        price = float(np.exp(middle))
        gpu_s, missed = relaxed.cheapest(price)
        best_gpu_s = max(best_gpu_s, gpu_s + price * (missed - may_miss))
        low, high = (middle, high) if missed > may_miss else (low, middle)
    return best_gpu_s / _HOUR_S


class _Relaxed:
    """The programme over (fleet, window), for any price of a miss."""

    def __init__(self, given: Unhindered, scenario: Scenario, duration_s: float) -> None:
        shapes, times = scenario.site.shapes, scenario.times
        sizes = np.array([float(shape.gpus) for shape in shapes])
        starts_s = np.array([times.start_s(shape) for shape in shapes])
        counts = np.array([[pools.get(shape, 0) for shape in shapes] for pools in given.fleets])
        initial = np.array([scenario.initial.get(shape, 0) for shape in shapes])
        more = np.maximum(0, counts[None, :] - counts[:, None])  # from row to column
        self._gpus, self._missed = counts @ sizes, given.missed
        self._begin = np.flatnonzero((counts >= initial).all(axis=1))
        self._come, self._go = more @ sizes, (more @ sizes).T
        self._starts_gpu_s = more @ (sizes * starts_s)
        rows = {tuple(each): row for row, each in enumerate(counts.tolist())}
        larger = np.maximum(counts[None, :], counts[:, None]).tolist()
        self._both = np.array([[rows.get(tuple(each), -1) for each in row] for row in larger])
        # What counts lies between settling and the last arrival: of windows, of starts before and stops after a border.
        edges_s = np.minimum(np.arange(given.missed.shape[1] + 2) * given.window_s, duration_s)
        counted_s = np.maximum(0.0, edges_s - scenario.settling_s)
        self._windows_s = np.diff(counted_s)
        self._started = np.minimum(1.0, counted_s[1:-1] / starts_s.max())
        self._stop_s = np.where(counted_s[1:-1] > 0, np.minimum(times.stop_s, duration_s - edges_s[1:-1]), 0.0)

    def cheapest(self, gpu_s_per_miss: float) -> tuple[float, float]:
        """GPU-seconds and misses of what costs least at this price."""
        fleets, borders = self._missed.shape
        best = np.zeros(fleets)  # in the last window all may go as soon as they have served
        after = np.zeros((borders, fleets), dtype=int)
        for border in range(borders - 1, -1, -1):
            price = np.where(self._both < 0, math.inf, gpu_s_per_miss * self._missed[self._both, border])
            cost = self._changed(border) + price + best
            after[border] = cost.argmin(axis=1)
            best = cost.min(axis=1) + self._gpus * self._windows_s[border]
        row = self._begin[best[self._begin].argmin()]
        cost_gpu_s, missed = float(best[row]), 0.0
        for border in range(borders):
            following = after[border, row]
            missed += float(self._missed[self._both[row, following], border])
            row = following
        return cost_gpu_s - gpu_s_per_miss * missed, missed

    def _changed(self, border: int) -> Array:
        """GPU-seconds from each fleet to each: starts and stops, less the windows in which they lie, which are paid."""
        come: Array = self._starts_gpu_s * self._started[border] - self._come * self._windows_s[border + 1]
        go: Array = self._go * (self._stop_s[border] - self._windows_s[border])
        return come + go
