"""Two runs side by side: chance is told from a difference, and what cannot be compared is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_builders import HEADER, SLO, columns, document, record, refused, served
from rich.console import Console

from loadtests.bootstrap import blocked, blocks_of, draws, interval, rank
from loadtests.compare import Comparison, NotComparableError, compare, comparison_table
from loadtests.measures import percentile

LATENCIES = ("TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "end to end p50")


def result(run_seed: int, *, slower: float = 1.0, schedule_seed: int = 0, **header: Any) -> dict[str, Any]:
    return document(served(run_seed, schedule_seed=schedule_seed, slower=slower, rate_per_s=1.0), **header)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {each.metric: each.verdict for each in comparison.differences}


def compared(a: dict[str, Any], b: dict[str, Any], *, seed: int = 0, anyway: bool = False) -> Comparison:
    return compare(a, b, np.random.default_rng(seed), anyway=anyway)


@pytest.mark.parametrize("same_schedule", [True, False])
def test_between_equal_servers_no_difference_is_seen(same_schedule: bool) -> None:
    """95 % intervals: of 12 pairs of runs and 5 figures, at least 90 % must hold the truth, which is none."""
    a = result(1000)
    seen = [
        compared(result(1001 + 2 * seed), result(1002 + 2 * seed, schedule_seed=0 if same_schedule else seed + 1))
        for seed in range(12)
    ]
    quiet = [verdicts(each)[metric] == "no difference seen" for each in seen for metric in LATENCIES]
    assert all(each.paired is same_schedule for each in seen)
    assert np.mean(quiet) >= 0.9
    assert set(verdicts(compared(a, a)).values()) == {"no difference seen"}


@pytest.mark.filterwarnings("error")  # numpy's would stand above the table
def test_a_run_with_gaps_between_arrivals_is_compared_in_silence() -> None:
    few = document(served(1, rate_per_s=0.15, length_s=14.0))
    assert len(compared(few, few).differences) == len(compared(result(1), result(1)).differences)


def test_a_server_that_is_a_tenth_slower_is_seen() -> None:
    seen = [verdicts(compared(result(2 * seed), result(2 * seed + 1, slower=1.1))) for seed in range(8)]
    for metric in ("TTFT p50", "TPOT p50"):
        assert sum(each[metric] == "worse" for each in seen) >= 7
    back = verdicts(compared(result(1, slower=1.1), result(0)))
    assert (back["TTFT p50"], back["TPOT p50"]) == ("better", "better")


def test_the_figures_are_those_of_the_reports() -> None:
    a, b = result(1), result(2, slower=1.3)
    found = {each.metric: each for each in compared(a, b).differences}
    assert found["attainment"].a == pytest.approx(a["all"]["attainment"])
    assert found["TTFT p99"].a == a["all"]["ttft_s"]["p99"]
    assert found["TPOT p95"].b == b["all"]["tpot_s"]["p95"]
    ttft = found["TTFT p50"]
    assert None not in (ttft.a, ttft.b, ttft.difference, ttft.low, ttft.high)
    assert ttft.difference == pytest.approx((ttft.b or 0) - (ttft.a or 0))
    assert (ttft.low or 0) < (ttft.difference or 0) < (ttft.high or 0)


def test_refused_requests_are_a_difference_though_latencies_are_equal() -> None:
    rows = served(1, rate_per_s=2.0)
    some = [
        refused(
            row.scheduled_s,
            id=row.id,
            class_name=row.class_name,
            asked_input_tokens=row.asked_input_tokens,
            asked_output_tokens=row.asked_output_tokens,
        )
        if row.id % 20 == 0
        else row
        for row in rows
    ]
    comparison = compared(document(rows), document(some))
    assert comparison.paired
    found = verdicts(comparison)
    assert (found["attainment"], found["answered"], found["good requests"]) == ("worse", "worse", "worse")
    assert found["TTFT p50"] == "no difference seen"


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ({"invalid": ["worker 1 died"]}, {}, "A is not valid: worker 1 died"),
        ({}, {"invalid": ["worker 1 died"]}, "B is not valid: worker 1 died"),
        ({}, {"slo": {**SLO, "ttft_s": 2.0}}, "the SLO differs"),
        ({}, {"loop": "closed"}, "A is open loop, B is closed loop"),
        ({}, {"scenario": {**HEADER["scenario"], "arrivals": {"kind": "poisson", "rate": 9}}}, "differs in arrivals"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_with_the_reason(a: Any, b: Any, reason: str) -> None:
    first, second = result(1, **a), result(2, schedule_seed=1, **b)
    with pytest.raises(NotComparableError, match=reason):
        compared(first, second)
    assert compared(first, second, anyway=True).differences


def test_another_seed_of_the_same_load_is_compared_unpaired() -> None:
    comparison = compared(result(1), result(2, schedule_seed=1, seed=8))
    assert not comparison.paired
    assert comparison.blocks == 20


@pytest.mark.parametrize(
    ("changed", "paired"),
    [
        ({"first_s": 0.9}, True),
        ({"input_tokens": 90}, True),  # what the server counts is not what was asked
        ({"scheduled_s": 0.1}, False),
        ({"asked_input_tokens": 90}, False),
        ({"asked_output_tokens": 90}, False),
        ({"class_name": "chat"}, False),
    ],
)
def test_runs_are_paired_when_the_same_was_asked_at_the_same_time(changed: dict[str, Any], paired: bool) -> None:
    rest = [record(float(index), id=index) for index in range(1, 100)]
    assert compared(document([record(), *rest]), document([record(**changed), *rest])).paired is paired


def test_runs_without_requests_or_answers() -> None:
    with pytest.raises(NotComparableError, match="a run without requests"):
        compared(document([]), document([]), anyway=True)
    none = document([refused(float(index), id=index) for index in range(100)])
    comparison = compared(none, none)
    assert verdicts(comparison)["TTFT p99"] == "too few values"
    assert verdicts(comparison)["attainment"] == "no difference seen"
    console = Console(width=140, record=True, quiet=True)
    console.print(comparison_table(comparison))


def test_a_comparison_is_repeatable() -> None:
    a, b = result(1), result(2)
    assert compared(a, b, seed=3) == compared(a, b, seed=3)
    assert compared(a, b, seed=3) != compared(a, b, seed=4)


@given(
    st.lists(st.tuples(st.floats(0, 599), st.floats(0.001, 9)), min_size=1, max_size=40),
    st.sampled_from([0.5, 0.95, 0.99]),
    st.integers(0, 2**32 - 1),
)
def test_a_resampled_percentile_is_that_of_the_blocks_drawn(
    pairs: list[tuple[float, float]], part: float, seed: int
) -> None:
    rows = [record(at_s, id=index, first_s=at_s + ttft_s) for index, (at_s, ttft_s) in enumerate(pairs)]
    run = blocked(columns(*rows), 600.0, 10)
    counts = draws(np.random.default_rng(seed), 10, 5)
    found = rank(lambda requests: requests.ttft_s, part)(run, counts)
    for value, count in zip(found, counts, strict=True):
        repeated = np.repeat(run.requests.ttft_s, count[run.block])
        assert value == percentile(repeated, part) if len(repeated) else np.isnan(value)


def test_blocks_last_a_minute_or_a_tenth_of_a_short_run() -> None:
    assert [blocks_of(length_s) for length_s in (60, 600, 1200, 3600)] == [10, 10, 20, 60]


def test_few_blocks_widen_the_interval() -> None:
    """By Student's t for nine degrees of freedom, 2.262 instead of 1.960, and by the root of 10/9."""
    normal = np.random.default_rng(0).normal(size=200_000)
    found = interval(normal, 10)
    assert found is not None
    assert found.high == pytest.approx(2.262 * (10 / 9) ** 0.5, abs=0.03)
    assert found.low == pytest.approx(-found.high, abs=0.05)
