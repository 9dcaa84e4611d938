"""What is let in at the endpoint, and what is refused early, before vLLM's own application sees it."""

import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from deployments.access.priorities import current_least_priority, granted
from deployments.access.refusing import AsgiApp, Message, Receive, Scope, Send
from deployments.link import FleetLink
from deployments.metrics.plain_text import plain_text
from deployments.routing import Arrival, Refusal
from deployments.traffic import Place

RETRY_AFTER_S = 5
BYTES_PER_TOKEN = 4
# These say something about the ingress itself, so they answer while no replica is ready.
ALWAYS_OPEN_PATHS = frozenset({"/metrics", "/version", "/ping"})
# A POST to one of these is a request to generate: what vLLM serves of a model that generates (vllm/entrypoints/*).
GENERATING_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/cohere/v2/chat",
        "/inference/v1/generate",
        "/invocations",
    }
)
# What ends like this is no text: nothing that is written goes on for so long without a space.
_BASE64_RUN = 1000
_BASE64 = re.compile(rf"[A-Za-z0-9+/_=-]{{{_BASE64_RUN}}}")


class Gate:
    """ASGI middleware that refuses early, with Retry-After, what would otherwise hang, time out or fail.

    503 while no replica is ready, 429 while all have more than they can do in time; batch requests (``priority`` above
    0 in the body, or of their key) before others. By then the length of a prompt is not known, only that of the body.
    What is let in counts from then on, long before vLLM has rendered its prompt and sends it.
    """

    def __init__(self, app: AsgiApp, link: FleetLink) -> None:
        self._app = app
        self._link = link
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_OPEN_PATHS:
            is_scraped = scope["type"] == "http" and scope["path"] == "/metrics"
            await (plain_text(self._app) if is_scraped else self._app)(scope, receive, send)
            return
        self._link.asked.arrivals += generates(scope)
        if not self._link.is_open:
            await self._refuse(scope, send, HTTPStatus.SERVICE_UNAVAILABLE, self._why_closed(), RETRY_AFTER_S)
        elif scope["method"] == "POST":
            await self._admit(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._place(int(dict(scope["headers"]).get(b"content-length", 0)), priority=1)
        if isinstance(answer, Refusal):
            # No room for a batch request of text; for an interactive one, or one with media, there may be.
            messages = [message async for message in _body(receive)]
            receive = _replay(messages, receive)
            answer = self._place_of(b"".join(message.get("body", b"") for message in messages))
        if isinstance(answer, Refusal):
            why = f"The server is overloaded: {answer.reason}."
            await self._refuse(scope, send, answer.status, why, answer.retry_after_s)
            return
        with answer.kept() if generates(scope) else contextlib.nullcontext():
            await self._app(scope, receive, send)

    def _place_of(self, body: bytes) -> Place | Refusal:
        request = _parsed(body)
        priority = granted(_priority(request), current_least_priority.get())
        return self._place(len(body) - _media_bytes(request), priority)

    def _place(self, text_bytes: int, priority: int) -> Place | Refusal:
        name = f"{self._link.name}/{next(self._numbers)}"
        prompt_tokens = text_bytes // BYTES_PER_TOKEN + 1
        return self._link.admit(Arrival(request_id=name, prompt_tokens=prompt_tokens, max_tokens=1, priority=priority))

    async def _refuse(self, scope: Scope, send: Send, status: HTTPStatus, why: str, retry_after_s: int) -> None:
        self._link.asked.refused[status] += generates(scope)
        await _answer_error(send, status, why, retry_after_s)

    def _why_closed(self) -> str:
        if self._link.membership.is_closing:
            what = "model is being removed" if self._link.membership.is_going else "server is being stopped"
            return f"The {what} and takes no new requests."
        planned = self._link.membership.planned_replicas
        return f"The model is not ready yet: 0 of {planned} replicas are up. Try again in {RETRY_AFTER_S} s."


def generates(scope: Scope) -> bool:
    """Whether it asks for tokens."""
    return scope["method"] == "POST" and scope["path"] in GENERATING_PATHS


async def _answer_error(send: Send, status: HTTPStatus, message: str, retry_after_s: int) -> None:
    kind = status.phrase.replace(" ", "")
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status.value}})
    headers = [(b"content-type", b"application/json"), (b"retry-after", str(retry_after_s).encode())]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


async def _body(receive: Receive) -> AsyncIterator[Message]:
    while True:
        message = await receive()
        yield message
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None  # what is wrong with it the application will say


def _priority(request: Any) -> int:
    try:
        return int(request.get("priority", 0))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return 0  # as above


def _media_bytes(request: Any) -> int:
    """How much of it is images, sounds and the like: a megabyte of them is a thousand tokens, not 250,000."""
    found, left = 0, [request]
    while left:
        match left.pop():
            case dict() as fields:
                left.extend(fields.values())
            case list() as items:
                left.extend(items)
            case str(text) if _BASE64.fullmatch(text, max(0, len(text) - _BASE64_RUN)):
                found += len(text)
    return found


def _replay(messages: list[Message], receive: Receive) -> Receive:
    async def replayed() -> Message:
        return messages.pop(0) if messages else await receive()

    return replayed
