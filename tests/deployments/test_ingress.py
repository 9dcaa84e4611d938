import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from link_builders import FakeReplica, settled

from deployments.ingress import ALWAYS_OPEN_PATHS, RETRY_AFTER_S, ReadinessGate
from deployments.link import FleetLink

OPENAI_PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/responses", "/tokenize", "/health"]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """What is behind the gate: says which path and how large a body arrived."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"{scope['path']} {len(body)}".encode()})


def run(scenario: Callable[[httpx.AsyncClient, FakeReplica], Awaitable[None]]) -> None:
    """Play a scenario with a client of a gate over two replicas, the first of which the scenario makes ready."""

    async def play() -> None:
        replica = FakeReplica()
        link = FleetLink("ingress", {"a": replica, "b": FakeReplica()})
        link.open()
        transport = httpx.ASGITransport(app=ReadinessGate(app, link))
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            await scenario(client, replica)
        link.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_without_a_ready_replica_a_client_is_told_to_try_again() -> None:
    async def scenario(client: httpx.AsyncClient, replica: FakeReplica) -> None:
        for path in OPENAI_PATHS:
            answer = await client.post(path, json={"model": "tiny"})
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) == RETRY_AFTER_S
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == {
                "error": {
                    "message": "The model is not ready yet: 0 of 2 replicas are up. Try again in 5 s.",
                    "type": "ServiceUnavailable",
                    "param": None,
                    "code": 503,
                }
            }

    run(scenario)


@pytest.mark.parametrize("path", sorted(ALWAYS_OPEN_PATHS))
def test_what_the_ingress_says_of_itself_is_always_open(path: str) -> None:
    async def scenario(client: httpx.AsyncClient, replica: FakeReplica) -> None:
        assert (await client.get(path)).text == f"{path} 0"
        assert (await client.get(path, params={"name": "x"})).status_code == 200

    run(scenario)


def test_metrics_can_be_scraped_while_nothing_is_ready() -> None:
    assert "/metrics" in ALWAYS_OPEN_PATHS
    assert not ALWAYS_OPEN_PATHS & set(OPENAI_PATHS)


def test_one_ready_replica_opens_the_gate_and_its_loss_closes_it() -> None:
    async def scenario(client: httpx.AsyncClient, replica: FakeReplica) -> None:
        assert (await client.get("/v1/models")).status_code == 503
        replica.say()
        await settled()
        answer = await client.post("/v1/completions", content=b"12345")
        assert (answer.status_code, answer.text) == (200, "/v1/completions 5")
        assert "retry-after" not in answer.headers
        replica.break_stream()
        await settled()
        assert (await client.get("/v1/models")).status_code == 503

    run(scenario)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_not_http_passes(kind: str) -> None:
    passed: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError("the gate must not answer")

    asyncio.run(ReadinessGate(behind, FleetLink("ingress", {}))({"type": kind}, nothing, nothing))
    assert passed == [{"type": kind}]
