"""From the records of a run to its figures, by the formulas of loadtests/README.md. Pure.

Every arrival counts. One that was refused, failed, was cut or never ended has no TPOT and misses the SLO; it is never
left out of a denominator.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.records import Record
from loadtests.slo import Slo

OK = "ok"
DAMAGED = frozenset({"gap-or-repeat", "text-differs"})
COMPLETE = frozenset({OK, "no-usage"}) | DAMAGED  # streams that ran to their end
MOST_LAG_SHARE = 0.05  # of the tightest TTFT that is asked for
NOT_TOLD = "not told"
QUARTILES = 4
# A shape as it stands in the name of a replica: tiny-tp2pp2-0.
_SHAPE = re.compile(r"(?<![a-z0-9])(?:(?:tp|pp|ep|dp)\d+)+(?![a-z0-9])")

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """A run as columns, one value for each arrival in the order of the schedule; NaN where there is none.

    Times are seconds from the start of the run, all others durations in seconds.
    """

    scheduled_s: Floats
    ended_s: Floats
    lag_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    event_gap_s: Floats
    longest_stall_s: Floats
    first_s: Floats
    last_s: Floats
    asked_input_tokens: Floats
    asked_output_tokens: Floats
    input_tokens: Floats
    output_tokens: Floats
    good: Flags
    outcomes: tuple[str, ...]
    class_names: tuple[str | None, ...]
    replicas: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def ok(self) -> Flags:
        """Where the whole answer came, as it should be."""
        return np.array([outcome == OK for outcome in self.outcomes], dtype=np.bool_)

    @property
    def span_s(self) -> float:
        """From the first scheduled arrival to the end of the last request."""
        return float(self.ended_s.max() - self.scheduled_s.min()) if len(self) else 0.0


def requests_of(records: Iterable[Record], slo: Slo, *, open_loop: bool) -> Requests:
    """Columns of a run. The clock of a request starts when it was scheduled, in a closed loop when it was sent."""
    rows = sorted(records, key=lambda record: (record.scheduled_s, record.id))
    starts = [row.scheduled_s if open_loop else row.sent_s for row in rows]

    def column(value: Callable[[Record], float | None]) -> Floats:
        return np.array([math.nan if (found := value(row)) is None else found for row in rows], dtype=np.float64)

    start_s = np.array([math.nan if start is None else start for start in starts], dtype=np.float64)
    scheduled_s, first_s = column(lambda row: row.scheduled_s), column(lambda row: row.first_s)
    ok = np.array([row.outcome == OK for row in rows], dtype=np.bool_)
    last_s, ttft_s, tpot_s = column(lambda row: row.last_s), first_s - start_s, column(_tpot_s)
    allowed = [slo.of(row.class_name) for row in rows]
    return Requests(
        scheduled_s=scheduled_s,
        ended_s=column(lambda row: row.ended_s),
        lag_s=column(lambda row: row.sent_s) - scheduled_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=np.where(ok, last_s - start_s, math.nan),
        event_gap_s=column(_event_gap_s),
        longest_stall_s=column(lambda row: row.longest_gap_s),
        first_s=first_s,
        last_s=last_s,
        asked_input_tokens=column(lambda row: row.asked_input_tokens),
        asked_output_tokens=column(lambda row: row.asked_output_tokens),
        input_tokens=column(lambda row: row.input_tokens),
        output_tokens=column(lambda row: row.output_tokens),
        good=ok
        & _within(ttft_s, [limits.ttft_s for limits in allowed], where_absent=False)
        & _within(tpot_s, [limits.tpot_s for limits in allowed], where_absent=True),
        outcomes=tuple(row.outcome for row in rows),
        class_names=tuple(row.class_name for row in rows),
        replicas=tuple(row.replica for row in rows),
    )


def _tpot_s(row: Record) -> float | None:
    """Of a whole answer of two tokens or more."""
    if row.outcome != OK or row.first_s is None or row.last_s is None or (row.output_tokens or 0) < 2:
        return None
    return (row.last_s - row.first_s) / ((row.output_tokens or 0) - 1)


def _event_gap_s(row: Record) -> float | None:
    if row.first_s is None or row.last_s is None or row.events < 2:
        return None
    return (row.last_s - row.first_s) / (row.events - 1)


def _within(values: Floats, limits: Sequence[float | None], *, where_absent: bool) -> Flags:
    """A whole answer of one token has no TPOT and cannot miss it; one without a first token misses any TTFT."""
    most = np.array([math.inf if limit is None else limit for limit in limits], dtype=np.float64)
    return np.where(np.isnan(values), where_absent | np.isinf(most), values <= most)


def percentile(values: Floats, share: float) -> float:
    """The smallest of the values that at least ``share`` of them do not exceed: one of them, never between two.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("a percentile needs at least one value")
    rank = max(1, math.ceil(share * len(values) - 1e-9))  # 0.07 * 100 is 7.000000000000001
    return float(np.partition(values, rank - 1)[rank - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of the requests that have the value at all; ``count`` says how many these are."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def distribution(values: Floats) -> Distribution | None:
    """None where no request has a value."""
    found = values[~np.isnan(values)]
    if not len(found):
        return None
    ranks = {f"p{rank}": percentile(found, rank / 100) for rank in (50, 90, 95, 99)}
    return Distribution(count=len(found), mean=float(found.mean()), max=float(found.max()), **ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A set of arrivals; rates are over the span of the whole run."""

    name: str
    arrivals: int
    ok: int
    good: int
    attainment: float  # good / arrivals
    lost_streams: int  # began to answer and did not reach the end
    damaged_streams: int  # reached the end with a gap, a repetition or another text
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    good_requests_per_s: float
    good_output_tokens_per_s: float
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None
    event_gap_s: Distribution | None
    longest_stall_s: Distribution | None


def figures(requests: Requests, name: str, chosen: Flags | None = None) -> Figures:
    """Of the chosen arrivals, which must be at least one; of all where nothing is chosen."""
    which = np.ones(len(requests), dtype=np.bool_) if chosen is None else chosen
    ok, good = requests.ok & which, requests.good & which
    span_s = requests.span_s or math.inf
    begun = ~np.isnan(requests.first_s) & which
    outcomes = np.array(requests.outcomes)
    return Figures(
        name=name,
        arrivals=int(which.sum()),
        ok=int(ok.sum()),
        good=int(good.sum()),
        attainment=float(good.sum() / which.sum()),
        lost_streams=int((begun & ~np.isin(outcomes, sorted(COMPLETE))).sum()),
        damaged_streams=int((which & np.isin(outcomes, sorted(DAMAGED))).sum()),
        requests_per_s=float(ok.sum() / span_s),
        input_tokens_per_s=float(np.nansum(requests.input_tokens[ok]) / span_s),
        output_tokens_per_s=float(np.nansum(requests.output_tokens[which]) / span_s),
        good_requests_per_s=float(good.sum() / span_s),
        good_output_tokens_per_s=float(np.nansum(requests.output_tokens[good]) / span_s),
        ttft_s=distribution(requests.ttft_s[which]),
        tpot_s=distribution(requests.tpot_s[which]),
        e2e_s=distribution(requests.e2e_s[which]),
        event_gap_s=distribution(requests.event_gap_s[which]),
        longest_stall_s=distribution(requests.longest_stall_s[which]),
    )


def by_class(requests: Requests) -> list[Figures]:
    """One for each class, by name; none where the load has no classes."""
    return _by(requests, requests.class_names)


def by_replica(requests: Requests) -> list[Figures]:
    """One for each replica that the server named; none where it named none."""
    return _by(requests, requests.replicas)


def by_shape(requests: Requests) -> list[Figures]:
    """One for each shape found in the names of the replicas."""
    found = [_SHAPE.search(replica or "") for replica in requests.replicas]
    return _by(requests, [match[0] if match else None for match in found])


def by_input_quartile(requests: Requests) -> list[Figures]:
    """Four groups by the input tokens that were asked for; fewer where lengths repeat."""
    lengths = requests.asked_input_tokens
    if not len(lengths):
        return []
    bounds = sorted({percentile(lengths, part / QUARTILES) for part in range(1, QUARTILES + 1)})
    lows = [float(lengths.min()), *(bound + 1 for bound in bounds[:-1])]
    groups = [(low, high, (lengths >= low) & (lengths <= high)) for low, high in zip(lows, bounds, strict=True)]
    names = [f"{high:.0f} tokens" if low == high else f"{low:.0f}-{high:.0f} tokens" for low, high, _ in groups]
    return [figures(requests, name, chosen) for name, (_, _, chosen) in zip(names, groups, strict=True)]


def _by(requests: Requests, names: Sequence[str | None]) -> list[Figures]:
    if not any(names):
        return []
    labels = np.array([name or NOT_TOLD for name in names])
    return [figures(requests, str(label), labels == label) for label in np.unique(labels)]


def outcome_counts(requests: Requests) -> dict[str, int]:
    """How the requests ended, the most frequent first."""
    counts: dict[str, int] = {}
    for outcome in requests.outcomes:
        counts[outcome] = counts.get(outcome, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def invalid_reasons(
    requests: Requests, slo: Slo, told: Sequence[str], *, open_loop: bool, told_lag_s: float
) -> list[str]:
    """Why the figures do not speak of the server alone: what the run said itself, and a client that did not keep up.

    Of lags above `told_lag_s` the run has said so itself, worker by worker.
    """
    reasons = list(told)
    if not len(requests):
        return [*reasons, "no request was scheduled"]
    lag = distribution(requests.lag_s)
    most_s = math.inf if slo.tightest_ttft_s is None else MOST_LAG_SHARE * slo.tightest_ttft_s
    if open_loop and lag is not None and most_s < lag.p99 <= told_lag_s:
        reasons.append(f"the client lagged: p99 {lag.p99 * 1000:.1f} ms behind the schedule, allowed {most_s * 1000:g}")
    if unsent := int(np.isnan(requests.lag_s).sum()):
        reasons.append(f"{unsent} of {len(requests)} requests were never sent")
    return reasons
