"""Where a noisy series stands and where it heads: stretches of the past in which it stayed, or moved steadily.

Arrivals scatter: with an index of dispersion of 16, twelve per second are 15 % more or less in a minute by chance. The
past is cut where that explains it best, and a cut or a slope must explain more than chance does: a step becomes two
levels, a ramp one slope, bursts neither. (Penalised optimal partitioning, Jackson et al. 2005; the noise is known.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autoscaling.observation import Array

# Squared standard errors that a cut, and a slope, must explain: 2.5 standard errors each. A change that is missed for
# a minute costs misses, one that is none costs what following each minute costs.
_CLEAR = 2.5**2
_FEWEST_OF_A_TREND = 3  # steps: any two are on a line
_NO_TIME = 1e-6  # s^2; one step is a point in time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """Of a series whose noise has the same size everywhere.

    `levels` is the series without its noise in each step that was given, `errors` one standard error of these. `level`
    is that at the end of the last step and `slope` what it gains per second, both as the mean of what is likely.
    """

    levels: Array
    errors: Array
    level: float
    slope: float


def course(values: Array, lasted_s: Array, weights: Array, *, trend_after_s: float = math.inf) -> Course:
    """The course of `values` in steps that lasted `lasted_s` each, oldest first.

    `weights` are one over the variance of each value, 0 for one that says nothing. A trend must have lasted for
    `trend_after_s`: the two or three steps in which a jump happens look like one. Raises ValueError where no value says
    anything.
    """
    if not (weights > 0).any():
        raise ValueError("no value has a weight above 0; a course needs one.")
    ends_s = np.cumsum(lasted_s)
    times_s = ends_s - lasted_s / 2 - ends_s[-1]
    fits = _fits(values, times_s, weights)
    trends = (_between(lasted_s) >= trend_after_s) & (_between((weights > 0).astype(float)) >= _FEWEST_OF_A_TREND)
    steady = np.where(fits.weights > 0, fits.misfits[0] + _CLEAR, np.inf)
    costs = np.array([steady, np.where(trends, fits.misfits[1] + 2 * _CLEAR, np.inf)])
    levels, errors = np.zeros(len(values)), np.zeros(len(values))
    for kind, begin, end in _cheapest(costs):
        slope = fits.slopes[kind, begin, end]
        levels[begin:end] = fits.means[begin, end] + slope * (times_s[begin:end] - fits.middles_s[begin, end])
        errors[begin:end] = 1 / math.sqrt(fits.weights[begin, end])
    shares, slopes = _likely_ends(costs), fits.slopes[:, :-1, -1]
    ends = fits.means[:-1, -1] - slopes * fits.middles_s[:-1, -1]
    return Course(
        levels=levels, errors=errors, level=float((shares * ends).sum()), slope=float((shares * slopes).sum())
    )


class _Fits(NamedTuple):
    """Of stretches from each step (row) up to each (column), by weighted least squares.

    `means` of the values, `middles_s` of the times; `slopes` and `misfits`, squared standard errors that are left, are
    those of a level and of a trend.
    """

    weights: Array
    means: Array
    middles_s: Array
    slopes: Array
    misfits: Array


def _fits(values: Array, times_s: Array, weights: Array) -> _Fits:
    one, of_time, of_value = (_between(weights * each) for each in (np.ones_like(values), times_s, values))
    divisor = np.where(one > 0, one, 1.0)
    means, middles_s = of_value / divisor, of_time / divisor
    spread = _between(weights * times_s**2) - of_time * middles_s
    together = _between(weights * times_s * values) - of_time * means
    slopes = np.divide(together, spread, out=np.zeros_like(spread), where=spread > _NO_TIME * divisor)
    scatter = np.maximum(_between(weights * values**2) - of_value * means, 0.0)
    return _Fits(
        weights=one,
        means=means,
        middles_s=middles_s,
        slopes=np.array([np.zeros_like(slopes), slopes]),
        misfits=np.array([scatter, np.maximum(scatter - slopes * together, 0.0)]),
    )


def _cheapest(costs: Array) -> Iterator[tuple[int, int, int]]:
    """The stretches that cost least together: 1 for a trend, begin, and end."""
    either = costs.min(axis=0)
    least = np.zeros(len(either))
    begins = np.zeros(len(either), dtype=int)
    for end in range(1, len(least)):
        until = least[:end] + either[:end, end]
        begins[end] = until.argmin()
        least[end] = until[begins[end]]
    end = len(either) - 1
    while end:
        begin = int(begins[end])
        yield int(costs[1, begin, end] < costs[0, begin, end]), begin, end
        end = begin


def _likely_ends(costs: Array) -> Array:
    """How likely it is that the last stretch is a level (row 0), or a trend, that begins at each step.

    What is done must not jump between two cuts that explain the past as well as each other.
    """
    either = np.logaddexp(-costs[0] / 2, -costs[1] / 2)
    logs = np.zeros(len(either))  # of how likely the past up to each step is, over all cuts
    for end in range(1, len(logs)):
        until = logs[:end] + either[:end, end]
        most = until.max()
        logs[end] = most + math.log(np.exp(until - most).sum()) if most > -np.inf else most
    return np.asarray(np.exp(logs[:-1] - costs[:, :-1, -1] / 2 - logs[-1]))


def _between(values: Array) -> Array:
    """Sums from each place (row) up to each (column)."""
    sums = np.concatenate((np.zeros(1), np.cumsum(values)))
    return np.asarray(sums[None, :] - sums[:, None])
