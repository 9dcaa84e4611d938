"""Figures from records: what each formula gives, and that every arrival counts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_builders import columns, document, record, refused, served

from loadtests.measures import (
    by_class,
    by_input_quartile,
    by_replica,
    by_shape,
    distribution,
    figures,
    invalid_reasons,
    outcome_counts,
    percentile,
)
from loadtests.records import OUTCOMES, Record
from loadtests.slo import Limits, Slo, slo_of
from loadtests.windows import by_minute, over_time

NO_SLO = slo_of({})


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.99, 3.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        (list(range(1, 101)), 0.99, 99.0),
        (list(range(1, 101)), 0.07, 7.0),  # 0.07 * 100 is more than 7 in floating point
        (list(range(1, 102)), 0.99, 100.0),
        ([5.0, 1.0, 3.0], 1.0, 5.0),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(np.array(values, dtype=float), share) == expected


@given(st.lists(st.floats(0, 1e4), min_size=1), st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0]), st.randoms())
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], share: float, rng) -> None:  # type: ignore[no-untyped-def]
    found = percentile(np.array(values), share)
    enough = [value for value in values if sum(other <= value for other in values) >= share * len(values) - 1e-9]
    assert found == min(enough)
    rng.shuffle(values)
    assert percentile(np.array(values), share) == found


def test_the_times_of_one_request() -> None:
    one = columns(record(10.0, sent_s=10.03, first_s=10.25, last_s=10.75, ended_s=10.76, output_tokens=6, events=3))
    assert one.lag_s[0] == pytest.approx(0.03)
    assert one.ttft_s[0] == pytest.approx(0.25)
    assert one.tpot_s[0] == pytest.approx(0.1)  # 0.5 s over 5 gaps between tokens, however many events there were
    assert one.event_gap_s[0] == pytest.approx(0.25)  # 0.5 s over 2 gaps between events
    assert one.e2e_s[0] == pytest.approx(0.75)


def test_a_closed_loop_counts_from_sending() -> None:
    late = record(10.0, sent_s=13.0, first_s=13.25, last_s=13.75, ended_s=13.75)
    assert columns(late, open_loop=False).ttft_s[0] == pytest.approx(0.25)
    assert columns(late).ttft_s[0] == pytest.approx(3.25)


@pytest.mark.parametrize(
    ("changed", "is_good"),
    [
        ({}, True),
        ({"first_s": 1.0, "last_s": 1.2}, True),  # exactly at the limit
        ({"first_s": 1.001, "last_s": 1.2}, False),
        ({"last_s": 0.7, "output_tokens": 11}, True),
        ({"last_s": 0.71, "output_tokens": 11}, False),
        ({"last_s": 0.2, "output_tokens": 1}, True),  # one token has no time per further token
        ({"first_s": None, "last_s": None, "output_tokens": 0}, False),
        *(({"outcome": outcome}, False) for outcome in OUTCOMES if outcome != "ok"),
    ],
)
def test_good_is_a_whole_answer_within_both_limits(changed: dict[str, object], is_good: bool) -> None:
    """The limits are 1 s and 50 ms."""
    assert columns(record(0.0, **changed)).good.tolist() == [is_good]


def test_a_class_has_its_own_limits_and_the_general_ones_beside() -> None:
    slo = {"ttft_s": 0.1, "tpot_s": 0.01, "classes": {"code": {"ttft_s": 1.0, "tpot_s": 0.1}, "chat": {"tpot_s": 0.1}}}
    rows = [
        record(float(index), id=index, class_name=name) for index, name in enumerate(("code", "chat", "other", None))
    ]
    assert columns(*rows, slo=slo).good.tolist() == [True, False, False, False]
    assert slo_of({"slo": slo}).tightest_ttft_s == 0.1


def test_every_arrival_is_in_the_denominator() -> None:
    rows = [record(float(index), id=index) for index in range(6)]
    rows += [
        refused(6.0),
        record(7.0, outcome="cut", output_tokens=None),
        record(8.0, outcome="unfinished", output_tokens=None, ended_s=20.0),
        record(9.0, outcome="gap-or-repeat"),
    ]
    requests = columns(*rows)
    whole = figures(requests, "all")
    assert (whole.arrivals, whole.ok, whole.good, whole.attainment) == (10, 6, 6, 0.6)
    assert (whole.lost_streams, whole.damaged_streams) == (2, 1)
    assert whole.ttft_s is not None
    assert whole.ttft_s.count == 9
    assert whole.tpot_s is not None
    assert whole.tpot_s.count == 6
    assert whole.e2e_s is not None
    assert whole.e2e_s.count == 6
    assert requests.span_s == 20.0
    assert whole.requests_per_s == whole.good_requests_per_s == pytest.approx(0.3)
    assert whole.output_tokens_per_s == pytest.approx(7 * 11 / 20)
    assert whole.good_output_tokens_per_s == pytest.approx(6 * 11 / 20)
    assert next(iter(outcome_counts(requests).items())) == ("ok", 6)
    assert sum(outcome_counts(requests).values()) == 10


def test_a_server_that_refuses_all_has_no_latency_and_attains_nothing() -> None:
    whole = figures(columns(refused(0.0), refused(1.0)), "all")
    assert (whole.attainment, whole.ttft_s, whole.tpot_s, whole.lost_streams) == (0.0, None, None, 0)


def test_quartiles_are_of_the_lengths_that_were_asked_for() -> None:
    rows = [record(float(length), id=length, asked_input_tokens=length) for length in range(1, 9)]
    rows[7] = refused(8.0, id=8, asked_input_tokens=8)
    groups = by_input_quartile(columns(*rows))
    assert [(group.name, group.arrivals) for group in groups] == [
        ("1-2 tokens", 2),
        ("3-4 tokens", 2),
        ("5-6 tokens", 2),
        ("7-8 tokens", 2),
    ]
    assert groups[3].attainment == 0.5
    same = [record(float(index), id=index, asked_input_tokens=100) for index in range(5)]
    assert [(group.name, group.arrivals) for group in by_input_quartile(columns(*same))] == [("100 tokens", 5)]


def test_groups_by_class_replica_and_shape() -> None:
    names = ("tiny-tp2pp2-0", "tiny-tp2pp2-1", "tiny-tp4-0", None, "http4")
    rows = [record(float(index), id=index, replica=name, class_name="chat") for index, name in enumerate(names)]
    requests = columns(*rows)
    assert [group.name for group in by_replica(requests)] == sorted([*(name for name in names if name), "not told"])
    assert [(group.name, group.arrivals) for group in by_shape(requests)] == [
        ("not told", 2),
        ("tp2pp2", 2),
        ("tp4", 1),
    ]
    assert [(group.name, group.arrivals) for group in by_class(requests)] == [("chat", 5)]
    assert by_class(columns(record())) == []


@pytest.mark.parametrize(
    ("lag_s", "open_loop", "ttft_s", "is_valid"),
    [
        (0.021, True, None, True),
        (0.019, True, 0.1, False),  # 5 % of 100 ms is 5 ms
        (0.019, False, 0.1, True),  # a closed loop is never late
        (0.004, True, 0.1, True),
        (0.021, True, 0.1, True),  # the run has said so itself
    ],
)
def test_a_client_that_does_not_keep_up_makes_the_run_invalid(
    lag_s: float, open_loop: bool, ttft_s: float | None, is_valid: bool
) -> None:
    rows = [record(float(index), id=index, sent_s=index + lag_s) for index in range(50)]
    slo = Slo(limits=Limits(ttft_s=ttft_s), classes={})
    reasons = invalid_reasons(columns(*rows, open_loop=open_loop), slo, [], open_loop=open_loop, told_lag_s=0.020)
    assert (reasons == []) is is_valid
    assert all("ms" in reason for reason in reasons)


def test_requests_that_were_never_sent_make_the_run_invalid() -> None:
    requests = columns(record(), refused(1.0, sent_s=None, outcome="unfinished"))
    reasons = invalid_reasons(requests, NO_SLO, [], open_loop=True, told_lag_s=0.020)
    assert reasons == ["1 of 2 requests were never sent"]
    reasons = invalid_reasons(columns(), NO_SLO, ["said"], open_loop=True, told_lag_s=0.020)
    assert reasons == ["said", "no request was scheduled"]


def test_an_open_loop_sees_the_misses_that_a_closed_loop_hides() -> None:
    """A server that answers at once stalls from 20 s to 25 s of 45 s; both loads are 20 requests a second."""

    def answered(id: int, sent_s: float) -> Record:
        first_s = 25.0 if 20 <= sent_s < 25 else sent_s
        return record(sent_s, id=id, sent_s=sent_s, first_s=first_s, last_s=first_s, ended_s=first_s, output_tokens=1)

    opened = [answered(index, index / 20) for index in range(900)]
    closed: list[Record] = []
    for client in range(20):
        free_s = client / 20
        while free_s < 45:
            closed.append(answered(len(closed), free_s))
            free_s = max(free_s + 1, closed[-1].ended_s)  # one a second, but never before the last answer
    slo = {"ttft_s": 1.0}
    open_figures = figures(columns(*opened, slo=slo), "open")
    closed_figures = figures(columns(*closed, slo=slo, open_loop=False), "closed")
    assert (open_figures.arrivals, closed_figures.arrivals) == (900, 820)
    assert 1 - open_figures.attainment == pytest.approx(0.089, abs=0.001)
    assert 1 - closed_figures.attainment == pytest.approx(0.024, abs=0.001)


@pytest.mark.slow
def test_where_the_definitions_agree_vllm_has_the_same_figures() -> None:
    """`vllm bench serve` counts from sending; its percentiles lie between two values, ours are one of them."""
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
    from vllm.benchmarks.serve import calculate_metrics

    rows = served(3, length_s=300, slower=1.5)
    requests = columns(*rows, open_loop=False)
    answers = [
        RequestFuncOutput(
            success=True,
            latency=(row.last_s or 0) - (row.sent_s or 0),
            ttft=(row.first_s or 0) - (row.sent_s or 0),
            output_tokens=row.output_tokens or 0,
            prompt_len=row.input_tokens or 0,
            itl=[0.0],
            start_time=row.sent_s or 0,
        )
        for row in rows
    ]
    goodput = {"ttft": 1000.0, "tpot": 50.0}
    theirs, _ = calculate_metrics([], answers, requests.span_s, None, [50.0, 99.0], goodput)
    ours = figures(requests, "all")
    assert ours.ttft_s is not None
    assert ours.tpot_s is not None
    assert ours.e2e_s is not None
    assert ours.ttft_s.mean * 1000 == pytest.approx(theirs.mean_ttft_ms)
    assert ours.tpot_s.mean * 1000 == pytest.approx(theirs.mean_tpot_ms)
    assert ours.e2e_s.mean * 1000 == pytest.approx(theirs.mean_e2el_ms)
    assert ours.requests_per_s == pytest.approx(theirs.request_throughput)
    assert ours.output_tokens_per_s == pytest.approx(theirs.output_throughput)
    assert ours.good_requests_per_s == pytest.approx(theirs.request_goodput)
    for found, told in ((ours.ttft_s, theirs.percentiles_ttft_ms), (ours.tpot_s, theirs.percentiles_tpot_ms)):
        assert [found.p50 * 1000, found.p99 * 1000] == pytest.approx([float(value) for _, value in told], rel=0.01)


RECORDS = st.lists(
    st.builds(
        lambda at_s, ttft_s, tokens, outcome, length: record(
            at_s,
            first_s=at_s + ttft_s,
            last_s=at_s + 2 * ttft_s,
            ended_s=at_s + 2 * ttft_s,
            output_tokens=tokens,
            outcome=outcome,
            asked_input_tokens=length,
        ),
        st.floats(0, 300),
        st.floats(0.001, 5),
        st.integers(0, 50),
        st.sampled_from(OUTCOMES),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=30,
)


@given(RECORDS, st.randoms())
def test_figures_do_not_depend_on_the_order_of_the_records(rows: list[Record], rng) -> None:  # type: ignore[no-untyped-def]
    numbered = [replace(row, id=index) for index, row in enumerate(rows)]
    before = document(numbered)
    rng.shuffle(numbered)
    assert document(numbered) == before


@given(RECORDS)
def test_figures_hold_together(rows: list[Record]) -> None:
    requests = columns(*(replace(row, id=index) for index, row in enumerate(rows)))
    whole, time = figures(requests, "all"), over_time(requests)
    assert whole.good <= whole.ok <= whole.arrivals == len(rows)
    quartiles = by_input_quartile(requests)
    assert sum(group.arrivals for group in quartiles) == len(rows)
    assert sum(group.good for group in quartiles) == sum(minute.good for minute in by_minute(requests)) == whole.good
    if whole.ttft_s is not None:
        assert requests.ttft_s.min() <= whole.ttft_s.p50 <= whole.ttft_s.p99 <= whole.ttft_s.max
        assert max(value for value in time.ttft_p99_s if value is not None) == pytest.approx(whole.ttft_s.max)
    assert len(time.from_s) <= 151


def test_a_distribution_leaves_out_what_was_not_measured() -> None:
    found = distribution(np.array([math.nan, 1.0, 3.0]))
    assert found is not None
    assert (found.count, found.mean, found.p50, found.max) == (2, 2.0, 1.0, 3.0)
    assert distribution(np.array([math.nan])) is None
