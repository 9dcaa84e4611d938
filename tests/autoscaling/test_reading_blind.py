"""Why a reading sees nothing: every fault by its name, from tables of answers; and whatever else may be exported."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_answers import TOKENS_BOUNDS, Answers, Value, le
from reading_builders import BUSY, FLEET, IDLE, INF, NAN, NOW_S, REPLICAS, answers, reading, seen

from autoscaling.observation import Blind
from autoscaling.observing.queries import Failure, FailureKind
from placement import Lengths

GONE: dict[str, Value] = dict.fromkeys(BUSY)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (GONE, "missing", 'Prometheus has no archipelago_arrivals_total{model="acme/m"}'),
        (GONE | {"silent_ingresses": 1.0}, "stale", "cannot scrape the ingress of acme/m (1 with up = 0)"),
        ({"newest": None}, "stale", "was scraped within 60 s, but not the last time"),
        ({"newest": NOW_S - 46}, "stale", "46 s old, more than 45 s"),
        ({"ahead": NOW_S + 120}, "contradiction", "samples of 120 s ahead"),
        ({"samples": 2.0}, "stale", "have 2 samples, 4 are expected"),
        ({"silent_ingresses": 1.0}, "stale", "cannot scrape 1 of 3 ingresses"),
        ({"ttft_buckets": None}, "missing", "vllm:time_to_first_token_seconds_bucket"),
        ({"input_sum": None}, "missing", "vllm:request_prompt_tokens_sum"),
        ({"arrivals": None}, "missing", "only one sample"),
        ({"arrivals": NAN}, "not-a-number", "arrivals (archipelago_arrivals_total of acme/m) is nan"),
        ({"tpot_buckets": {0.1: NAN, INF: 4.0}}, "not-a-number", "tpot_buckets"),
        ({"hits": INF}, "not-a-number", "hits"),
        ({"pool_ttft": {"tp2": INF}}, "not-a-number", "pool_ttft"),
        ({"refused": 5.0}, "contradiction", "5 requests/s were refused, but only 4 arrived"),
        ({"running": {("a", "big"): 1.0}, "waiting": {("a", "big"): 1.0}, "kv_usage": {("a", "big"): 1.0}},
         "contradiction", "'big' is not a shape"),
        ({"running": None}, "missing", "3 x tp2 + 1 x tp4 of the 4 replicas"),
        ({"kv_usage": {("a", "tp2"): 0.5, ("d", "tp4"): 0.5}}, "missing", "2 x tp2 of the 4 replicas"),
    ],
)  # fmt: skip
def test_each_fault_has_its_name(changes: dict[str, Value], kind: str, words: str) -> None:
    found = reading(answers(**changes))
    assert isinstance(found, Blind)
    assert (found.kind, found.at_s) == (kind, NOW_S)
    assert words in found.why


@pytest.mark.parametrize(
    "changes",
    [
        {"newest": NOW_S - 45},
        {"newest": NOW_S + 1},  # scraped while we asked
        {"ahead": NOW_S + 2},
        {"samples": 3.0},
        {"silent_ingresses": 1.0, "ingresses": 3.0},
        {"refused": 4.0},
        {"hits": None, "computed": None},
    ],
)
def test_what_is_tolerated(changes: dict[str, Value]) -> None:
    seen(answers(**changes))


def test_requests_that_run_where_nobody_knows_a_replica_are_a_contradiction() -> None:
    none = replace(FLEET, desired={}, serving={})
    found = reading(answers(), fleet=none)
    assert isinstance(found, Blind)
    assert found.kind == "contradiction"
    assert "14 requests run on a, b, c, d" in found.why
    seen(answers(), fleet=replace(none, changing=True))  # the last ones drain


@pytest.mark.parametrize(
    ("failure", "kind"),
    [("unreachable", "unreachable"), ("slow", "slow"), ("refused", "unreachable"),
     ("not-prometheus", "unreachable"), ("partial", "missing")],
)  # fmt: skip
@pytest.mark.parametrize("answered", range(6))
def test_a_failure_of_any_question_blinds(failure: FailureKind, kind: str, answered: int) -> None:
    """Of an idle fleet: the moment, three looks back for lengths, history, dispersion."""
    tables = [*[Answers(values=IDLE)] * answered, Answers(failure=Failure(kind=failure, why="it was so."))]
    found = reading(lambda question: tables.pop(0)(question))
    assert found == Blind(at_s=NOW_S, kind=kind, why="Prometheus: it was so.")  # type: ignore[arg-type]


NUMBERS = st.one_of(st.floats(0, 1e6), st.sampled_from([NAN, INF, 0.0]))
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "arrivals": st.none() | NUMBERS,
        "refused": st.none() | NUMBERS,
        "failed": st.none() | NUMBERS,
        "samples": st.none() | st.floats(0, 9),
        "newest": st.none() | st.floats(NOW_S - 100, NOW_S + 100),
        "running": st.none() | st.dictionaries(st.sampled_from(REPLICAS), NUMBERS),
        "waiting": st.none() | st.dictionaries(st.sampled_from(REPLICAS), NUMBERS),
        "kv_usage": st.none() | st.dictionaries(st.sampled_from(REPLICAS), NUMBERS),
        "ttft_buckets": st.none() | st.dictionaries(st.sampled_from([0.5, 1.0, 2.0, INF]), NUMBERS),
        "input_buckets": st.none() | st.dictionaries(st.sampled_from([1.0, 100.0, 500.0, INF]), NUMBERS),
        "input_sum": st.none() | NUMBERS,
        "output_buckets": st.none() | st.dictionaries(st.sampled_from([1.0, 100.0, 500.0, INF]), NUMBERS),
        "hits": st.none() | NUMBERS,
        "computed": st.none() | NUMBERS,
        "sent": st.none() | st.dictionaries(st.sampled_from(["tp2", "tp4", "tp8"]), NUMBERS),
    },
)


@example(changes={"input_buckets": {1.0: 5e-324}})
@given(changes=PARTS)
def test_whatever_is_exported_gives_finite_numbers_or_a_reason(changes: dict[str, Value]) -> None:
    found = reading(answers(**changes))
    if isinstance(found, Blind):
        assert found.why
        return
    demand = found.demand
    numbers = [demand.requests_per_s, demand.prefill_tokens_per_s, demand.decode_tokens_per_s]
    numbers += [value for pool in found.pools for value in (pool.running, pool.waiting, pool.kv_usage)]
    assert all(math.isfinite(value) and value >= 0 for value in numbers)
    assert 0 <= demand.prefix_hit_rate <= 1
    assert found.attainment is None or 0 <= found.attainment <= 1


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_lengths_are_the_mean_of_what_finished(lengths: list[int]) -> None:
    changes: dict[str, Value] = {
        "input_sum": float(sum(lengths)),
        "input_buckets": le(*map(float, lengths), bounds=TOKENS_BOUNDS),
    }
    found: Lengths = seen(answers(**changes)).demand.input_tokens
    assert found.mean_tokens == pytest.approx(sum(lengths) / len(lengths))
