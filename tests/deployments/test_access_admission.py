"""Keys and quotas at the endpoint, over HTTP without a network."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from access_builders import Echo, Hands, key_file, made_key

from deployments.access.admission import OPEN_PATHS, Admission
from deployments.access.keyring import Keyring
from deployments.access.quotas import Quotas, current_charge

KEY, RECORD = made_key()
READER, READER_RECORD = made_key("dashboard", role="read")
GENERATE = "/v1/chat/completions"


def play(
    scenario: Callable[[httpx.AsyncClient], Awaitable[None]], directory: Path, app: Any = None, record: Any = RECORD
) -> Admission:
    """Play a scenario with a client of an application for which a key is needed."""
    keyring = Keyring(key_file(directory / "keys.json", record, READER_RECORD), now_s=Hands())
    admission = Admission(app or Echo(), keyring, Quotas(Hands()))

    async def connected() -> None:
        transport = httpx.ASGITransport(app=admission)
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            await scenario(client)

    asyncio.run(connected())
    return admission


@pytest.mark.parametrize("path", [GENERATE, "/v1/models", "/metrics", "/version", "/tokenize", "/health/", "//health"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {READER}"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"x-api-key": KEY},
        {"Cookie": f"key={KEY}"},
    ],
    ids=str,
)
def test_without_a_key_for_the_endpoint_nothing_is_answered(
    path: str, method: str, headers: dict[str, str | bytes], tmp_path: Path
) -> None:
    app = Echo()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path, headers=httpx.Headers(list(headers.items())))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="archipelago"'
        if method != "HEAD":
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert KEY not in answer.text

    play(scenario, tmp_path, app)
    assert app.scopes == []


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (GENERATE, {"Authorization": f"Bearer {KEY}"}),
        (GENERATE, {"Authorization": f"bearer   {KEY} "}),
        ("/v1/messages", {"x-api-key": KEY}),
        ("/v1/messages", {"Authorization": f"Bearer {KEY}"}),
        ("/v1/messages/count_tokens", {"x-api-key": KEY, "anthropic-version": "2023-06-01"}),
    ],
)
def test_a_key_opens_and_goes_no_further(path: str, headers: dict[str, str], tmp_path: Path) -> None:
    app = Echo()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, json={"a": 1}, headers=headers)
        assert (answer.status_code, answer.text) == (200, "7")
        assert (await client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})).status_code == 200

    play(scenario, tmp_path, app)
    for scope in app.scopes:
        assert KEY not in repr(scope)
        assert scope["state"]["api_key"] == "alice"
        assert {b"host", b"user-agent"} <= {name for name, _ in scope["headers"]}


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_need_no_key(path: str, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path)).status_code == 200
        assert (await client.post(path)).status_code == 401

    play(scenario, tmp_path)


def test_a_browser_may_ask_whether_it_may_ask(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        preflight = {"Origin": "https://a.test", "Access-Control-Request-Method": "POST"}
        assert (await client.options(GENERATE, headers=preflight)).status_code == 200
        assert (await client.post(GENERATE, headers=preflight)).status_code == 401

    play(scenario, tmp_path)


def test_anthropic_clients_are_answered_in_their_words(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/messages", headers={"x-api-key": "sk-ant-wrong"})
        assert answer.status_code == 401
        message = "The API key is not known."
        assert answer.json() == {"type": "error", "error": {"type": "authentication_error", "message": message}}

    play(scenario, tmp_path)


def test_beyond_its_quota_a_key_is_told_when_to_come_back(tmp_path: Path) -> None:
    key, record = made_key("small", requests_per_minute=2)
    authorization = {"Authorization": f"Bearer {key}"}

    async def scenario(client: httpx.AsyncClient) -> None:
        for status in (200, 200, 429, 429):
            answer = await client.post(GENERATE, json={}, headers=authorization)
            assert answer.status_code == status
        assert answer.headers["retry-after"] == "30"
        error = answer.json()["error"]
        assert error["message"] == "The key 'small' has reached its limit of 2 requests per minute."
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert (await client.get("/v1/models", headers=authorization)).status_code == 200  # nothing is computed

    admission = play(scenario, tmp_path, record=record)
    assert admission.refused == {("small", 429): 2}


def test_what_the_engine_reports_is_charged_and_the_estimate_given_back(tmp_path: Path) -> None:
    key, record = made_key("counted", tokens_per_minute=1000)
    used = iter((100, 5000, 0))

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        charge = current_charge.get()
        assert charge is not None
        charge.use(next(used))
        await Echo()(scope, receive, send)

    async def scenario(client: httpx.AsyncClient) -> None:
        for size, status in ((4 * 900, 200), (4 * 800, 200), (4, 429)):
            answer = await client.post(GENERATE, content=b"x" * size, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status
        assert int(answer.headers["retry-after"]) > 60 * 4

    play(scenario, tmp_path, engine, record)
    assert current_charge.get() is None


def test_a_request_that_fails_is_not_charged_for_ever(tmp_path: Path) -> None:
    key, record = made_key("failing", tokens_per_minute=1000)

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await client.post(GENERATE, content=b"x" * 3600, headers={"Authorization": f"Bearer {key}"})

    assert not play(scenario, tmp_path, broken, record).refused


def test_a_websocket_is_closed_before_it_opens(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    admission = Admission(Echo(), Keyring(key_file(tmp_path / "k", RECORD), now_s=Hands()), Quotas(Hands()))
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [(b"authorization", f"Bearer {KEY}".encode())]}
    asyncio.run(admission(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_key_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for key in (KEY, READER, "ak-wrong"):
            await client.post(GENERATE, headers={"Authorization": f"Bearer {key}"})

    with caplog.at_level(logging.DEBUG):
        play(scenario, tmp_path)
    for key in (KEY, READER, "ak-wrong"):
        assert key not in caplog.text
