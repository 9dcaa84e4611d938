"""How bursty arrivals are, from counts in short windows one after the other."""

from statistics import NormalDist

import numpy as np

from autoscaling.observation import Array

_LEFT_OUT = 2  # a rate that changes at once shows in the windows before and after, and is no burst
_FEWEST_PAIRS, _FEWEST_ARRIVALS = 10, 20  # below these one cannot tell bursty arrivals from independent ones


def index_of_dispersion(counts: Array) -> float:
    """Variance over mean of `counts` of arrivals in windows of equal length; NaN where a count is not known.

    Each pair of neighbours gives (change)^2 / (sum), which is 1 on average for independent arrivals whatever their
    rate, so that a rate which merely rises does not look bursty (von Neumann 1941). The largest of these are left out,
    and what they would have added to independent arrivals is made up for. 1 where too little is known. Of 60 windows
    of independent arrivals it is 1 within 0.24 (one standard error).
    """
    changes, sums = np.diff(counts), counts[1:] + counts[:-1]
    pairs, known = int(np.isfinite(changes).sum()), np.isfinite(changes) & (sums > 0)
    telling = int(known.sum())  # none, where all arrivals are between two holes
    if not telling or pairs < _FEWEST_PAIRS or np.nansum(counts) < _FEWEST_ARRIVALS:
        return 1.0
    terms = np.sort(changes[known] ** 2 / sums[known])[: max(1, telling - _LEFT_OUT)]
    return float(terms.sum() / _sum_without_largest(telling))


def _sum_without_largest(count: int) -> float:
    """Of `count` squares of standard normal numbers, but for the largest (Blom 1958 for where those are)."""
    tails = ((rank - 0.375) / (count + 0.25) / 2 for rank in range(1, _LEFT_OUT + 1))
    return max(1.0, count - sum(NormalDist().inv_cdf(tail) ** 2 for tail in tails))
