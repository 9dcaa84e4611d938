"""What one client may cost: over real connections, some of which no HTTP library would make."""

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from access_builders import Echo, served, talk

from deployments.access.listening import FILES_FOR_OTHERS, allowed_connections
from deployments.access.settings import Access, EdgeLimits

SHORT_S = 0.4
LIMITS = EdgeLimits(
    max_connections=64,
    max_header_bytes=4096,
    max_headers=20,
    max_body_bytes=10_000,
    header_timeout_s=SHORT_S,
    body_timeout_s=SHORT_S,
    request_timeout_s=30.0,
)
ACCESS = Access(limits=LIMITS)
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
END = b"Connection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([GET + END], 200),
        ([POST + b"Content-Length: 10000\r\n" + END + b"x" * 10_000], 200),
        ([POST + b"Content-Length: 10001\r\n" + END + b"x" * 10_001], 413),
        ([POST + b"Content-Length: 99999999999999999999\r\n" + END], 400),  # more than 64 bits is no HTTP
        ([POST + b"Content-Length: 999999999999999999\r\n" + END], 413),
        ([POST + CHUNKED + END + b"2710\r\n" + b"x" * 10_000 + b"\r\n0\r\n\r\n"], 200),
        ([POST + CHUNKED + END, *[b"1f4\r\n" + b"x" * 500 + b"\r\n"] * 21, b"0\r\n\r\n"], 413),
        ([POST + CHUNKED + END + b"1\r\na\r\n0\r\nTrailer: ", *[b"y" * 65_536] * 32], 0),
        ([GET + b"X: " + b"a" * 5000 + b"\r\n" + END], 431),
        ([GET + b"X: ", *[b"a" * 1000] * 9], 431),
        ([GET, *[b"X: a\r\n"] * 30, END], 431),
        ([b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n" + END], 431),
        ([b"GET /" + b"a" * 60_000], 431),
        ([b"\x16\x03\x01 hello"], 400),
        ([POST + b"Content-Length: 3\r\n" + CHUNKED + END + b"0\r\n\r\n"], 400),
        ([POST + b"Content-Length: -1\r\n" + END], 400),
        ([POST + b"Content-Length: 3\r\nContent-Length: 4\r\n" + END + b"abc"], 400),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_too_much_or_no_http_is_refused(parts: Sequence[bytes], status: int) -> None:
    with served(Echo(), ACCESS) as port:
        answer = talk(port, *parts)
        assert status_of(answer) == status, answer
        assert status_of(talk(port, GET + END)) == 200


def test_it_does_not_matter_what_an_application_makes_of_a_body_that_ends() -> None:
    async def upset(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] == "http.request":
            pass
        raise ConnectionError("the client has gone")

    async def calm(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] == "http.request":
            pass
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"There was an error parsing the body"})

    for app in (upset, calm):
        with served(app, ACCESS) as port:
            chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
            assert status_of(talk(port, POST + CHUNKED + END, chunk * 21)) == 413
            assert status_of(talk(port, POST + CHUNKED + END, chunk)) == 408


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([], 0),
        ([b"\r\n"], 0),
        ([b"GET / HT"], 0),
        ([GET], 0),
        ([POST + b"Content-Length: 10\r\n" + END + b"abc"], 408),
        ([POST + CHUNKED + END + b"5\r\nab"], 408),
        ([GET + b"\r\n", b"\r\n"], 200),  # between two requests
        ([GET + b"\r\n", b"GET / HT"], 200),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_who_is_slow_to_ask_is_let_go(parts: Sequence[bytes], status: int) -> None:
    with served(Echo(), ACCESS) as port:
        began_s = time.monotonic()
        answer = talk(port, *parts)
        assert status_of(answer) == status
        assert SHORT_S * 0.9 < time.monotonic() - began_s < 20


def test_a_stream_ends_at_its_time_and_says_so() -> None:
    access = Access(limits=replace(LIMITS, request_timeout_s=SHORT_S))
    with served(Echo(events=10_000), access) as port:
        answer = talk(port, GET + END)
    assert status_of(answer) == 200
    assert b"data: 5\n\n" in answer
    assert b"The request took longer than 0.4 s, and was ended." in answer
    assert not answer.endswith(b"0\r\n\r\n"), "the client must not take it for the end"


def test_who_has_said_nothing_yet_says_that_it_took_too_long() -> None:
    async def asleep(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    access = Access(limits=replace(LIMITS, request_timeout_s=SHORT_S))
    with served(asleep, access) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 504


def test_a_client_that_does_not_read_is_let_go() -> None:
    """It would keep the request, and what is written for it, for ever."""
    access = Access(limits=replace(LIMITS, request_timeout_s=SHORT_S))
    ended: list[bool] = []

    async def torrent(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        finally:
            ended.append(True)

    with served(torrent, access) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(GET + END)
        deadline_s = time.monotonic() + 30
        while not ended and time.monotonic() < deadline_s:
            time.sleep(0.05)
    assert ended


def test_requests_that_come_before_the_answer_are_answered_in_order_and_not_without_end() -> None:
    with served(Echo(), ACCESS) as port:
        assert talk(port, (GET + b"\r\n") * 10 + GET + END).count(b"HTTP/1.1 200") == 11
    with served(Echo(events=5), ACCESS) as port:
        assert talk(port, (GET + b"\r\n") * 5000).count(b"HTTP/1.1 200") < 100


def test_idle_connections_make_room_for_those_that_ask() -> None:
    access = Access(limits=replace(LIMITS, max_connections=16, header_timeout_s=60.0))
    with served(Echo(), access) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        try:
            assert all(status_of(talk(port, GET + END)) == 200 for _ in range(5))
        finally:
            for connection in idle:
                connection.close()


def test_when_all_connections_are_at_work_a_new_one_is_told_to_come_back() -> None:
    access = Access(limits=replace(LIMITS, max_connections=16))
    with served(Echo(events=10_000), access) as port:
        busy = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(16)]
        try:
            for connection in busy:
                connection.sendall(GET + b"\r\n")
                assert connection.recv(100)
            assert status_of(talk(port, GET + END)) == 503
        finally:
            for connection in busy:
                connection.close()


def test_the_process_may_have_the_files_open_that_its_connections_need() -> None:
    assert allowed_connections(100) == 100
    assert 0 < allowed_connections(10**9) <= 10**9
    assert FILES_FOR_OTHERS > 100
