"""The load of the pools, from what ingresses tell."""

import asyncio
from collections.abc import Mapping
from math import inf

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_builders import Fleet
from page_builders import series
from prometheus_client import CollectorRegistry, generate_latest

from deployments.control.wire import MetricsTarget
from deployments.metrics.counting import BOUNDS_S, Durations
from deployments.metrics.ingress_series import IngressSeries
from deployments.page.load import LEAST_PERIOD_S, WINDOW_S, LoadPage, Loads
from deployments.page.scraped import quantile, told_in
from placement.promised import USUAL_SHARE

ONE = (MetricsTarget(targets=("10.0.0.1:9",), labels={"model": "m"}),)
TWO = (MetricsTarget(targets=("10.0.0.1:9", "10.0.0.2:9"), labels={"model": "m"}),)


class Ingresses:
    """What ingresses tell, by address, and a clock."""

    def __init__(self, **told: str) -> None:
        self.told: dict[str, str | Exception] = {}
        self.asked: list[str] = []
        self.now_s = 100.0
        self.loads = Loads(self.fetch, lambda: self.now_s)

    async def fetch(self, address: str) -> str:
        self.asked.append(address)
        found = self.told[address]
        if isinstance(found, Exception):
            raise found
        return found

    def read(self, targets: tuple[MetricsTarget, ...], percentiles: Mapping[str, float] | None = None) -> LoadPage:
        return asyncio.run(self.loads.read(targets, percentiles or {}))


def test_gauges_are_those_of_now_and_rates_come_with_the_second_look() -> None:
    here = Ingresses()
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2", "b": "tp2", "c": "tp4"}, requests=100)
    (first,) = here.read(ONE).models
    assert [(pool.shape, pool.replicas, pool.running, pool.waiting) for pool in first.pools] == [
        ("tp2", 2, 12, 2),
        ("tp4", 1, 6, 1),
    ]
    assert (first.requests_per_s, first.ttft_s, first.pools[0].tokens_per_s) == (None, None, None)
    here.now_s += 10
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2", "b": "tp2", "c": "tp4"}, requests=150)
    (second,) = here.read(ONE).models
    assert second.requests_per_s == pytest.approx(15)
    assert second.pools[0].tokens_per_s == pytest.approx(2000)
    assert 0.2 < (second.ttft_s or 0) <= 0.3
    assert 0.02 < (second.pools[1].tpot_s or 0) <= 0.03


def test_ingresses_are_added_up_but_a_replica_is_as_full_as_the_one_that_knows_says() -> None:
    here = Ingresses()
    here.told = {"10.0.0.1:9": series("m", {"a": "tp2"}), "10.0.0.2:9": series("m", {"a": "tp2"}, running=0, kv=0)}
    here.read(TWO)
    here.now_s += 10
    here.told = {
        "10.0.0.1:9": series("m", {"a": "tp2"}, requests=10),
        "10.0.0.2:9": series("m", {"a": "tp2"}, requests=30, running=0, kv=0),
    }
    (found,) = here.read(TWO).models
    assert (found.pools[0].running, found.pools[0].kv_usage) == (6, 0.42)
    assert found.requests_per_s == pytest.approx(4)


@pytest.mark.parametrize(
    ("promised", "of_the_autoscaler", "percentile"),
    [(None, None, USUAL_SHARE), (None, 0.95, 0.95), (0.9, None, 0.9), (0.9, 0.99, 0.99)],
    ids=["nobody says one", "the autoscaler", "the ingress", "both: the autoscaler's"],
)
def test_a_percentile_is_that_of_the_slo(
    promised: float | None, of_the_autoscaler: float | None, percentile: float
) -> None:
    here = Ingresses()
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2", "b": "tp2"})
    here.read(ONE)
    here.now_s += 10
    fast, slow = series("m", {"a": "tp2"}, requests=97), series("m", {"b": "tp2"}, requests=3, ttft_s=10.0)
    objective = f'archipelago_slo_objective_ratio{{model="m"}} {promised}\n' if promised else ""
    here.told["10.0.0.1:9"] = fast + slow + objective
    (found,) = here.read(ONE, {"m": of_the_autoscaler} if of_the_autoscaler else {}).models
    assert found.percentile == percentile
    assert found.ttft_s is not None
    assert 7.5 < found.ttft_s <= 10 if percentile > 0.97 else found.ttft_s <= 0.3


def test_what_an_ingress_promises_is_told_along() -> None:
    here = Ingresses()
    slo = 'archipelago_slo_time_to_first_token_seconds{model="m}"} 2.5\n'
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2"}) + slo
    (found,) = here.read(ONE).models
    assert (found.slo_ttft_s, found.slo_tpot_s) == (2.5, None)


def test_only_the_last_minute_counts() -> None:
    here = Ingresses()
    for look in range(20):
        here.told["10.0.0.1:9"] = series("m", {"a": "tp2"}, requests=1000 if look else 0, ttft_s=0.3)
        here.now_s += 10
        (found,) = here.read(ONE).models
    assert WINDOW_S == 60
    assert (found.requests_per_s, found.ttft_s) == (0, None)


def test_an_ingress_that_began_anew_counts_from_there() -> None:
    here = Ingresses()
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2"}, requests=1000)
    here.read(ONE)
    here.now_s += 10
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2"}, requests=20)
    (found,) = here.read(ONE).models
    assert found.requests_per_s == pytest.approx(2)
    assert found.ttft_s is not None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.ConnectError("refused"), "ingress 10.0.0.1:9 of m is not known: refused."),
        (httpx.ReadTimeout(""), "is not known: ReadTimeout."),
        ('archipelago_replica_running_requests{model="m"} 1', "its series cannot be read (KeyError('replica'))."),
        ('archipelago_replica_running_requests{replica="a",shape="tp2"} x', "its series cannot be read (ValueError"),
    ],
)
def test_an_ingress_that_does_not_tell_is_named_and_the_others_count(answer: str | Exception, said: str) -> None:
    here = Ingresses()
    here.told = {"10.0.0.1:9": answer, "10.0.0.2:9": series("m", {"a": "tp2"})}
    found = here.read(TWO)
    assert said in found.troubles[0]
    assert found.models[0].pools[0].running == 6
    here.now_s += LEAST_PERIOD_S
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2"})
    assert not here.read(TWO).troubles


def test_many_who_look_ask_no_more_than_one() -> None:
    here = Ingresses()
    here.told["10.0.0.1:9"] = series("m", {"a": "tp2"})

    async def all_at_once() -> None:
        await asyncio.gather(*(here.loads.read(ONE, {}) for _ in range(50)))

    asyncio.run(all_at_once())
    assert len(here.asked) == 1


def test_an_ingress_that_has_gone_is_forgotten() -> None:
    here = Ingresses()
    here.told = {address: series("m", {"a": "tp2"}) for address in TWO[0].targets}
    here.read(TWO)
    here.now_s += LEAST_PERIOD_S
    assert here.read(()).models == ()


def test_what_an_ingress_really_exports_is_understood() -> None:
    """The pattern is ours, and so are the names: they must be those of the exporter, escapes included."""

    async def exported() -> str:
        fleet, registry = Fleet("a", "b"), CollectorRegistry()
        fleet.update()
        registry.register(IngressSeries('mean "model"} 7\n', fleet.link, fleet.traffic))
        return generate_latest(registry).decode()

    told = told_in(asyncio.run(exported()))
    assert told.promised.ttft_s
    assert told.promised.tpot_s
    assert told.replicas.keys() == {"a", "b"}
    for series_of in told.replicas.values():
        assert list(series_of.ttft) == list(series_of.tpot) == [*BOUNDS_S, inf]


def test_what_is_not_ours_is_not_read() -> None:
    text = "vllm:broken{{{\n# TYPE archipelago_replica_x gauge\n" + series("m", {"a": "tp2"})
    assert list(told_in(text).replicas) == ["a"]


@given(st.lists(st.floats(0.0005, 59), min_size=1, max_size=300), st.floats(0.5, 0.999))
def test_a_quantile_is_in_the_bucket_of_the_true_one(durations_s: list[float], share: float) -> None:
    counted = Durations()
    for duration_s in durations_s:
        counted.observe(duration_s)
    histogram = {float(bound): count for bound, count in counted.buckets()}
    true_s = float(np.quantile(durations_s, share, method="inverted_cdf"))
    found_s = quantile(histogram, share)
    assert found_s is not None
    bounds = [0.0, *(bound for bound in histogram if bound != inf)]
    above = next(bound for bound in bounds if bound >= true_s)
    assert bounds[bounds.index(above) - 1] - 1e-9 <= found_s <= above + 1e-9


@pytest.mark.parametrize(("histogram", "found"), [({}, None), ({1.0: 0, inf: 0}, None), ({1.0: 0, inf: 5}, 1.0)])
def test_a_quantile_of_nothing_is_nothing_and_beyond_the_bounds_the_last_one(
    histogram: dict[float, float], found: float | None
) -> None:
    assert quantile(histogram, 0.95) == found
