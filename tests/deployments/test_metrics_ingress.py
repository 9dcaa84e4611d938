"""What an ingress tells Prometheus, as Prometheus reads it. Autoscaler and dashboards ask by these names."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import httpx
import pytest
from link_builders import Fleet, passed, request, run, settled
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deployments.gate import GENERATING_PATHS, Gate
from deployments.membership import UNKNOWN_SPEED
from deployments.metrics.counting import LostBy
from deployments.metrics.ingress_series import USUAL, IngressSeries
from deployments.routing import Limits
from deployments.telemetry.fields import TelemetryConfig

MODEL = "acme/tiny"
REPLICA = ("model", "replica", "shape")
OF_THE_MODEL = {
    "archipelago_arrivals_total": ("model",),
    "archipelago_refused_total": ("code", "model"),
    "archipelago_held_requests": ("model",),
    "archipelago_unfinished_requests": ("model",),
    "archipelago_ready_replicas": ("model",),
    "archipelago_slo_time_to_first_token_seconds": ("model",),
    "archipelago_slo_time_per_output_token_seconds": ("model",),
    "archipelago_slo_objective_ratio": ("model",),
    "archipelago_lost_requests_total": ("cause", "model"),
    "archipelago_slo_requests_total": ("model", "outcome"),
    "archipelago_moved_requests_total": ("model",),
}
OF_A_REPLICA = {
    "archipelago_replica_running_requests": REPLICA,
    "archipelago_replica_waiting_requests": REPLICA,
    "archipelago_replica_kv_cache_usage_ratio": REPLICA,
    "archipelago_replica_predicted_communication_ratio": REPLICA,
    "archipelago_replica_lost_connections_total": REPLICA,
    "archipelago_replica_requests_total": REPLICA,
    "archipelago_replica_generated_tokens_total": REPLICA,
    "archipelago_replica_prompt_tokens_total": REPLICA,
    "archipelago_replica_prefix_hit_tokens_total": REPLICA,
    "archipelago_replica_preemptions_total": REPLICA,
} | {
    f"archipelago_replica_{name}_seconds_{part}": tuple(sorted(("le", *REPLICA) if part == "bucket" else REPLICA))
    for name in ("time_to_first_token", "time_per_output_token")
    for part in ("bucket", "sum", "count")
}


class Scrape:
    """The series of a fleet's ingress at one moment."""

    def __init__(self, fleet: Fleet, promised: TelemetryConfig = USUAL) -> None:
        registry = CollectorRegistry()
        registry.register(IngressSeries(MODEL, fleet.link, fleet.traffic, promised))
        text = generate_latest(registry).decode()
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of the one series that is meant."""
        (value,) = self.all(name, **labels)
        return value

    def all(self, name: str, **labels: str) -> list[float]:
        wanted = {"model": MODEL, **labels}.items()
        named = [one for one in self.samples if one.name == f"archipelago_{name}"]
        return [one.value for one in named if wanted <= one.labels.items()]

    def labels(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for one in self.samples:
            yield one.name, tuple(sorted(one.labels))


def test_every_series_has_its_name_and_its_labels() -> None:
    async def scenario(fleet: Fleet) -> None:
        assert dict(Scrape(fleet).labels()) == OF_THE_MODEL | OF_A_REPLICA

    run(scenario, "a")


def test_before_there_is_a_replica_the_ingress_tells_of_its_clients_alone() -> None:
    async def scenario(fleet: Fleet) -> None:
        assert dict(Scrape(fleet).labels()) == OF_THE_MODEL

    run(scenario)


def test_what_this_model_promises_is_told() -> None:
    async def scenario(fleet: Fleet) -> None:
        scrape = Scrape(fleet, TelemetryConfig(ttft_s=0.5, tpot_s=0.03, percentile=0.95))
        assert scrape("slo_time_to_first_token_seconds") == 0.5
        assert scrape("slo_time_per_output_token_seconds") == 0.03
        assert scrape("slo_objective_ratio") == 0.95

    run(scenario)


def test_a_replica_is_named_with_its_shape_and_goes_with_its_series() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.change("b", shape="tp4")
        for name in ("r1", "r2"):
            fleet.link.submit(request(name))
        assert Scrape(fleet)("replica_requests_total", replica="a", shape="tp2") == 1
        assert Scrape(fleet)("replica_requests_total", replica="b", shape="tp4") == 1
        fleet.remove("b")
        left = Scrape(fleet)
        assert left("replica_requests_total", replica="a") == 2
        assert not [one for one in left.samples if one.labels.get("replica") == "b"]
        assert left("moved_requests_total") == 1

    run(scenario, "a", "b")


def test_a_replica_that_dies_is_counted_and_one_that_is_stopped_is_not() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.change("b", speed=replace(UNKNOWN_SPEED, communication_share=0.25))
        assert Scrape(fleet)("ready_replicas") == 2
        assert Scrape(fleet)("replica_predicted_communication_ratio", replica="b") == 0.25
        fleet["a"].die()
        await settled()
        assert Scrape(fleet)("ready_replicas") == 1
        fleet["a"].come_back()
        fleet.change("a", port=2)  # as Serve starts it again
        await settled()
        assert Scrape(fleet)("replica_lost_connections_total", replica="a") == 1
        fleet.remove("b")
        await settled()
        assert fleet.link.asked.broken["b"] == 0

    run(scenario, "a", "b")


def test_requests_that_are_given_up_are_counted_by_why() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1", unmovable="it is not exact"))
        fleet.link.submit(request("r2"))
        await settled()
        fleet["a"].die()
        await passed(fleet.membership.hold_s + 5)
        lost = {cause: Scrape(fleet)("lost_requests_total", cause=cause) for cause in get_args(LostBy)}
        assert lost == {"unmovable": 1, "quarantined": 0, "held-too-long": 1}

    run(scenario, "a")


def test_times_are_from_the_arrival_at_the_ingress_and_between_tokens() -> None:
    async def scenario(fleet: Fleet) -> None:
        await passed(5)
        fleet.link.submit(request("r1"))
        await passed(0.25)  # in a queue of the replica, whatever it says
        fleet.settle("a", "r1", 7)
        assert Scrape(fleet)("replica_time_to_first_token_seconds_sum") == pytest.approx(0.25, abs=1e-3)
        await passed(0.1)
        fleet.settle("a", "r1", 8)
        await passed(0.3)
        assert Scrape(fleet)("replica_time_per_output_token_seconds_count") == 0
        fleet.settle("a", "r1", 9, is_finished=True)
        scrape = Scrape(fleet)
        assert scrape("replica_time_to_first_token_seconds_count") == 1
        assert scrape("replica_time_per_output_token_seconds_sum") == pytest.approx(0.2, abs=1e-3)
        assert scrape("replica_time_per_output_token_seconds_bucket", le="0.15") == 0
        assert scrape("replica_time_per_output_token_seconds_bucket", le="0.3") == 1
        assert scrape("unfinished_requests") == 0

    run(scenario, "a")


def test_the_time_for_a_token_is_counted_however_an_answer_ends_and_only_where_there_is_one() -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("one token", "no token", "stop string"):
            fleet.link.submit(request(name))
        await settled()
        fleet.settle("a", "stop string", 1)
        fleet.settle("a", "one token", 1, is_finished=True)
        await passed(0.05)
        fleet.settle("a", "stop string", 1)
        await passed(10)  # until the client is told, which is no time of the replica
        fleet.link.abort(["stop string", "no token"])
        scrape = Scrape(fleet)
        assert scrape("replica_time_per_output_token_seconds_count") == 1
        assert scrape("replica_time_per_output_token_seconds_sum") == pytest.approx(0.05, abs=1e-3)
        assert scrape("replica_time_to_first_token_seconds_count") == 2

    run(scenario, "a")


def test_a_request_that_moves_has_one_first_token_and_its_stall_counts() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.settle("a", "r1", 7)
        fleet.add(*(one for one in Fleet("b").membership.members))
        await settled()
        fleet["a"].die()
        await passed(3)
        where, wire_id = fleet.where("r1")
        assert where == "b"
        fleet.settle("b", wire_id, 8, is_finished=True)
        scrape = Scrape(fleet)
        assert scrape("replica_time_to_first_token_seconds_count", replica="a") == 1
        assert scrape("replica_time_to_first_token_seconds_count", replica="b") == 0
        assert scrape("replica_time_per_output_token_seconds_sum", replica="b") == pytest.approx(3, abs=0.1)

    run(scenario, "a")


def test_what_the_scheduler_said_holds_while_this_ingress_has_requests_there() -> None:
    """Steps come to those who have a request in them: an ingress without one would tell of a load that has gone."""

    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.settle("a", "r1", 7)
        fleet.traffic.stepped("a", running=9, waiting=3, kv_usage=0.5, now_s=1.0)
        names = ("running_requests", "waiting_requests", "kv_cache_usage_ratio")
        assert [Scrape(fleet)(f"replica_{name}") for name in names] == [9, 3, 0.5]
        assert fleet.traffic.totals() == (9, 3, 0.5)
        fleet.settle("a", "r1", 8, is_finished=True)
        fleet.traffic.stepped("a", running=8, waiting=2, kv_usage=0.4, now_s=2.0)
        assert [Scrape(fleet)(f"replica_{name}") for name in names] == [0, 0, 0]
        assert fleet.traffic.totals() == (0, 0, 0.0)

    run(scenario, "a")


def test_tokens_and_what_the_prefix_cache_saved_add_up() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        for step in range(3):
            fleet.settle("a", "r1", 1, 2)
            fleet.traffic.stepped("a", running=1, waiting=0, kv_usage=0.5, now_s=step)
        fleet.traffic.prefilled("a", computed_tokens=6, cached_tokens=4)
        fleet.traffic.preempted("a", 2)
        scrape = Scrape(fleet)
        names = ("generated_tokens", "prompt_tokens", "prefix_hit_tokens", "preemptions")
        assert [scrape(f"replica_{name}_total") for name in names] == [6, 6, 4, 2]

    run(scenario, "a")


def asked(scenario: Callable[[httpx.AsyncClient, Fleet], Awaitable[None]], *names: str, **changes: Any) -> None:
    """Play a scenario with a client before the gate of an ingress whose application answers everything."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def connected(fleet: Fleet) -> None:
        transport = httpx.ASGITransport(app=Gate(app, fleet.link))
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            await scenario(client, fleet)

    run(connected, *names, **changes)


def test_arrivals_are_requests_to_generate_and_those_refused_are_among_them() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        for path in sorted(GENERATING_PATHS):
            assert (await client.post(path, json={})).status_code == 200
        for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/responses/x/cancel"):
            await client.post(path, json={})
        await client.get("/v1/models")
        await client.get("/metrics")
        fleet.traffic.stepped("a", running=64, waiting=9, kv_usage=0.0, now_s=0.0)
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
            assert (await client.post(path, json={})).status_code == 429
        fleet.update(is_closing=True)
        for path in ("/v1/completions", "/tokenize"):
            assert (await client.post(path, json={})).status_code == 503
        scrape = Scrape(fleet)
        assert scrape("arrivals_total") == len(GENERATING_PATHS) + 3
        assert scrape("refused_total", code="429") == 2
        assert scrape("refused_total", code="503") == 1

    asked(scenario, "a", limits=Limits(max_queued_requests=4))


def test_requests_that_wait_for_a_replica_are_seen() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        scrape = Scrape(fleet)
        assert (scrape("held_requests"), scrape("unfinished_requests")) == (1, 1)

    run(scenario, "a", ready=False, holds_new=True)


def test_a_scrape_in_another_thread_does_not_trip_over_replicas_that_come_and_go() -> None:
    """vLLM's own /metrics is read in a thread (prometheus_fastapi_instrumentator, expose)."""

    async def scenario(fleet: Fleet) -> None:
        members = Fleet(*(f"n{index}" for index in range(50))).membership.members

        def scrape() -> None:  # what a scrape reads, often enough for one to be caught
            for _ in range(3000):
                fleet.traffic.loads()
                fleet.link.report()

        scraping = asyncio.create_task(asyncio.to_thread(scrape))
        while not scraping.done():
            for one in members:
                fleet.traffic.expect(one)
            await asyncio.sleep(0)
            for one in members:
                fleet.traffic.forget(one.replica)
        scraping.result()

    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        run(scenario, "a")
    finally:
        sys.setswitchinterval(usual_s)
