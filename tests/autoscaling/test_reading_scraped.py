"""Readings from a real Prometheus that scrapes real exporters every second.

Windows are of 8 s. Rates are right within 5 % once the window is full; a busy machine may miss a scrape, so each
test waits until what it expects is seen, up to a deadline.
"""

import time
from collections.abc import Callable
from functools import partial

import pytest
from placement_builders import cluster_of
from prometheus_builders import Scraped, until
from prometheus_traffic import STEADY
from reading_builders import TP2, TP4

from autoscaling.observation import Blind, Fleet, Observation, ReplicaLoad
from autoscaling.observing import queries
from autoscaling.observing.prometheus import Prometheus
from autoscaling.observing.queries import Moment
from autoscaling.observing.reading import read
from placement import Shape, Slo

WINDOW_S = 8.0
SLO = Slo(ttft_s=1.0, tpot_s=0.03, percentile=0.9)


def fleet(**serving: int) -> Fleet:
    pools = {Shape.parse(shape): replicas for shape, replicas in serving.items()}
    return Fleet(version=1, desired=pools, serving=pools, starting={}, changing=False, cluster=cluster_of(8))


def reading(ask: Prometheus, model: str, **serving: int) -> Observation | Blind:
    return read(
        ask,
        model=model,
        slo=SLO,
        fleet=fleet(**serving),
        now_s=time.time(),
        window_s=WINDOW_S,
        scrape_interval_s=1.0,
        history_s=3600.0,
    )


def seen(ask: Prometheus, model: str, holds: Callable[[Observation], bool], what: str, **serving: int) -> Observation:
    last: list[object] = []

    def look() -> Observation | None:
        found = reading(ask, model, **serving)
        last[:] = [found]
        return found if isinstance(found, Observation) and holds(found) else None

    try:
        return until(look, what)  # type: ignore[no-any-return]
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {last}") from error


def is_near(value: float, expected: float) -> bool:
    return abs(value - expected) <= 0.05 * expected


def test_what_was_put_in_comes_out(scraped: Scraped) -> None:
    """40 requests/s of ten kinds in turn, and 10 refused ones, which are demand like the others."""
    with Prometheus(scraped.url) as ask:
        found = seen(ask, STEADY, lambda found: is_near(found.demand.requests_per_s, 50), "50 requests/s", tp2=2, tp4=1)
    demand = found.demand
    assert demand.input_tokens.mean_tokens == pytest.approx(550, rel=0.05)
    assert demand.output_tokens.mean_tokens == pytest.approx(55, rel=0.05)
    assert demand.input_tokens.spread == pytest.approx(0.52, abs=0.1)  # of 100, 200 ... 1000
    assert demand.prefix_hit_rate == pytest.approx(0.25, abs=0.01)
    # One in ten is slow, so the 90th percentile is the upper bound of the bucket of the others.
    assert found.ttft_s is not None
    assert 0.24 < found.ttft_s <= 1.2  # or a little into that of the slow ones
    # Seven in ten did not wait, and the others are in the bucket (0.5, 1].
    assert found.queue_s == pytest.approx(0.5 + 0.5 * 2 / 3, rel=0.05)
    assert found.attainment == pytest.approx(0.9 * 0.9 * 0.8, rel=0.05)
    narrow, wide = found.pools
    assert (narrow.shape, narrow.running, narrow.waiting) == (TP2, 10, 1)
    assert narrow.kv_usage == pytest.approx(0.3)
    assert narrow.each == (
        ReplicaLoad(replica="a", running=4, waiting=1, kv_usage=0.2),
        ReplicaLoad(replica="b", running=6, waiting=0, kv_usage=0.4),
    )
    assert (wide.shape, wide.running, wide.waiting, wide.kv_usage) == (TP4, 2, 0, 0.9)
    assert narrow.requests_per_s == pytest.approx(32, rel=0.05)
    assert wide.requests_per_s == pytest.approx(8, rel=0.05)
    # Of eight requests of tp2 one is slow: its 90th percentile is in the bucket (1, 2]. tp4 has none.
    assert narrow.ttft_s is not None
    assert 1.0 < narrow.ttft_s < 2.0
    assert wide.ttft_s == pytest.approx(0.1 + 0.9 * 0.15, rel=0.05)
    assert wide.tpot_s == pytest.approx(0.01 + 0.9 * 0.01, rel=0.05)


def test_every_series_is_found_by_its_query(scraped: Scraped) -> None:
    may_be_empty = {"ahead", "silent_ingresses", "failed"}
    with Prometheus(scraped.url) as ask:
        seen(ask, STEADY, lambda found: True, "anything", tp2=2, tp4=1)
        for query in queries.ALL:
            text = query.text(model=STEADY, window_s=WINDOW_S, percentile=0.9)
            assert query.name in may_be_empty or ask(Moment(promql=text, at_s=time.time())), query.name


def test_an_idle_model_has_no_demand(scraped: Scraped) -> None:
    with Prometheus(scraped.url) as ask:
        found = seen(ask, "idle", lambda found: True, "an observation", tp2=1)
    assert (found.demand.requests_per_s, found.attainment, found.ttft_s, found.running) == (0.0, None, None, 0.0)


def test_replicas_that_export_nothing_are_named(scraped: Scraped) -> None:
    with Prometheus(scraped.url) as ask:
        seen(ask, STEADY, lambda found: True, "anything", tp2=2, tp4=1)
        found = reading(ask, STEADY, tp2=4, tp4=1)
    assert isinstance(found, Blind)
    assert (found.kind, "2 x tp2 of the 5 replicas" in found.why) == ("missing", True)


def test_an_unknown_model_is_missing(scraped: Scraped) -> None:
    with Prometheus(scraped.url) as ask:
        found = reading(ask, "nobody", tp2=1)
    assert isinstance(found, Blind)
    assert found.kind == "missing"


def test_a_clock_that_is_off_is_noticed_either_way(scraped: Scraped) -> None:
    with Prometheus(scraped.url) as ask:
        seen(ask, STEADY, lambda found: True, "anything", tp2=2, tp4=1)
        found = [
            read(ask, model=STEADY, slo=SLO, fleet=fleet(tp2=2, tp4=1), now_s=time.time() + off_s, window_s=WINDOW_S,
                 scrape_interval_s=1.0)
            for off_s in (-6.0, 60.0)
        ]  # fmt: skip
    assert [(blind.kind, blind.why.split()[0]) for blind in found if isinstance(blind, Blind)] == [
        ("contradiction", "Prometheus"),
        ("stale", "The"),
    ]


def test_an_ingress_that_starts_again_loses_no_demand(scraped: Scraped) -> None:
    """Its counters begin at 0: what was counted since the last scrape before is lost, and nothing is negative."""
    with Prometheus(scraped.url) as ask:
        seen(ask, "restarted", lambda found: is_near(found.demand.requests_per_s, 40), "40 requests/s", tp2=1)
        scraped.traffic["restarted"].restart()
        end_s = time.monotonic() + WINDOW_S / 2
        rates = []
        while time.monotonic() < end_s:
            found = reading(ask, "restarted", tp2=1)
            rates += [found.demand.requests_per_s] if isinstance(found, Observation) else []
            time.sleep(0.5)
        seen(ask, "restarted", lambda found: is_near(found.demand.requests_per_s, 40), "40 requests/s again", tp2=1)
    assert rates
    assert all(0.6 * 40 < rate < 1.1 * 40 for rate in rates)


def test_what_two_ingresses_saw_is_added_and_what_both_repeat_is_not(scraped: Scraped) -> None:
    with Prometheus(scraped.url) as ask:
        found = seen(ask, "shared", lambda found: is_near(found.demand.requests_per_s, 20), "2 x 10/s", tp2=1)
    assert (found.running, found.pools[0].kv_usage) == (3, 0.5)
    assert found.pools[0].requests_per_s == pytest.approx(10, rel=0.1)  # half of the ten kinds were sent to it


def test_an_ingress_that_is_gone_is_stale_and_not_idle(scraped: Scraped) -> None:
    """The last test here: it takes away one of the two."""
    with Prometheus(scraped.url) as ask:
        seen(ask, "doomed", lambda found: found.demand.requests_per_s > 0, "demand", tp2=1)
        scraped.stop_doomed()
        for model, words in (("doomed", "up = 0"), ("shared", "1 of 2 ingresses")):
            found = until(partial(unseen, ask, model), f"{model} is not seen")
            assert (found.kind, words in found.why) == ("stale", True), found


def unseen(ask: Prometheus, model: str) -> Blind | None:
    found = reading(ask, model, tp2=1)
    return found if isinstance(found, Blind) else None
