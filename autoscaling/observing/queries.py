"""What is asked of Prometheus, as data: PromQL with a few open places, and what an empty answer to each means.

All queries of one moment go out as one (`joined`): every part of the answer is then of the same instant, and a
Prometheus far away costs one round trip. The series are vLLM's own where it has them (`vllm:*`, exported by the
ingress, label `model_name`) and the fleet's otherwise (`archipelago_*`, label `model`).

`rate` takes care of counters that start again. It does not see a counter's first value, so requests that came before an
ingress was scraped for the first time are not counted. Where samples are missing at a window's edge it makes up for
half a scrape interval only (promql/functions.go, extrapolatedRate): with 3 of 4 it is up to a quarter too low.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from string import Template
from typing import Literal

# Nothing: there is no such series before the first event, so there was none. Missing: it is exported from the start.
Empty = Literal["nothing", "missing"]
FailureKind = Literal["unreachable", "slow", "refused", "not-prometheus", "partial"]

_METRIC = re.compile(r"(?:vllm:|archipelago_)\w+")
NAME = "query"  # the label that tells the parts of a joined answer apart
FIRST_QUEUE_BOUND_S = 0.3  # vLLM's REQUEST_LATENCY_BUCKETS (v1/metrics/buckets.py)
MAX_POINTS = 11_000  # that Prometheus returns of one series (web/api/v1/api.go, queryRange)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A query evaluated at one time (seconds since the epoch)."""

    promql: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A query evaluated at `start_s` and every `step_s` after it until `end_s`; at most `MAX_POINTS` times."""

    promql: str
    start_s: float
    end_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One answer: its labels, and (time in s, value) of each point; a moment has one point."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The newest value."""
        return self.points[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Prometheus gave no answer that can be used: what happened, and a sentence about it."""

    kind: FailureKind
    why: str


Answer = tuple[Series, ...]
Ask = Callable[[Moment | Span], Answer | Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """PromQL in which `$model` is a quoted name, `$window` a duration and `$percentile` a number from 0 to 1."""

    name: str
    promql: str
    empty: Empty = "missing"

    @property
    def metric(self) -> str:
        """The series it is about."""
        found = _METRIC.search(self.promql)
        assert found is not None, "every query is about a series"
        return found[0]

    def text(self, *, model: str, window_s: float, percentile: float = 0.5) -> str:
        """The query with nothing left open."""
        return Template(self.promql).substitute(model=quoted(model), window=duration(window_s), percentile=percentile)


def quoted(text: str) -> str:
    """A PromQL string: what a model is called must not end the selector it stands in."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def duration(seconds: float) -> str:
    """A PromQL duration; Prometheus counts in milliseconds."""
    return f"{round(seconds * 1000)}ms"


def joined(queries: Iterable[Query], *, model: str, window_s: float, percentile: float = 0.5) -> str:
    """One query that answers all of them, each series labelled with the query's name."""
    texts = {query.name: query.text(model=model, window_s=window_s, percentile=percentile) for query in queries}
    return " or ".join(f'label_replace({text}, "{NAME}", "{name}", "", "")' for name, text in texts.items())


def parted(answer: Answer) -> dict[str, list[Series]]:
    """The parts of a joined answer by the name of their query; no entry where a part is empty."""
    parts: dict[str, list[Series]] = {}
    for series in answer:
        parts.setdefault(series.labels.get(NAME, ""), []).append(series)
    return parts


def _rate(name: str, by: str = "") -> str:
    """Events a second, over all ingresses; `name` is a metric of ours, or one of vLLM's."""
    label = "model_name" if name.startswith("vllm:") else "model"
    total = f"sum by ({by})" if by else "sum"
    return f"{total}(rate({name}{{{label}=$model}}[$window]))"


def _at_percentile(histogram: str, by: str = "le") -> str:
    """NaN, which is what no events give, compares false and so becomes an empty answer.

    A quantile in the last, unbounded bucket reads as the highest bound there is (2,560 s for vLLM's TTFT).
    """
    return f"histogram_quantile($percentile, {_rate(f'{histogram}_bucket', by=by)}) >= 0"


def _of_replicas(gauge: str) -> str:
    """Every ingress repeats what a replica's scheduler says. `max` prefers any number to a NaN."""
    return f"max by (replica, shape)({gauge}{{model=$model}})"


_ARRIVALS = "archipelago_arrivals_total{model=$model}"
_TTFT = "vllm:time_to_first_token_seconds"
_TPOT = "vllm:request_time_per_output_token_seconds"
_INPUT = "vllm:request_prompt_tokens"
_OUTPUT = "vllm:request_generation_tokens"
_REPLICA_TTFT = "archipelago_replica_time_to_first_token_seconds"
_REPLICA_TPOT = "archipelago_replica_time_per_output_token_seconds"

ARRIVALS = Query(name="arrivals", promql=_rate("archipelago_arrivals_total"))
# `timestamp` of a plain selector is when it was scraped; a series whose scrape failed is gone at once.
NEWEST = Query(name="newest", promql=f"max(timestamp({_ARRIVALS}))")
SAMPLES = Query(name="samples", promql=f"max(count_over_time({_ARRIVALS}[$window]))")
# Empty unless there are samples of the next five minutes: then Prometheus's clock is ahead of the one that asks.
AHEAD = Query(name="ahead", promql=f"max(timestamp({_ARRIVALS} offset -5m))", empty="nothing")
INGRESSES = Query(name="ingresses", promql=f"count({_ARRIVALS})", empty="nothing")
# Still to be scraped, but not answering. One that has been taken away is not in `up` either.
SILENT_INGRESSES = Query(
    name="silent_ingresses",
    promql=f"count((up == 0) and on (job, instance) count_over_time({_ARRIVALS}[1h]))",
    empty="nothing",
)
HEALTH = (ARRIVALS, NEWEST, SAMPLES, AHEAD, INGRESSES, SILENT_INGRESSES)

REFUSED = Query(name="refused", promql=_rate("archipelago_refused_total"), empty="nothing")
FAILED = Query(
    name="failed",
    promql='sum(rate(vllm:request_success_total{model_name=$model, finished_reason="error"}[$window]))',
    empty="nothing",
)
TTFT = Query(name="ttft", promql=_at_percentile(_TTFT), empty="nothing")
TPOT = Query(name="tpot", promql=_at_percentile(_TPOT), empty="nothing")
# The histogram is of the fleet as one engine, so there is none of a pool. What is in its first bucket is not known.
QUEUE = Query(
    name="queue", promql=f"{_at_percentile('vllm:request_queue_time_seconds')} > {FIRST_QUEUE_BOUND_S}", empty="nothing"
)
TTFT_BUCKETS = Query(name="ttft_buckets", promql=_rate(f"{_TTFT}_bucket", by="le"))
TPOT_BUCKETS = Query(name="tpot_buckets", promql=_rate(f"{_TPOT}_bucket", by="le"))
ANSWERS = (REFUSED, FAILED, TTFT, TPOT, QUEUE, TTFT_BUCKETS, TPOT_BUCKETS)

# The mean: at the next moment a batch of four may be one of two or of seven. A replica that has just gone is in it.
RUNNING = Query(
    name="running",
    promql=f"avg_over_time({_of_replicas('archipelago_replica_running_requests')}[$window:5s])",
    empty="nothing",
)
WAITING = Query(name="waiting", promql=_of_replicas("archipelago_replica_waiting_requests"), empty="nothing")
KV_USAGE = Query(name="kv_usage", promql=_of_replicas("archipelago_replica_kv_cache_usage_ratio"), empty="nothing")
SENT = Query(name="sent", promql=_rate("archipelago_replica_requests_total", by="shape"), empty="nothing")
PREEMPTED = Query(name="preempted", promql=_rate("archipelago_replica_preemptions_total", by="shape"), empty="nothing")
POOL_TTFT = Query(name="pool_ttft", promql=_at_percentile(_REPLICA_TTFT, by="le, shape"), empty="nothing")
POOL_TPOT = Query(name="pool_tpot", promql=_at_percentile(_REPLICA_TPOT, by="le, shape"), empty="nothing")
POOLS = (RUNNING, WAITING, KV_USAGE, SENT, PREEMPTED, POOL_TTFT, POOL_TPOT)

# vLLM observes lengths when a request has finished.
INPUT_SUM = Query(name="input_sum", promql=_rate(f"{_INPUT}_sum"))
INPUT_BUCKETS = Query(name="input_buckets", promql=_rate(f"{_INPUT}_bucket", by="le"))
OUTPUT_SUM = Query(name="output_sum", promql=_rate(f"{_OUTPUT}_sum"))
OUTPUT_BUCKETS = Query(name="output_buckets", promql=_rate(f"{_OUTPUT}_bucket", by="le"))
COMPUTED = Query(name="computed", promql=_rate("archipelago_replica_prompt_tokens_total"), empty="nothing")
HITS = Query(name="hits", promql=_rate("archipelago_replica_prefix_hit_tokens_total"), empty="nothing")
LENGTHS = (INPUT_SUM, INPUT_BUCKETS, OUTPUT_SUM, OUTPUT_BUCKETS, COMPUTED, HITS)

# Over time. Tokens of finished requests, so that they and the requests they are of are counted together: vLLM's
# counters of tokens rise as prompts are read, those of a moved request again.
ANSWERED = Query(name="answered", promql=_rate(f"{_INPUT}_count"))
PAST = (ARRIVALS, ANSWERED, INPUT_SUM, OUTPUT_SUM)

TICK = (*HEALTH, *ANSWERS, *POOLS, *LENGTHS)
ALL = (*TICK, ANSWERED)
