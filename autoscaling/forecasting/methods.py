"""Candidate forecasts of one series, made at many past moments at once: level, trend and season.

Each is a linear filter of the past, so one matrix product gives what it would have said at every moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from autoscaling.observation import Array

Indices = npt.NDArray[np.intp]

_MEMORY = 64  # steps that a filter looks back; the slowest mean has forgotten 96 % of its past by then
_MEANS = (0.05, 0.15, 0.45)  # weight of the newest step
# Damped trend of Gardner & McKenzie 1985: weights of the newest level and slope, and the slope kept.
_TRENDS = ((0.5, 0.3, 0.95), (0.3, 0.1, 1.0))
_SEASON_LEVELS = (5, 60)  # steps whose mean says how far today is from then; the long one lets a deviation pass
_SEASON_SMOOTHING = 5  # steps to either side in the curve of then
_SEASONS_BACK = 3
_SPIKE = 4.0  # a change beyond so many usual ones is believed when the next step confirms it

WARM_UP = _MEMORY  # steps before the first origin with which every filter is filled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """What each method says: `paths[method, lead, origin]`, and `nexts[method, step]` one step after every step."""

    names: tuple[str, ...]
    paths: Array
    nexts: Array


def without_spikes(roots: Array, noise: float) -> Array:
    """`roots` with what stood out for one step only cut to `_SPIKE` usual changes beyond its two predecessors."""
    if len(roots) < 3:
        return roots
    usual = max(np.sqrt(2) * noise, 1.4826 * float(np.median(np.abs(np.diff(roots)))))
    before, last = roots[:-2], roots[1:-1]
    low, high = np.minimum(before, last) - _SPIKE * usual, np.maximum(before, last) + _SPIKE * usual
    return np.concatenate((roots[:2], np.clip(roots[2:], low, high)))


def candidates(
    roots: Array, recent: Array, origins: Indices, leads: int, seasons: Sequence[tuple[str, int]]
) -> Candidates:
    """Forecasts for 1 to `leads` steps after each of `origins`, indices into `recent`, which is the end of `roots`.

    `seasons` are names and lengths in steps; those that the series is too short for are left out.
    """
    found = [_smoothed(recent, origins, leads)]
    for name, season in seasons:
        if season > 3 * leads + 60 and len(roots) >= season + max(_SEASON_LEVELS) + 3 * leads:
            found.append(_seasonal(roots, recent, origins, leads, name, season))
    return Candidates(
        names=tuple(name for each in found for name in each.names),
        paths=np.concatenate([each.paths for each in found]),
        nexts=np.concatenate([each.nexts for each in found]),
    )


def _smoothed(recent: Array, origins: Indices, leads: int) -> Candidates:
    """Last value, means and damped trends."""
    start = recent[0]
    filters, shares = _filters()
    states = np.array([np.convolve(recent - start, each)[: len(recent)] for each in filters])
    # A mean over fewer steps than the filter has is one of those there are.
    states[: len(shares)] /= shares[:, np.minimum(np.arange(len(recent)), _MEMORY - 1)]
    levels, slopes = np.split(states, [len(filters) - len(_TRENDS)])
    levels, slopes = start + levels, np.concatenate((np.zeros((len(shares), len(recent))), slopes))
    damping = np.array([1.0] * len(shares) + [kept for _, _, kept in _TRENDS])
    reach = np.cumsum(damping[:, None] ** np.arange(1, leads + 1), axis=1)
    return Candidates(
        names=("last value", *["mean"] * len(_MEANS), *["trend"] * len(_TRENDS)),
        paths=levels[:, None, origins] + slopes[:, None, origins] * reach[:, :, None],
        nexts=levels + slopes * reach[:, :1],
    )


@lru_cache(maxsize=1)
def _filters() -> tuple[Array, Array]:
    """What a step weighs by age: in levels of means and of trends, and in slopes of trends; and sums for the means."""
    ages = np.arange(_MEMORY)
    means = [np.where(ages == 0, 1.0, 0.0), *(weight * (1 - weight) ** ages for weight in _MEANS)]
    levels, slopes = zip(*(_trend(*each) for each in _TRENDS), strict=True)
    return np.array([*means, *levels, *slopes]), np.cumsum(means, axis=1)


def _trend(of_level: float, of_slope: float, kept: float) -> tuple[Array, Array]:
    """What each past step weighs in level and slope: the answer of the recursion to a single one."""
    levels, slopes = np.zeros(_MEMORY), np.zeros(_MEMORY)
    level = slope = 0.0
    for age in range(_MEMORY):
        before = level
        level = of_level * (age == 0) + (1 - of_level) * (level + kept * slope)
        slope = of_slope * (level - before) + (1 - of_slope) * kept * slope
        levels[age], slopes[age] = level, slope
    weight = levels.sum()
    return levels / weight, slopes - slopes.sum() * levels / weight


def _seasonal(roots: Array, recent: Array, origins: Indices, leads: int, name: str, season: int) -> Candidates:
    """Today's level, and the curve of one or more seasons ago from there on."""
    steps, reach = len(recent), max(_SEASON_LEVELS) - 1
    # Only the latest season may be there for a part of the origins: it says "no change" for the others.
    back = max(1, min(_SEASONS_BACK, (len(roots) - steps - reach) // season))
    begin, end = len(roots) - steps - reach, len(roots) + leads + _SEASON_SMOOTHING
    shifts = [season * count for count in range(1, back + 1)]
    then = np.mean([_between(roots, begin - shift, end - shift) for shift in shifts], axis=0)
    today = _between(recent, -reach, steps)
    curve = _running_mean(then, 2 * _SEASON_SMOOTHING + 1)[reach - _SEASON_SMOOTHING + 1 :]
    # By how much today is above then, as means over each number of steps that end at each step.
    above = np.array([_running_mean(today - then[: len(today)], width)[-steps:] for width in _SEASON_LEVELS])
    return Candidates(
        names=(name,) * len(_SEASON_LEVELS),
        paths=above[:, None, origins] + curve[origins + np.arange(leads)[:, None]],
        nexts=above + curve[:steps],
    )


def _between(values: Array, begin: int, end: int) -> Array:
    """`values[begin:end]`, the first of them repeated for what would be before it."""
    return np.concatenate((np.full(max(0, -begin), values[0]), values[max(0, begin) : end]))


def _running_mean(values: Array, width: int) -> Array:
    sums = np.concatenate((np.zeros(1), np.cumsum(values)))
    means: Array = (sums[width:] - sums[:-width]) / width
    return means
