"""Sends one request and reads its stream, on gevent: thousands of them beside each other in one process.

It is geventhttpclient, which is also what Locust's FastHttpUser stands on, without the layers above it. Those hide what
counts here: `iter_lines` waits until it has 1024 bytes (locust/contrib/fasthttp.py, `read(chunk_size)`), at most ten
requests of a user go out at once, and redirects are followed.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any

import gevent  # type: ignore[import-untyped]
from geventhttpclient.client import HTTPClient
from geventhttpclient.connectionpool import ConnectionPool
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketPoolResponse

from loadtests.answers import Answer, said
from loadtests.prompts import Prompts, text_prompts, token_prompts
from loadtests.records import Outcome, Record
from loadtests.scenario import Scenario
from loadtests.schedule import Request

REPLICA_HEADER = "x-archipelago-replica"
# Above any peak: a request that waits for a connection of ours would look like a slow server.
_CONNECTIONS = 1 << 20
_CONNECT_TIMEOUT_S = 30.0
# A server may close a connection that was idle for as long as it likes (vLLM: 5 s) just when a request is sent on it;
# that request is lost, and the server is not to blame (RFC 9112, 9.3.1 and 9.5).
_IDLE_S = 2.0
_BLOCK_BYTES = 1 << 16
_REFUSED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_INVALID_EOF_STATE = 14  # HPE_INVALID_EOF_STATE of llhttp, which geventhttpclient hands on as a second argument
_CUT = frozenset({errno.ECONNRESET, errno.EPIPE})
# Limits of the machine that the client runs on: no word about the server.
OWN_LIMITS = tuple(os.strerror(code) for code in (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL))
_PROMPT = b"PROMPT"  # where the prompt goes in a request's JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How a scenario's requests are written as HTTP."""

    path: str
    headers: Mapping[str, str]
    before: bytes
    after: bytes
    prompts: Prompts

    def body(self, request: Request) -> bytes:
        """The JSON of one request, by cutting and joining bytes alone."""
        prompt = self.prompts.of(request.id, request.input_tokens)
        return b"".join((self.before, prompt, self.after, b"%d}" % request.output_tokens))


def wording(scenario: Scenario, model: str, base_path: str, api_key: str | None) -> Wording:
    """How to ask `model` at `base_path` (the path of the endpoint's URL, mostly empty) for a scenario's answers."""
    is_chat = scenario.endpoint == "chat"
    options: dict[str, object] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if scenario.greedy:
        options["temperature"] = 0
    if scenario.ignore_eos:
        options["ignore_eos"] = True
    if scenario.token_ids:
        options["return_token_ids"] = True
    mark = _PROMPT.decode()
    asked = {"messages": [{"role": "user", "content": mark}]} if is_chat else {"prompt": [mark]}
    before, after = json.dumps(asked)[:-1].encode().split(_PROMPT if is_chat else b'"%s"' % _PROMPT)
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return Wording(
        path=base_path + ("/v1/chat/completions" if is_chat else "/v1/completions"),
        headers=headers,
        before=before,
        after=after + b", " + json.dumps(options)[1:-1].encode() + b', "max_tokens": ',
        prompts=(text_prompts if is_chat else token_prompts)(scenario.seed),
    )


class StreamClient:
    """Sends requests to one endpoint. Times in records are seconds after `start_s` on the clock of `perf_counter`."""

    def __init__(self, scenario: Scenario, words: Wording, *, worker: int, start_s: float) -> None:
        self._scenario, self._words, self._worker, self._start_s = scenario, words, worker, start_s
        self._http = HTTPClient.from_url(
            scenario.url,
            concurrency=_CONNECTIONS,
            connection_timeout=min(_CONNECT_TIMEOUT_S, scenario.timeout_s),
            network_timeout=scenario.timeout_s,
            block_size=_BLOCK_BYTES,
        )
        # Looked up once: for every new connection gevent would do it in a thread, whose start others would wait for.
        pool = self._http._connection_pool
        with contextlib.suppress(OSError):  # each request will say that the host is unknown
            addresses = pool._resolve()
            pool._resolve = lambda: addresses  # type: ignore[method-assign]
        _forget_idle(pool)

    def send(self, request: Request, due_s: float) -> Record:
        """Send a request that was due at `due_s`, and read its answer to the end.

        Does not raise for what the server or the network does: that is the record's outcome. A greenlet that is killed
        meanwhile leaves the record of an unfinished request.
        """
        answer = Answer(keeps_text=self._scenario.greedy)
        body = self._words.body(request)
        sent_s = perf_counter() - self._start_s
        response: HTTPSocketPoolResponse | None = None
        try:
            with gevent.Timeout(self._scenario.timeout_s):
                response = self._http.request("POST", self._words.path, body=body, headers=self._words.headers)
                self._read(response, answer, request)
        except (gevent.Timeout, TimeoutError):
            answer.fail("timeout", f"no end within {self._scenario.timeout_s:g} s")
        except gevent.GreenletExit:
            answer.fail("unfinished", "still under way when the time to drain was over")
        except (OSError, HTTPParseError) as error:
            answer.fail(*_cause(error, is_connected=response is not None))
        finally:
            if response is not None:
                response.release()  # one that was not read to its end must not be used again
        return self._record(request, answer, response, due_s=due_s, sent_s=sent_s)

    def close(self) -> None:
        """Close the connections that are kept for later."""
        self._http.close()

    def unsent(self, request: Request, due_s: float, detail: str) -> Record:
        """The record of a request that was due and never sent."""
        answer = Answer(keeps_text=False)
        answer.fail("unfinished", detail)
        return self._record(request, answer, None, due_s=due_s, sent_s=None)

    def _read(self, response: HTTPSocketPoolResponse, answer: Answer, request: Request) -> None:
        status = response.status_code
        if status != HTTPStatus.OK:
            body = b"".join(_chunks(response))
            answer.fail(*_refusal(status, body, response.get("location")))
            return
        for chunk in _chunks(response):
            if not answer.feed(chunk, perf_counter() - self._start_s):
                return
        answer.end(request.output_tokens if self._scenario.ignore_eos else None, perf_counter() - self._start_s)

    def _record(
        self,
        request: Request,
        answer: Answer,
        response: HTTPSocketPoolResponse | None,
        *,
        due_s: float,
        sent_s: float | None,
    ) -> Record:
        replica = response.get(REPLICA_HEADER) if response is not None else None
        return Record(
            id=request.id,
            worker=self._worker,
            class_name=request.class_name,
            scheduled_s=due_s,
            sent_s=sent_s,
            first_s=answer.first_s,
            last_s=answer.last_s,
            ended_s=perf_counter() - self._start_s,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            asked_input_tokens=request.input_tokens,
            asked_output_tokens=request.output_tokens,
            events=answer.events,
            longest_gap_s=answer.longest_gap_s,
            outcome=answer.outcome or "ok",
            status=response.status_code if response is not None else None,
            detail=answer.detail,
            finish_reason=answer.finish_reason,
            replica=replica if isinstance(replica, str) else None,
            text_sha=answer.text_sha(),
        )


def _forget_idle(pool: ConnectionPool) -> None:
    """Let a pool use no connection again that was idle for long."""
    returned_s: dict[int, float] = {}
    is_alive, return_socket = pool._is_socket_alive, pool.return_socket

    def is_alive_and_young(sock: Any) -> bool:
        return perf_counter() - returned_s.pop(sock.fileno(), -math.inf) < _IDLE_S and is_alive(sock)

    def return_timed(sock: Any) -> None:
        returned_s[sock.fileno()] = perf_counter()
        return_socket(sock)

    pool._is_socket_alive, pool.return_socket = is_alive_and_young, return_timed  # type: ignore[method-assign]


def _chunks(response: HTTPSocketPoolResponse) -> Iterator[bytes]:
    """The body, each part as soon as it is there.

    geventhttpclient's `read(n)` waits for n bytes, and its `readline` looks through a long line anew with every block,
    so this does what `readline` does, without the line. Raises HTTPConnectionClosed where the body ends too soon.
    """
    while True:
        if response._body_buffer:
            chunk = bytes(response._body_buffer)
            response._body_buffer.clear()
            yield chunk
        if response.message_complete or response._sock is None:
            return
        data = response._sock.recv(_BLOCK_BYTES)
        if data:
            response.feed(data)
        else:
            _end(response)
        if len(data) == _BLOCK_BYTES:
            gevent.sleep(0)  # gevent does not switch while there is data: one fast answer would hold up all others


def _end(response: HTTPSocketPoolResponse) -> None:
    """The server has closed the connection: the end of a body whose length was not given, too soon for any other."""
    with contextlib.suppress(HTTPParseError):
        response.feed(b"")
    if not response.message_complete:
        raise HTTPConnectionClosed("incomplete")


def _refusal(status: int, body: bytes, location: object) -> tuple[Outcome, str]:
    if status in _REFUSED:
        return "refused", f"HTTP {status}: {said(body)}"
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return "redirect", f"HTTP {status} to {location}; give the URL that it leads to"
    return "http-error", f"HTTP {status}: {said(body)}"


def _cause(error: OSError | HTTPParseError, *, is_connected: bool) -> tuple[Outcome, str]:
    """What an exception of the HTTP client says about the request."""
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in _CUT:
        return "cut", detail
    if isinstance(error, HTTPConnectionClosed) or error.args[-1:] == (_INVALID_EOF_STATE,):
        return "cut", f"the connection was closed before the end of the answer ({error})"
    if isinstance(error, HTTPParseError):
        return "garbage", detail
    return ("cut" if is_connected else "unreachable"), detail
