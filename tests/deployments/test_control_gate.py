import time

import httpx
import pytest
from access_builders import served, talk
from control_builders import CALLERS, MODEL, READ, WRITE, MemoryFleet, fleet_view, raw_client

from deployments.access.settings import Access
from deployments.control import gate
from deployments.control.api import control_app
from deployments.control.gate import Caller, known_tokens
from deployments.control.wire import Problem

PUT = ("PUT", f"/v1/fleet/{MODEL}/pools")
READS = [
    ("GET", "/v1/fleet"),
    ("GET", f"/v1/fleet/{MODEL}"),
    ("GET", "/v1/events"),
    ("GET", "/v1/audit"),
]
CLOSED = [*READS, PUT, ("GET", "/v1/events/stream"), ("GET", "/v1/nothing"), ("GET", "/"), ("GET", "/docs")]


def ask(http: httpx.Client, method: str, path: str, **headers: str | bytes) -> httpx.Response:
    body = {"pools": {"tp4": 1}, "reason": "a test"} if method == "PUT" else None
    return http.request(method, path, json=body, headers=httpx.Headers(list(headers.items())))


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", f"Basic {WRITE}", WRITE, f"Bearer {WRITE}x", f"Bearer {WRITE[:-1]}", "Bearer \xe9\xff"],
)
def test_nothing_is_open_without_a_known_token(method: str, path: str, authorization: str) -> None:
    fleet = MemoryFleet()
    with raw_client(fleet, token=None) as http:
        response = ask(
            http, method, path, **({"Authorization": authorization.encode("latin-1")} if authorization else {})
        )
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith('Bearer realm="archipelago"')
    assert Problem.model_validate_json(response.content).detail.startswith("Authorization: ")
    assert WRITE not in response.text
    assert fleet.views[MODEL] == fleet_view()


def test_a_wrong_token_is_told_apart_from_none() -> None:
    with raw_client(MemoryFleet(), token=None) as http:
        assert "error" not in ask(http, "GET", "/v1/fleet").headers["www-authenticate"]
        wrong = ask(http, "GET", "/v1/fleet", Authorization="Bearer guess")
    assert 'error="invalid_token"' in wrong.headers["www-authenticate"]


@pytest.mark.parametrize("token", [READ, WRITE])
@pytest.mark.parametrize(("method", "path"), READS)
def test_either_role_reads(token: str, method: str, path: str) -> None:
    with raw_client(MemoryFleet(), token) as http:
        assert ask(http, method, path).status_code == 200


def test_only_writers_write() -> None:
    fleet = MemoryFleet()
    with raw_client(fleet, READ) as http:
        refused = ask(http, *PUT)
    assert refused.status_code == 403
    assert 'error="insufficient_scope", scope="operate"' in refused.headers["www-authenticate"]
    assert "the token 'dashboard' may only read" in Problem.model_validate_json(refused.content).detail
    assert fleet.views[MODEL] == fleet_view()
    with raw_client(fleet, WRITE) as http:
        assert ask(http, *PUT).json()["changed"] is True


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json"])
def test_what_is_open_needs_no_token(path: str) -> None:
    with raw_client(MemoryFleet(), token=None) as http:
        assert http.get(path).status_code == 200


def test_the_scheme_is_written_as_one_likes() -> None:
    with raw_client(MemoryFleet(), token=None) as http:
        assert ask(http, "GET", "/v1/fleet", Authorization=f"bearer  {READ}").status_code == 200


def test_an_empty_token_lets_nobody_in() -> None:
    with pytest.raises(ValueError, match="token is empty"):
        known_tokens({"": Caller(name="anybody", role="operate")})
    assert known_tokens(CALLERS)("") is None


@pytest.mark.parametrize("request_line", [f"PUT /v1/fleet/{MODEL}/pools", "GET /v1/events/stream"])
def test_a_body_that_does_not_end_holds_no_connection(monkeypatch: pytest.MonkeyPatch, request_line: str) -> None:
    monkeypatch.setattr(gate, "BODY_TIMEOUT_S", 0.3)
    head = f"{request_line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRITE}\r\nConnection: close\r\n"
    half = b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"pools": '
    began_s = time.monotonic()
    with served(control_app(MemoryFleet(), known_tokens(CALLERS)), Access(), is_endpoint=False) as port:
        answer = talk(port, head.encode() + half)
    assert time.monotonic() - began_s < 15
    if request_line.startswith("PUT"):
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body: not complete after 0.3 s; send it at once." in answer
