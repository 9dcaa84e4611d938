"""What clients meet at the endpoint: too many of them, an ingress that dies, a server that is being stopped."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import live_streams
import moving_streams
import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from running_system import Deployed, prompts, until
from simulated_fleet import GPU, TOKEN, System, plan_of, settled, when, when_busy

from deployments.access.settings import Access, EdgeLimits
from deployments.config import SimulatedEngineConfig
from deployments.control.wire import MetricsTarget, PoolsTarget
from deployments.routing import Limits

pytestmark = pytest.mark.engine

Undisturbed = Callable[[Deployed], Any]
RUNNING = 4
QUEUED = 16


def post(deployed: Deployed, **changes: Any) -> httpx.Response:
    body = {"model": deployed.model, "prompt": prompts(1)[0], "max_tokens": 4, "ignore_eos": True}
    return httpx.post(f"{deployed.url}/v1/completions", json=body | changes, timeout=60, trust_env=False)


def waiting(deployed: Deployed) -> float:
    """Requests that wait for their turn, as the ingress tells Prometheus."""
    lines = httpx.get(f"{deployed.url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_waiting{"))


@pytest.mark.slow
def test_too_many_requests_are_refused_at_once_and_batch_before_interactive(system: System) -> None:
    limits = Limits(max_queued_requests=QUEUED, max_ttft_s=600)
    plan = plan_of("narrow", {"max_num_seqs": RUNNING}, admission=limits)
    narrow = system.serve(replace(plan, simulated=SimulatedEngineConfig(gpu=GPU, time_scale=2)), {"tp2": 1})
    clients = [body for body in live_streams.requests(narrow.model) if body["temperature"] == 0] * 4
    answers: dict[str, httpx.Response] = {}

    def ask_when_half_full() -> None:
        until(lambda: waiting(narrow) >= QUEUED // 2, "half of the queue is full", every_s=0.05)
        answers["batch"] = post(narrow, priority=1)
        answers["interactive"] = post(narrow)

    some = clients[: RUNNING + QUEUED // 2 + 2]
    taken = moving_streams.run(narrow.url, some, ask_when_half_full, after_s=0)
    assert [answer.error for answer in taken if answer.error] == []
    assert answers["interactive"].status_code == 200, answers["interactive"].text
    assert_refused(answers["batch"], f"limit for batch requests: {QUEUED // 2}")

    def ask_when_full() -> None:
        until(lambda: waiting(narrow) >= QUEUED, "the queue is full", every_s=0.05)
        answers["late"] = post(narrow)

    moving_streams.run(narrow.url, clients[: RUNNING + 2 * QUEUED], ask_when_full, after_s=0)
    assert_refused(answers["late"], f"limit for interactive requests: {QUEUED}")
    system.remove("narrow")
    system.assert_tidy()


def assert_refused(answer: httpx.Response, why: str) -> None:
    assert answer.status_code == 429, answer.text
    assert why in answer.json()["error"]["message"]
    assert answer.elapsed.total_seconds() < 1
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.slow
def test_one_of_two_ingresses_dies_with_its_connections_alone(system: System, undisturbed: Undisturbed) -> None:
    expected = undisturbed(system.deploy({"tp2": 1}))
    twice = system.serve(plan_of("twice", ingresses=2), {"tp2": 1})
    title = "ServeReplica:twice--ingress--"
    until(lambda: len(system.processes(title)) == 2, "two ingresses listen")
    clients = live_streams.requests(twice.model)
    assert_counted(system, twice, moving_streams.run(twice.url, clients))

    def kill_one() -> None:
        when_busy(twice)
        system.kill(title)

    found = moving_streams.run(twice.url, clients, kill_one)
    broken = [answer for answer in found if answer.error]
    assert 0 < len(broken) < len(found)
    assert all("Error" in answer.error for answer in broken), [answer.error for answer in broken]
    for answer, undisturbed_answer in zip(found, expected, strict=True):
        assert answer.error or answer.said() == undisturbed_answer.said()
    again = moving_streams.run(twice.url, clients)
    assert [answer.said() for answer in again] == [answer.said() for answer in expected], "a retry is all it takes"
    until(lambda: len(system.processes(title)) == 2, "the other one is back")
    when(twice, lambda view: not view.replicas[0].unfinished_requests, "nobody computes for clients that have gone")
    system.remove("twice")
    system.assert_tidy()


def test_other_settings_of_the_endpoint_cost_no_stream_and_no_connection(
    system: System, undisturbed: Undisturbed
) -> None:
    """Two ingresses, and one again; while 56 clients stream, and another connects as fast as it can."""
    expected = undisturbed(system.deploy({"tp2": 1}))
    plan = plan_of("changing")
    changing = system.serve(plan, {"tp2": 1})
    seen: list[str] = []
    is_over = threading.Event()
    newcomers = threading.Thread(target=connect_again_and_again, args=(changing.url, seen, is_over))

    def change() -> None:
        when_busy(changing)
        for settings, ingresses in ((replace(plan, ingresses=2), 2), (plan, 1)):
            system.serve(settings, {"tp2": 1})
            until(lambda count=ingresses: listeners(changing) == count, f"{ingresses} ingresses listen")

    newcomers.start()
    try:
        found = live_streams.during(changing.url, live_streams.requests(changing.model), change)
    finally:
        is_over.set()
        newcomers.join(60)
    live_streams.assert_unnoticed(found, expected)
    assert (len(seen) > 100, set(seen)) == (True, {"200"})
    system.serve(replace(plan, access=Access(limits=EdgeLimits(max_body_bytes=10))), {"tp2": 1})
    assert post(changing).status_code == 413, "the new limits hold"
    until(lambda: len(system.processes("ServeReplica:changing--ingress--")) == 1, "those of before have ended")
    system.remove("changing")
    system.assert_tidy()


def connect_again_and_again(url: str, seen: list[str], is_over: threading.Event) -> None:
    """With a new connection for each request; what came of each."""
    while not is_over.is_set():
        try:
            seen.append(str(httpx.get(f"{url}/health", trust_env=False, timeout=60).status_code))
        except httpx.HTTPError as error:
            seen.append(repr(error))


@pytest.mark.slow
def test_an_ingress_that_dies_in_a_repartition_takes_its_own_connections_alone(
    system: System, undisturbed: Undisturbed
) -> None:
    """In each phase of a swap, the one that holds its requests as well: those of the other one wait and go on."""
    expected = undisturbed(system.deploy({"tp2": 1}))
    twice = system.serve(plan_of("twice", ingresses=2), {"tp2": 1})
    title = "ServeReplica:twice--ingress--"
    clients = live_streams.requests(twice.model)
    for phase, wanted in (("draining", "pp2"), ("stopping", "tp2"), ("starting", "pp2")):
        until(lambda: listeners(twice) == 2, "two ingresses listen")

        def swap(phase: str = phase, wanted: str = wanted) -> None:
            when_busy(twice)
            twice.control.set_pools(twice.model, PoolsTarget(pools={wanted: 1}, reason="test", way="swap"))
            when(twice, lambda view: any(one.phase == phase for one in view.replicas), f"one is {phase}")
            system.kill(title)
            until(lambda: settled(twice), f"{wanted} serves", timeout_s=240)

        found = moving_streams.run(twice.url, clients, swap)
        broken = [answer for answer in found if answer.error]
        assert 0 < len(broken) < len(found), phase
        assert all("Error" in answer.error for answer in broken), [answer.error for answer in broken]
        for answer, undisturbed_answer in zip(found, expected, strict=True):
            assert answer.error or answer.said() == undisturbed_answer.said(), phase
    system.remove("twice")
    system.assert_tidy()


def listeners(deployed: Deployed) -> int:
    """Sockets that listen at the port of the endpoint."""
    port = httpx.URL(deployed.url).port
    every = psutil.net_connections("tcp")
    return sum(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in every)


def assert_counted(system: System, twice: Deployed, answers: Sequence[moving_streams.Answer]) -> None:
    """Prometheus is told where both ingresses are, and the sum of what they say is what clients have seen."""
    (target,) = until(lambda: of_model(twice.model, system.control.metrics_targets(), ingresses=2), "both are told of")
    scraped = [series(httpx.get(f"http://{address}/metrics", trust_env=False)) for address in target.targets]

    def total(name: str, **labels: str) -> float:
        return sum(one.value for found in scraped for one in found[name] if labels.items() <= one.labels.items())

    replica = {"model": twice.model, "replica": twice.view().replicas[0].name, "shape": "tp2"}
    choices = [token_ids for answer in answers for token_ids in answer.token_ids.values()]
    assert total("archipelago_arrivals_total", model=twice.model) == len(answers)
    assert total("archipelago_refused_total", model=twice.model) == 0
    assert total("archipelago_replica_requests_total", **replica) == len(choices)
    assert total("archipelago_replica_time_to_first_token_seconds_count", **replica) == len(choices)
    assert total("vllm:time_to_first_token_seconds_count", model_name=twice.model) == len(choices)
    assert total("vllm:request_success_total", model_name=twice.model) == len(choices)
    # More may have been generated than is answered: after a stop string.
    assert total("archipelago_replica_generated_tokens_total", **replica) >= sum(map(len, choices))
    assert total("archipelago_replica_prompt_tokens_total", **replica) == total("vllm:prompt_tokens_total") > 0
    assert total("archipelago_replica_running_requests", **replica) == 0
    for name in ("archipelago_replica_time_per_output_token_seconds", "vllm:request_time_per_output_token_seconds"):
        assert 0.01 < total(f"{name}_sum") / total(f"{name}_count") < 1, name
    headers = {"Authorization": f"Bearer {TOKEN}"}
    of_fleets = series(httpx.get(f"{system.control.url}/metrics", headers=headers, trust_env=False))
    serving = {"model": twice.model, "shape": "tp2", "phase": "serving"}
    assert [one.value for one in of_fleets["archipelago_fleet_replicas"] if one.labels == serving] == [1]
    assert twice.view().start_s["tp2"] > 0


def of_model(model: str, targets: Sequence[MetricsTarget], *, ingresses: int) -> list[MetricsTarget]:
    return [one for one in targets if one.labels == {"model": model} and len(one.targets) == ingresses]


def series(answer: httpx.Response) -> dict[str, list[Sample]]:
    """What was scraped, by name."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(answer.raise_for_status().text):
        for one in family.samples:
            found[one.name].append(one)
    return found


@pytest.mark.slow
def test_a_server_that_stops_finishes_what_it_has_begun(system: System, undisturbed: Undisturbed) -> None:
    """What `make stop` does before it ends the processes."""
    expected = undisturbed(system.deploy({"tp2": 1}))
    closing = system.serve(plan_of("closing"), {"tp2": 1})
    refused: list[httpx.Response] = []
    left: list[int] = []

    def close() -> None:
        when_busy(closing)
        assert ray.get(system.controller.close.remote(closing.model, 0)) >= live_streams.STREAMS
        refused.append(until(lambda: is_refused(post(closing)), "new requests are refused", every_s=0.02))
        left.append(ray.get(system.controller.close.remote(closing.model, 60)))

    found = moving_streams.run(closing.url, live_streams.requests(closing.model), close)
    assert [answer.said() for answer in found] == [answer.said() for answer in expected]
    assert left == [0]
    assert refused[0].headers["retry-after"] == "5"
    assert "being stopped" in refused[0].json()["error"]["message"]
    system.remove("closing")
    system.assert_tidy()


def is_refused(response: httpx.Response) -> httpx.Response | None:
    return response if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else None
