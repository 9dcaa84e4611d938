"""A run over time: what was asked, what was answered and how fast, window by window. Pure.

A latency and a miss belong to the window in which the request was scheduled, since that is when its user came.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from loadtests.measures import Floats, Requests, percentile

MINUTE_S = 60.0
_WIDTHS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_MOST_WINDOWS, _FEWEST_WINDOWS = 150, 30
_TELLING = 10  # requests a window, below which a percentile says little
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

Values = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """Columns of equal length, one value for each window; None where no request has the value.

    Tokens are spread evenly from the first to the last of their stream.
    """

    window_s: float
    from_s: tuple[float, ...]
    scheduled_per_s: Values
    sent_per_s: Values
    answered_per_s: Values
    failed_per_s: Values
    in_flight: Values
    input_tokens_per_s: Values
    output_tokens_per_s: Values
    ttft_p50_s: Values
    ttft_p95_s: Values
    ttft_p99_s: Values
    tpot_p50_s: Values
    tpot_p95_s: Values
    tpot_p99_s: Values
    longest_stall_s: Values
    lag_max_s: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """The arrivals of one minute and how many were good."""

    from_s: float
    arrivals: int
    good: int
    attainment: float | None


def window_width_s(span_s: float, arrivals: int) -> float:
    """Narrow enough to see a change, wide enough that most windows hold the requests a percentile needs."""
    for width_s in _WIDTHS_S:
        windows = span_s / width_s
        if windows <= _MOST_WINDOWS and (arrivals >= _TELLING * windows or windows <= _FEWEST_WINDOWS):
            return width_s
    return _WIDTHS_S[-1]


def over_time(requests: Requests) -> OverTime:
    """The run in windows of one width, from its start to the end of its last request."""
    end_s = float(requests.ended_s.max(initial=0.0))
    width_s = window_width_s(end_s, len(requests))
    edges_s = width_s * np.arange(max(1, math.floor(end_s / width_s) + 1) + 1, dtype=np.float64)
    lengths_s = np.diff(np.minimum(edges_s, end_s))
    sent_s, ok = requests.scheduled_s + requests.lag_s, requests.ok

    def rate(times_s: Floats) -> Values:
        return _rates(np.histogram(times_s[~np.isnan(times_s)], edges_s)[0], lengths_s)

    def latency(values: Floats, share: float) -> Values:
        return _each(requests.scheduled_s, values, edges_s, share)

    shares = {
        f"{name}_{label}_s": latency(values, share)
        for name, values in (("ttft", requests.ttft_s), ("tpot", requests.tpot_s))
        for label, share in SHARES.items()
    }
    started_s = np.where(np.isnan(sent_s), math.inf, sent_s)
    busy_s = np.diff(_passed(np.ones(len(requests)), started_s, requests.ended_s, edges_s, by_time=True))
    return OverTime(
        window_s=width_s,
        from_s=tuple(edges_s[:-1].tolist()),
        scheduled_per_s=rate(requests.scheduled_s),
        sent_per_s=rate(sent_s),
        answered_per_s=rate(requests.ended_s[ok]),
        failed_per_s=rate(requests.ended_s[~ok]),
        in_flight=_rates(busy_s, lengths_s),
        input_tokens_per_s=_rates(
            _tokens(requests.input_tokens, requests.first_s, requests.first_s, edges_s), lengths_s
        ),
        output_tokens_per_s=_rates(
            _tokens(requests.output_tokens, requests.first_s, requests.last_s, edges_s), lengths_s
        ),
        longest_stall_s=latency(requests.longest_stall_s, 1.0),
        lag_max_s=latency(requests.lag_s, 1.0),
        **shares,
    )


def by_minute(requests: Requests) -> list[Minute]:
    """SLO attainment by the minute of arrival, to the last minute with an arrival."""
    if not len(requests):
        return []
    minutes = np.floor(requests.scheduled_s / MINUTE_S).astype(int)
    arrivals = np.bincount(minutes)
    good = np.bincount(minutes, weights=requests.good).astype(int)
    return [
        Minute(
            from_s=index * MINUTE_S,
            arrivals=int(count),
            good=int(good[index]),
            attainment=float(good[index] / count) if count else None,
        )
        for index, count in enumerate(arrivals)
    ]


def _each(times_s: Floats, values: Floats, edges_s: Floats, share: float) -> Values:
    found = ~np.isnan(values)
    order = np.argsort(times_s[found], kind="stable")
    at_s, sorted_values = times_s[found][order], values[found][order]
    cuts = np.searchsorted(at_s, edges_s)
    slices = [sorted_values[low:high] for low, high in itertools.pairwise(cuts)]
    return tuple(percentile(inside, share) if len(inside) else None for inside in slices)


def _tokens(tokens: Floats, from_s: Floats, to_s: Floats, edges_s: Floats) -> Floats:
    known = ~(np.isnan(tokens) | np.isnan(from_s) | np.isnan(to_s))
    return np.diff(_passed(tokens[known], from_s[known], to_s[known], edges_s, by_time=False))


def _passed(amounts: Floats, from_s: Floats, to_s: Floats, edges_s: Floats, *, by_time: bool) -> Floats:
    """How much has passed at each edge: a share of each amount, or the amount for each second in between."""
    passed = np.zeros(len(edges_s))
    length_s = np.maximum(to_s - from_s, 0)
    for index, edge_s in enumerate(edges_s[1:], start=1):
        elapsed_s = np.clip(edge_s - from_s, 0, length_s)
        whole = np.divide(elapsed_s, length_s, out=(edge_s > from_s).astype(np.float64), where=length_s > 0)
        passed[index] = float((amounts * (elapsed_s if by_time else whole)).sum())
    return passed


def _rates(amounts: Floats, lengths_s: Floats) -> Values:
    """By the second; None for a last window that the run barely entered."""
    least_s = lengths_s[0] / 2
    pairs = zip(amounts.tolist(), lengths_s.tolist(), strict=True)
    return tuple(amount / length_s if length_s > least_s else None for amount, length_s in pairs)
