"""What a replay asks of Prometheus beyond what the autoscaler does, and answers over time as arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoscaling.observation import Array
from autoscaling.observing import queries
from autoscaling.observing.queries import MAX_POINTS, NAME, Ask, Failure, Moment, Query, Series, Span, joined
from autoscaling.whatif.past import PastError

HELD = Query(
    name="held",
    promql="sum by (shape)(max by (shape, phase)(archipelago_fleet_replicas{model=$model}))",
    empty="nothing",
)
DESIRED = Query(
    name="desired",
    promql="max by (shape)(archipelago_fleet_desired_replicas{model=$model})",
    empty="nothing",
)
# A vLLM that is not behind our ingress says nothing of arrivals. Its first tokens come soonest after them.
FOREIGN_ARRIVALS = Query(
    name="arrivals", promql="sum (rate(vllm:time_to_first_token_seconds_count{model_name=$model}[$window]))"
)
FOREIGN_HITS = Query(
    name="hits", promql="sum (rate(vllm:prefix_cache_hits_total{model_name=$model}[$window]))", empty="nothing"
)
FOREIGN_LOOKUPS = Query(
    name="lookups", promql="sum (rate(vllm:prefix_cache_queries_total{model_name=$model}[$window]))", empty="nothing"
)
_NAMES = {
    "archipelago": "group by (model)(last_over_time(archipelago_arrivals_total[{window}]))",
    "vllm": "group by (model_name)(last_over_time(vllm:generation_tokens_total[{window}]))",
}
Key = tuple[str, str]  # name of the query, and its label `le` or `shape`
Rows = Mapping[Key, Array]


def of_any_vllm(ask: Ask) -> Ask:
    """`ask`, but the arrivals are those that a vLLM counts itself."""
    ours, theirs = "archipelago_arrivals_total{model=", "vllm:time_to_first_token_seconds_count{model_name="
    return lambda question: ask(replace(question, promql=question.promql.replace(ours, theirs)))


def models_in(ask: Ask, *, now_s: float, since_s: float) -> list[str]:
    """Names of the models that have series. Raises `PastError`."""
    window = queries.duration(since_s)
    found: set[str] = set()
    for text in _NAMES.values():
        answer = answered(ask(Moment(promql=text.format(window=window), at_s=now_s)))
        found |= {
            label for series in answer for name, label in series.labels.items() if name in ("model", "model_name")
        }
    return sorted(found)


def answered(answer: Sequence[Series] | Failure) -> Sequence[Series]:
    """What Prometheus said. Raises `PastError` where it said nothing."""
    if isinstance(answer, Failure):
        raise PastError(f"--prometheus: {answer.why}")
    return answer


def over_time(
    ask: Ask, wanted: Iterable[Query], *, model: str, start_s: float, count: int, step_s: float, window_s: float
) -> Rows:
    """A row of `count` values for each series: the first is at `start_s + step_s`, the end of the first step.

    NaN where there is nothing. Raises `PastError`.
    """
    text = joined(wanted, model=model, window_s=window_s)
    rows: dict[Key, Array] = {}
    for first in range(0, count, MAX_POINTS):
        last = min(count, first + MAX_POINTS)
        span = Span(promql=text, start_s=start_s + (first + 1) * step_s, end_s=start_s + last * step_s, step_s=step_s)
        for series in answered(ask(span)):
            labels = series.labels
            row = rows.setdefault((labels.get(NAME, ""), _told_apart(labels)), np.full(count, np.nan))
            at_s, values = np.array(series.points).T
            row[np.rint((at_s - start_s) / step_s).astype(int) - 1] = np.where(np.isfinite(values), values, np.nan)
    return rows


def _told_apart(labels: Mapping[str, str]) -> str:
    return labels.get("le") or labels.get("shape") or ""


def named(rows: Rows, query: Query) -> dict[str, Array]:
    """Rows of one query by their label."""
    return {label: row for (name, label), row in rows.items() if name == query.name}


def summed(rows: Rows, query: Query, count: int) -> Array:
    """The one row of a query; nothing known is 0 where an empty answer means that, else NaN."""
    row = rows.get((query.name, ""), np.full(count, np.nan))
    filled: Array = np.nan_to_num(row) if query.empty == "nothing" else row
    return filled
