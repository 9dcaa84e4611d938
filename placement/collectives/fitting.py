"""Fits the collective model to a user's own measurements, such as the output of nccl-tests.

`fit_lines` describes one curve (one op on one group) by a few alpha-beta lines. `fit_links` needs far fewer points: it
keeps the built-in model and fits two factors, of latency and of bandwidth, for each level that the points cross.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from placement.collectives import Calibration, Factors, Group, Line, Op, collective_curve, line_time_s

_LINES = 3  # low-latency protocol, full-bandwidth protocol, in-switch reduction: no measured curve shows more regimes
_WORTH_A_LINE = 1e-3  # mean relative error that one more line must save
_SPAN_FACTORS = 64.0  # the search covers a 64th to 64 times the model
_STEPS = 8  # candidates on each side of the best factor in one round
_ROUNDS = 4  # each round looks between the neighbours of the last best: 64^(1/8^3) is below 1 % apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured collective. `size_bytes` as in `placement.collectives`."""

    op: Op
    size_bytes: float
    group: Group
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFit:
    """Factors to put into `Group.calibration`, and the mean absolute relative error without and with them."""

    calibration: Calibration
    error_before: float
    error_after: float


def fit_links(points: Sequence[Point], *, start: Calibration | None = None) -> LinkFit:
    """Fit the factors of every level that `points` cross, innermost first; other levels keep those of `start`.

    Minimises the mean absolute relative error, so that one outlier does not decide. Two points of one placement, a
    small and a large message, are enough for its level.
    """
    if not points:
        raise ValueError("fit_links: points is empty; it needs at least one measured collective of more than one rank.")
    before = start or Calibration()
    fitted = before
    for level in ("island", "machine", "network"):
        of_level = [point for point in points if point.group.span == level]
        if of_level:
            fitted = _fit_level(of_level, fitted, level)
    return LinkFit(
        calibration=fitted,
        error_before=mean_error(points, before),
        error_after=mean_error(points, fitted),
    )


def mean_error(points: Iterable[Point], calibration: Calibration) -> float:
    """Mean of |predicted / measured - 1| over `points`, which NCCL ran."""
    curves: dict[tuple[Op, Group], Callable[[float], float]] = {}
    errors = []
    for point in points:
        key = (point.op, point.group)
        if key not in curves:
            curves[key] = collective_curve(point.op, replace(point.group, calibration=calibration), "nccl").time_s
        errors.append(abs(curves[key](point.size_bytes) / point.time_s - 1))
    return sum(errors) / len(errors)


def _fit_level(points: Sequence[Point], start: Calibration, level: str) -> Calibration:
    """A grid in log space that narrows around its best point."""
    best = start
    best_error = mean_error(points, start)
    latency = bandwidth = 1.0
    step = _SPAN_FACTORS ** (1 / _STEPS)
    for _ in range(_ROUNDS):
        centre_latency, centre_bandwidth = latency, bandwidth
        for row in range(-_STEPS, _STEPS + 1):
            for column in range(-_STEPS, _STEPS + 1):
                factors = Factors(latency=centre_latency * step**row, bandwidth=centre_bandwidth * step**column)
                candidate = replace(start, **{level: factors})
                error = mean_error(points, candidate)
                if error < best_error:
                    best, best_error, latency, bandwidth = candidate, error, factors.latency, factors.bandwidth
        step **= 2 / _STEPS
    return best


def fit_lines(points: Sequence[tuple[float, float]]) -> tuple[Line, ...]:
    """At most three lines (seconds, seconds per byte) whose lowest is close to all (bytes, seconds) `points`.

    Cuts the points, in order of size, into one segment for each line, fits each by least squares of the relative error
    and keeps the cuts with the lowest mean relative error of the whole. The lowest of rising lines rises with size.
    """
    ordered = sorted(points)
    if len({size for size, _ in ordered}) < 2 or ordered[0][1] <= 0:
        raise ValueError(f"fit_lines: {len(ordered)} points; it needs two sizes or more and times above 0.")
    best: tuple[Line, ...] = (_fit_line(ordered),)
    best_error = _lines_error(best, ordered)
    for count in range(2, _LINES + 1):
        for cuts in combinations(range(2, len(ordered) - 1), count - 1):
            edges = (0, *cuts, len(ordered))
            segments = [ordered[first:last] for first, last in pairwise(edges)]
            if min(map(len, segments)) < 2:
                continue
            lines = tuple(map(_fit_line, segments))
            error = _lines_error(lines, ordered)
            if lines[-1][1] > 0 and error < best_error - _WORTH_A_LINE:
                best, best_error = lines, error
    return best


def _lines_error(lines: tuple[Line, ...], points: Sequence[tuple[float, float]]) -> float:
    return sum(abs(line_time_s(lines, size) / time - 1) for size, time in points) / len(points)


def _fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Least squares of (latency + slope * size) / time - 1, with neither below 0."""
    weighed = [(1 / time**2, size, time) for size, time in points]
    total = sum(weight for weight, _, _ in weighed)
    mean_size = sum(weight * size for weight, size, _ in weighed) / total
    mean_time = sum(weight * time for weight, _, time in weighed) / total
    spread = sum(weight * (size - mean_size) ** 2 for weight, size, _ in weighed)
    joint = sum(weight * (size - mean_size) * time for weight, size, time in weighed)
    slope = max(0.0, joint / spread)
    latency = mean_time - slope * mean_size
    if latency >= 0:
        return latency, slope
    squares = sum(weight * size**2 for weight, size, _ in weighed)
    return 0.0, sum(weight * size * time for weight, size, time in weighed) / squares
