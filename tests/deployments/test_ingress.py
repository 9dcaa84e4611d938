import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from link_builders import Fleet, passed, play, request, run, settled
from telemetry_builders import engine_request

from deployments.access.priorities import current_least_priority
from deployments.fleet_engine import FleetCore
from deployments.gate import ALWAYS_OPEN_PATHS, RETRY_AFTER_S, Gate
from deployments.ingress import listening_socket, reachable_address
from deployments.routing import Limits

OPENAI_PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/responses", "/tokenize", "/health"]
LIMITS = Limits(max_queued_requests=4, batch_share=0.5)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """What is behind the gate: says which path and which body arrived."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode() + b" " + body})


def through(scenario: Callable[[httpx.AsyncClient, Fleet], Awaitable[None]], *names: str, **changes: Any) -> None:
    """Play a scenario with a client of a gate before the fleet."""

    async def connected(fleet: Fleet) -> None:
        transport = httpx.ASGITransport(app=Gate(app, fleet.link))
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            await scenario(client, fleet)

    run(connected, *names, limits=LIMITS, **changes)


def queue(fleet: Fleet, waiting: int, name: str = "a") -> None:
    """Have the replica's scheduler say that so many requests wait."""
    fleet.traffic.stepped(name, running=64, waiting=waiting, kv_usage=0.0, now_s=0.0)


def assert_refused(answer: httpx.Response, status: int, kind: str, words: str) -> None:
    assert answer.status_code == status
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert words in error.pop("message")
    assert error == {"type": kind, "param": None, "code": status}


def test_without_a_ready_replica_a_client_is_told_to_try_again() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        for path in OPENAI_PATHS:
            answer = await client.post(path, json={"model": "tiny"})
            words = "The model is not ready yet: 0 of 2 replicas are up. Try again in 5 s."
            assert_refused(answer, 503, "ServiceUnavailable", words)
            assert answer.headers["retry-after"] == str(RETRY_AFTER_S)

    through(scenario, "a", "b", ready=False)


def test_a_server_that_is_being_stopped_says_so() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        fleet.update(is_closing=True)
        answer = await client.post("/v1/completions", json={})
        assert_refused(answer, 503, "ServiceUnavailable", "The server is being stopped and takes no new requests.")
        fleet.update(is_going=True)
        answer = await client.post("/v1/completions", json={})
        assert_refused(answer, 503, "ServiceUnavailable", "The model is being removed and takes no new requests.")

    through(scenario, "a")


@pytest.mark.parametrize("path", sorted(ALWAYS_OPEN_PATHS))
def test_what_the_ingress_says_of_itself_is_always_open(path: str) -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        assert (await client.get(path)).text == f"{path} "
        assert (await client.get(path, params={"name": "x"})).status_code == 200
        fleet.update(is_closing=True)
        assert (await client.get(path)).status_code == 200

    through(scenario, "a", ready=False)


def test_metrics_can_be_scraped_while_nothing_is_ready() -> None:
    assert "/metrics" in ALWAYS_OPEN_PATHS
    assert not ALWAYS_OPEN_PATHS & set(OPENAI_PATHS)


def test_one_ready_replica_opens_the_gate_and_its_loss_closes_it() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        assert (await client.get("/v1/models")).status_code == 503
        fleet["a"].greet()
        await settled()
        answer = await client.post("/v1/completions", content=b"12345")
        assert (answer.status_code, answer.text) == (200, "/v1/completions 12345")
        assert "retry-after" not in answer.headers
        fleet["a"].break_connection()
        await settled()
        assert (await client.get("/v1/models")).status_code == 503

    through(scenario, "a", "b", ready=False)


def test_during_an_announced_stall_new_requests_are_let_in() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        answer = await client.post("/v1/completions", content=b"12345")
        assert (answer.status_code, answer.text) == (200, "/v1/completions 12345")

    through(scenario, "a", ready=False, holds_new=True)


@pytest.mark.parametrize(
    ("waiting", "chat", "batch"), [(0, 200, 200), (1, 200, 200), (2, 200, 429), (3, 200, 429), (4, 429, 429)]
)
def test_batch_requests_are_refused_before_interactive_ones(waiting: int, chat: int, batch: int) -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        queue(fleet, waiting)
        for body, status in [({"prompt": "x"}, chat), ({"priority": 0}, chat), ({"priority": -1}, chat)]:
            assert (await client.post("/v1/completions", json=body)).status_code == status
        answer = await client.post("/v1/completions", json={"priority": 1})
        assert answer.status_code == batch
        if batch == 429:
            assert_refused(answer, 429, "TooManyRequests", "limit for batch requests: 2")

    through(scenario, "a")


@pytest.mark.parametrize(("least", "status"), [(0, 200), (1, 429)])
def test_requests_of_a_batch_key_are_batch_whatever_they_say(least: int, status: int) -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        queue(fleet, LIMITS.max_queued_requests - 1)
        current_least_priority.set(least)
        for body in ({"prompt": "x"}, {"priority": 0}, {"priority": -1}):
            assert (await client.post("/v1/completions", json=body)).status_code == status

    through(scenario, "a")


PHOTO = "data:image/png;base64," + "iVBORw0KGgo/" * 170_000  # 2 MB


@pytest.mark.parametrize("body", [{"prompt": "long " * 400_000}, {"prompt": PHOTO}], ids=["text", "photo"])
def test_an_idle_replica_takes_a_body_of_any_size(body: dict[str, Any]) -> None:
    """It may be beyond the model, or a picture. Of the former the engine tells its client more than to come back."""

    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        fleet.change("a", kv_tokens=10_000)
        assert (await client.post("/v1/completions", json=body)).status_code == 200

    through(scenario, "a")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"image_url": {"url": PHOTO}}, 200),
        ({"input_audio": {"data": PHOTO[22:], "format": "wav"}}, 200),
        ({"text": "long " * 400_000}, 429),
        ({"text": "長" * 400_000}, 429),
    ],
    ids=["photo", "sound", "text", "text without spaces"],
)
def test_on_a_busy_replica_text_needs_room_for_its_bytes_and_media_do_not(content: Any, status: int) -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        fleet.change("a", kv_tokens=10_000)
        fleet.traffic.stepped("a", running=1, waiting=0, kv_usage=0.2, now_s=fleet.link.now())
        messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, content]}]
        assert (await client.post("/v1/chat/completions", json={"messages": messages})).status_code == status

    through(scenario, "a")


def test_a_replica_with_room_keeps_the_gate_open() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        queue(fleet, 100, "a")
        assert (await client.post("/v1/completions", json={"priority": 1})).status_code == 200
        queue(fleet, 100, "b")
        assert (await client.post("/v1/completions", json={})).status_code == 429
        assert (await client.get("/v1/models")).status_code == 200  # nothing is computed for it

    through(scenario, "a", "b")


@pytest.mark.parametrize(("priority", "queued"), [(0, 4), (1, 2)], ids=["interactive", "batch"])
def test_of_a_burst_no_more_are_let_in_than_find_room(priority: int, queued: int) -> None:
    """vLLM renders and tokenises for a while, and only then sends what was let in."""
    names, room = itertools.count(), 2 * (64 + queued)

    async def scenario(fleet: Fleet) -> None:
        core, has_ended = FleetCore(fleet.link, fleet.traffic, speculative=False), asyncio.Event()

        async def rendering(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await asyncio.sleep(1.0)
            await core.add_request_async(engine_request(f"r{next(names)}"))
            await has_ended.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        gate = Gate(rendering, fleet.link)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url="http://fleet") as client:
            asked: list[asyncio.Task[httpx.Response]] = []
            for burst, let_in in ((100, 100), (200, room), (10, room)):  # what was sent counts, and once
                asked += [
                    asyncio.create_task(client.post("/v1/completions", json={"priority": priority}))
                    for _ in range(burst)
                ]
                await passed(5.0)
                assert fleet.link.report().unfinished_requests == let_in
            has_ended.set()
            answers = Counter(answer.status_code for answer in await asyncio.gather(*asked))
            assert answers == {200: room, 429: 310 - room}

    run(scenario, "a", "b", limits=LIMITS)


def test_of_one_body_with_several_prompts_only_the_first_gives_up_the_place() -> None:
    async def scenario(fleet: Fleet) -> None:
        core = FleetCore(fleet.link, fleet.traffic, speculative=False)
        others, is_over = itertools.count(), asyncio.Event()

        async def behind(scope: Any, receive: Any, send: Any) -> None:
            if scope["query_string"]:  # three prompts, and each is answered at once
                for index in range(3):
                    await core.add_request_async(engine_request(f"r{index}"))
                    fleet.link.abort([f"r{index}"])
                return
            next(others)
            await is_over.wait()

        async def ask(query: bytes = b"") -> None:
            scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": [], "query_string": query}
            await Gate(behind, fleet.link)(scope, no_body, ignored)

        waiting = [asyncio.create_task(ask()) for _ in range(64)]
        await settled()
        await ask(b"three")
        waiting += [asyncio.create_task(ask()) for _ in range(64)]
        await settled()
        assert next(others) == 64 + 4
        is_over.set()
        await asyncio.gather(*waiting)

    run(scenario, "a", limits=LIMITS)


async def no_body() -> Any:
    return {"type": "http.request", "body": b""}


async def ignored(message: Any) -> None:
    pass


def test_only_what_generates_takes_a_place_and_an_error_gives_it_back() -> None:
    async def scenario(fleet: Fleet) -> None:
        is_open = asyncio.Event()

        async def failing(scope: Any, receive: Any, send: Any) -> None:
            await is_open.wait()
            raise ValueError(scope["path"])

        gate = Gate(failing, fleet.link)

        async def ask(path: str) -> int:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url="http://fleet") as client:
                try:
                    return (await client.post(path, json={})).status_code
                except ValueError:
                    return 500

        for _ in range(2):
            is_open.clear()
            tokenizing = [asyncio.create_task(ask("/tokenize")) for _ in range(80)]
            generating = [asyncio.create_task(ask("/v1/completions")) for _ in range(80)]
            await settled()
            is_open.set()
            assert Counter(await asyncio.gather(*tokenizing)) == {500: 80}
            assert Counter(await asyncio.gather(*generating)) == {500: 64 + 4, 429: 80 - 64 - 4}

    run(scenario, "a", limits=LIMITS)


def test_retry_after_differs_between_clients_so_that_they_do_not_all_come_back_at_once() -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        for index in range(64):
            fleet.link.submit(request(f"r{index}", 5000, 500))
        queue(fleet, 200)
        answers = [await client.post("/v1/completions", json={}) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {429}
        assert len({answer.headers["retry-after"] for answer in answers}) > 1

    through(scenario, "a")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b"7",
        b'{"priority": null}',
        b'{"priority": "urgent"}',
        b'{"priority": Infinity}',
        b'{"priority": 1e999}',
        b'{"priority": NaN}',
        b"[" * 100_000,
        b'{"priority": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_makes_no_sense_is_left_to_the_application(body: bytes) -> None:
    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        queue(fleet, LIMITS.max_queued_requests - 1)
        answer = await client.post("/v1/completions", content=body)
        assert (answer.status_code, answer.content) == (200, b"/v1/completions " + body)

    through(scenario, "a")


def test_a_body_that_was_looked_into_reaches_the_application_intact() -> None:
    body = json.dumps({"prompt": "é" * 10_000}).encode()
    pieces = [body[start : start + 999] for start in range(0, len(body), 999)]

    async def scenario(client: httpx.AsyncClient, fleet: Fleet) -> None:
        async def upload() -> Any:
            for piece in pieces:
                yield piece

        queue(fleet, LIMITS.max_queued_requests - 1)
        answer = await client.post("/v1/completions", content=upload())
        assert answer.content == b"/v1/completions " + body

    through(scenario, "a")


def test_after_the_body_the_application_hears_that_the_client_has_gone() -> None:
    """vLLM aborts a request when it reads the disconnection (vllm/entrypoints/serve/utils/api_utils.py:36)."""
    heard: list[str] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([(await receive())["type"] for _ in range(2)])

    async def scenario(fleet: Fleet) -> None:
        queue(fleet, LIMITS.max_queued_requests - 1)
        messages = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
        await Gate(behind, fleet.link)(scope, receive, nothing)

    run(scenario, "a", limits=LIMITS)
    assert heard == ["http.request", "http.disconnect"]


async def nothing(*_: Any) -> Any:
    raise AssertionError("the gate must not answer")


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_not_http_passes(kind: str) -> None:
    passed: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    async def scenario() -> None:
        await Gate(behind, Fleet().link)({"type": kind}, nothing, nothing)

    play(scenario)
    assert passed == [{"type": kind}]


def test_several_ingresses_listen_at_one_port() -> None:
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listening_socket("127.0.0.1", port) as second:
            assert second.getsockname()[1] == port


def test_what_an_ingress_has_for_itself_no_other_may_share() -> None:
    with listening_socket("127.0.0.1", 0, is_shared=False) as own, pytest.raises(OSError, match="in use"):
        listening_socket("127.0.0.1", own.getsockname()[1], is_shared=False)


@pytest.mark.parametrize(
    ("host", "node_ip", "reached_at"),
    [("127.0.0.1", "10.0.0.7", "127.0.0.1"), ("0.0.0.0", "10.0.0.7", "10.0.0.7"), ("::1", "10.0.0.7", "[::1]")],
)
def test_a_socket_is_reached_at_its_host_or_where_its_node_is(host: str, node_ip: str, reached_at: str) -> None:
    with listening_socket(host, 0, is_shared=False) as listener:
        port = listener.getsockname()[1]
        assert reachable_address(listener, node_ip) == f"{reached_at}:{port}"
