"""What a reading sees, from tables of answers."""

from dataclasses import replace

import pytest
from prometheus_answers import Answers, Value
from reading_builders import BUSY, FLEET, GAUGES, IDLE, INF, NAN, NOW_S, REPLICAS, SLO, TP2, TP4, answers, seen

from autoscaling.observing import queries
from autoscaling.observing.queries import Failure, Moment
from autoscaling.observing.reading import UNKNOWN
from placement import Slo


def test_a_busy_fleet() -> None:
    found = seen(answers())
    demand = found.demand
    assert (demand.requests_per_s, demand.input_tokens.mean_tokens, demand.output_tokens.mean_tokens) == (4, 300, 100)
    assert demand.prefix_hit_rate == 0.25
    assert demand.prefill_tokens_per_s == 900
    assert demand.dispersion == 0  # the table's arrivals are like a clock
    assert (found.ttft_s, found.tpot_s, found.attainment) == (0.4, 0.03, 1.0)
    assert (found.running, found.waiting) == (14, 1)
    wide = found.pools[1]
    assert (wide.shape, wide.replicas, wide.kv_usage, wide.requests_per_s) == (TP4, 1, 0.8, 1.0)
    assert (wide.ttft_s, wide.tpot_s, wide.preemptions_per_s) == (0.2, 0.01, 0.5)
    narrow = found.pools[0]
    assert narrow.kv_usage == pytest.approx(0.2)
    assert narrow.preemptions_per_s == 0
    assert [(one.replica, one.running, one.waiting, one.kv_usage) for one in narrow.each] == [
        ("a", 2, 0, 0.1),
        ("b", 4, 1, 0.3),
        ("c", 3, 0, 0.2),
    ]
    assert found.queue_s == 0.5


def test_an_idle_fleet_has_no_demand_and_is_not_missing() -> None:
    """dynamo#6985: a planner that took no traffic for no metrics stayed at its peak for ever."""
    found = seen(Answers(values=IDLE))
    assert found.demand.requests_per_s == 0
    assert found.demand.input_tokens == UNKNOWN.input_tokens
    assert (found.ttft_s, found.tpot_s, found.queue_s, found.attainment) == (None, None, None, None)
    assert [(pool.running, pool.ttft_s, pool.requests_per_s) for pool in found.pools] == [(0, None, 0)] * 2


def test_an_idle_fleet_is_as_long_winded_as_it_last_was() -> None:
    before = seen(answers())
    found = seen(Answers(values=IDLE), last=before)
    assert found.demand == replace(before.demand, requests_per_s=0.0, dispersion=1.0)


def test_a_fleet_without_replicas_is_seen_with_its_demand() -> None:
    """Scaled to zero: somebody must notice that requests come."""
    none = replace(FLEET, desired={}, serving={})
    gone = dict.fromkeys(("running", "waiting", "kv_usage", "sent", "preempted", "pool_ttft", "pool_tpot"))
    found = seen(answers(**gone, refused=4.0, ttft_buckets={INF: 0.0}, tpot_buckets={INF: 0.0}), fleet=none)
    assert (found.demand.requests_per_s, found.pools, found.attainment) == (4, (), 0)


def test_all_that_is_seen_is_of_one_moment() -> None:
    ask = answers()
    seen(ask)
    moments = [question for question in ask.asked if isinstance(question, Moment)]
    assert [question.at_s for question in moments] == [NOW_S]


def test_the_percentile_is_the_slos() -> None:
    ask = answers()
    seen(ask, slo=replace(SLO, percentile=0.99))
    assert "histogram_quantile(0.99," in ask.asked[0].promql


@pytest.mark.parametrize(
    ("in_window", "in_ten_minutes", "mean"),
    [
        (0.6, 9.0, 300.0),  # 36 finished in a minute: enough
        (0.4, 0.06, 1000.0),  # 24 in a minute, 36 in ten
        (0.0, 0.0, 2000.0),  # none for ten minutes
    ],
)
def test_lengths_are_of_the_shortest_time_with_enough_requests(
    in_window: float, in_ten_minutes: float, mean: float
) -> None:
    def lengths(rate: float, tokens: float) -> dict[str, Value]:
        same = {500.0: rate * (tokens <= 500), INF: rate}
        return {"input_sum": rate * tokens, "input_buckets": same, "output_sum": rate, "output_buckets": same}

    ask = answers(**lengths(in_window, 300.0))
    longer = answers(**lengths(in_ten_minutes, 1000.0))
    longest = answers(**lengths(0.05, 2000.0))

    def at(question: Moment | queries.Span) -> queries.Answer | Failure:
        chosen = {"[600000ms]": longer, "[3600000ms]": longest}
        return next((table for window, table in chosen.items() if window in question.promql), ask)(question)

    assert seen(at).demand.input_tokens.mean_tokens == pytest.approx(mean)


@pytest.mark.parametrize(
    ("changes", "slo", "attainment"),
    [
        ({}, SLO, 1.0),
        ({}, Slo(), 1.0),
        ({"ttft_buckets": {0.5: 1.0, 1.0: 3.0, 2.0: 4.0, INF: 4.0}}, SLO, 0.75),
        ({"ttft_buckets": {0.5: 1.0, 1.0: 3.0, 2.0: 4.0, INF: 4.0}}, replace(SLO, ttft_s=0.75), 0.5),  # interpolated
        ({"tpot_buckets": {0.05: 2.0, 0.1: 4.0, INF: 4.0}}, SLO, 0.5),
        ({"tpot_buckets": {0.05: 2.0, 0.1: 4.0, INF: 4.0}}, replace(SLO, tpot_s=None), 1.0),
        ({"arrivals": 5.0, "refused": 1.0}, SLO, 0.8),
        ({"failed": 1.0}, SLO, 0.75),
        # 8 arrive, 4 are answered: 59 of 60 s ago and before they should have been
        ({"arrivals": 8.0}, SLO, 4 / (8 * 59 / 60)),
        ({"arrivals": 4.05}, SLO, 1.0),  # within what may still be on its way in time
        ({"ttft_buckets": {1.0: 0.0, INF: 0.0}}, SLO, 0.0),  # they come, and nobody answers
        ({"ttft_buckets": {1.0: 0.0, INF: 0.0}}, replace(SLO, ttft_s=90.0), None),  # not yet due
    ],
)
def test_attainment_is_over_all_that_arrived(changes: dict[str, Value], slo: Slo, attainment: float | None) -> None:
    found = seen(answers(**changes), slo=slo).attainment
    assert found == (None if attainment is None else pytest.approx(attainment))


def without(replica: tuple[str, str]) -> dict[str, Value]:
    gauges: list[dict[tuple[str, str], float]] = [BUSY[name] for name in GAUGES]  # type: ignore[misc]
    kept = [{key: value for key, value in gauge.items() if key != replica} for gauge in gauges]
    return dict(zip(GAUGES, kept, strict=True))


def test_one_silent_replica_of_four_is_taken_for_one_like_the_others_of_its_pool() -> None:
    """aibrix#1032: one pod without metrics stopped all scaling."""
    narrow = seen(answers(**without(("c", "tp2")))).pools[0]
    assert (narrow.replicas, narrow.running, narrow.waiting) == (3, 9.0, 1.5)
    assert narrow.kv_usage == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_a_replica_that_says_no_number_is_silent(wrong: float) -> None:
    odd = dict(zip(REPLICAS, (2.0, 4.0, wrong, 5.0), strict=True))
    assert seen(answers(running=odd)).pools[0].running == 9.0


def test_a_pool_of_which_nothing_is_known_is_left_out_and_not_called_idle() -> None:
    assert [pool.shape for pool in seen(answers(**without(("d", "tp4")))).pools] == [TP2]


def test_replicas_that_still_drain_are_not_of_the_pools_that_serve() -> None:
    moved = replace(FLEET, desired={TP2: 3}, serving={TP2: 3}, changing=True)
    assert [pool.shape for pool in seen(answers(), fleet=moved).pools] == [TP2]
