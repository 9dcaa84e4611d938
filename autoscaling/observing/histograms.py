"""What a histogram of Prometheus says beyond its percentiles. Pure.

Of each bucket only the number of events in it is known; where in it they lie is assumed, and the errors of that are
stated with each function.
"""

import math
from collections.abc import Mapping

_BEYOND = 2.5  # times the highest bound: where the unbounded bucket is taken to end; vLLM's bounds grow 2 to 2.5 times


def counted(cumulative: Mapping[float, float]) -> float:
    """All events of a histogram, given by upper bound; the last bound is infinite."""
    return max(cumulative.values(), default=0.0)


def share_below(cumulative: Mapping[float, float], limit: float) -> float:
    """Share of the events at or below `limit`, evenly spread inside a bucket; 1 without any event.

    Off by at most the share of the bucket that has the limit inside. Events above the highest bound count as above any
    limit.
    """
    total = counted(cumulative)
    if not total:
        return 1.0
    lower_bound, below = 0.0, 0.0
    for bound, upto in _rising(cumulative):
        if limit < bound:
            part = (limit - lower_bound) / (bound - lower_bound) if math.isfinite(bound) else 0.0
            return (below + (upto - below) * max(0.0, part)) / total
        lower_bound, below = bound, upto
    return 1.0


def spread(cumulative: Mapping[float, float], mean: float) -> float:
    """Standard deviation over `mean`, which is known (sum over count); 0 without any event.

    The events of every bucket are spread evenly around the same part of its width, the part that gives the known
    mean, as far as they fit. With vLLM's bounds (1, 2, 5, 10, 20 ...) the result is 0.14 from the true spread in the
    root mean square over log-normal, gamma, exponential, even, two-valued and equal lengths, more often above than
    below, and at most 0.45 for true spreads up to 1: lengths close around a bound look like two wide buckets. (Fits
    of a log-normal were tried; they are worse on any other distribution.)
    """
    buckets = list(_buckets(cumulative))
    total = sum(events for _, _, events in buckets)
    if not total or mean <= 0:
        return 0.0
    least = sum(events * start for start, _, events in buckets) / total
    width = sum(events * (end - start) for start, end, events in buckets) / total
    part = min(1.0, max(0.0, (mean - least) / width)) if width else 1.0
    inside = min(part, 1 - part) ** 2 / 3  # variance of an even spread over `2 min(part, 1 - part)` of a width of 1
    centres = [(start + part * (end - start), end - start, events) for start, end, events in buckets]
    middle = sum(events * centre for centre, _, events in centres) / total
    variance = sum(events * ((centre - middle) ** 2 + inside * size**2) for centre, size, events in centres) / total
    return math.sqrt(variance) / mean


def _buckets(cumulative: Mapping[float, float]) -> list[tuple[float, float, float]]:
    """(Start, end, events) of the buckets that have any."""
    found = []
    start, below = 0.0, 0.0
    for bound, upto in _rising(cumulative):
        end = bound if math.isfinite(bound) else _BEYOND * start
        if upto > below:
            found.append((start, end, upto - below))
        start, below = bound, upto
    return found


def _rising(cumulative: Mapping[float, float]) -> list[tuple[float, float]]:
    """By bound. Rates of buckets that were scraped at different times need not rise; Prometheus mends that too."""
    highest = 0.0
    rising = []
    for bound, upto in sorted(cumulative.items()):
        highest = max(highest, upto)
        rising.append((bound, highest))
    return rising
