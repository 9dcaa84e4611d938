"""How far two runs differ, and how much of that is chance: a block bootstrap. Pure; chance is an argument.

Requests that are near in time share a queue, so they are drawn in blocks of time and never one by one (Künsch, "The
jackknife and the bootstrap for general stationary observations", 1989). Where both runs had the same schedule the same
blocks are drawn from both, which takes the load out of the difference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from loadtests.measures import Floats, Requests

BLOCK_S = 60.0
FEWEST_BLOCKS = 10
CONFIDENCE = 0.95

Counts = NDArray[np.int64]
# A figure of a run for each row of counts, which say how often every block was drawn.
Figure = Callable[["Blocked", Counts], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A run, how long requests arrived, and the block of that time to which each of them belongs."""

    requests: Requests
    length_s: float
    block: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where the difference lies, as far as the blocks tell."""

    low: float
    high: float


def blocks_of(length_s: float) -> int:
    """Blocks of a minute, or shorter ones where the run has less than ten minutes."""
    return max(FEWEST_BLOCKS, round(length_s / BLOCK_S))


def blocked(requests: Requests, length_s: float, blocks: int) -> Blocked:
    """Cut a run of this length into blocks of equal length by the scheduled times."""
    index = np.floor(requests.scheduled_s / length_s * blocks).astype(np.int64)
    return Blocked(requests=requests, length_s=length_s, block=np.clip(index, 0, blocks - 1))


def draws(rng: np.random.Generator, blocks: int, resamples: int) -> Counts:
    """How often each block is drawn in each resample."""
    counts: Counts = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    return counts


def per_second(of: Callable[[Requests], Floats]) -> Figure:
    """The sum of a column over the time in which requests arrived.

    Not over the span to the last answer, as in a report: the end of one request has no part in the blocks' chance.
    """

    def figure(run: Blocked, counts: Counts) -> Floats:
        sums = np.bincount(run.block, weights=np.nan_to_num(of(run.requests)), minlength=counts.shape[1])
        return np.asarray(counts @ sums / run.length_s, dtype=np.float64)

    return figure


def share(of: Callable[[Requests], NDArray[np.bool_]]) -> Figure:
    """The share of arrivals of which something is true."""

    def figure(run: Blocked, counts: Counts) -> Floats:
        true = np.bincount(run.block, weights=of(run.requests).astype(np.float64), minlength=counts.shape[1])
        arrivals = counts @ np.bincount(run.block, minlength=counts.shape[1])
        with np.errstate(invalid="ignore"):  # NaN where only blocks without an arrival were drawn
            return np.asarray((counts @ true) / arrivals)

    return figure


def rank(of: Callable[[Requests], Floats], part: float) -> Figure:
    """A percentile, by the formula of `measures.percentile`; NaN where no drawn request has the value."""

    def figure(run: Blocked, counts: Counts) -> Floats:
        values = of(run.requests)
        order = np.argsort(values)[: int((~np.isnan(values)).sum())]  # NaN sorts to the end
        if not len(order):
            return np.full(len(counts), math.nan)
        return _ranked(values[order], run.block[order], counts, part)

    return figure


def _ranked(ascending: Floats, block: NDArray[np.int64], counts: Counts, part: float) -> Floats:
    """The values stand in rows; first the row is found that holds the rank, then the place in the row.

    So each resample looks at about two square roots of the values, and not at all of them.
    """
    resamples, blocks = counts.shape
    width = math.isqrt(len(ascending) - 1) + 1
    rows = -(-len(ascending) // width)
    padded = np.full(rows * width, blocks)  # a block that is never drawn fills the last row
    padded[: len(block)] = block
    in_row = np.bincount(np.arange(len(block)) // width * blocks + block, minlength=rows * blocks)
    passed = (counts @ in_row.reshape(rows, blocks).T).cumsum(axis=1)
    total = passed[:, -1]
    wanted = np.maximum(1, np.ceil(part * total - 1e-9))
    row = (passed >= wanted[:, None]).argmax(axis=1)
    before = np.where(row > 0, passed[np.arange(resamples), row - 1], 0)
    drawn = np.pad(counts, ((0, 0), (0, 1)))[np.arange(resamples)[:, None], padded.reshape(rows, width)[row]]
    place = (before[:, None] + drawn.cumsum(axis=1) >= wanted[:, None]).argmax(axis=1)
    return np.where(total > 0, ascending[np.minimum(row * width + place, len(ascending) - 1)], math.nan)


def interval(differences: Floats, blocks: int) -> Interval | None:
    """The percentile interval, widened for few blocks; None where a resample has no difference.

    Without that, ten blocks give an interval that is a sixth too narrow (Hesterberg, "What Teachers Should Know About
    the Bootstrap", The American Statistician 69, 2015, section 5.3: the expanded percentile interval).
    """
    if np.isnan(differences).any():
        return None
    outside = NormalDist().cdf(-math.sqrt(blocks / (blocks - 1)) * _student(1 - (1 - CONFIDENCE) / 2, blocks - 1))
    low, high = np.quantile(differences, [outside, 1 - outside])
    return Interval(low=float(low), high=float(high))


def _student(probability: float, freedom: int) -> float:
    """Quantile of Student's distribution by its expansion; off by less than 0.3 % from nine degrees of freedom up.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
