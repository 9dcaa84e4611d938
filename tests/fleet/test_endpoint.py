"""What clients meet at the endpoint: too many of them, an ingress that dies, a server that is being stopped."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import live_streams
import moving_streams
import pytest
import ray
from running_system import Deployed, prompts, until
from simulated_fleet import GPU, System, plan_of, when, when_busy

from deployments.config import SimulatedEngineConfig
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
    title = "ServeReplica:twice--ingress:ingress"
    until(lambda: len(system.processes(title)) == 2, "two ingresses listen")
    clients = live_streams.requests(twice.model)

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
