"""How large the body of a request may be and how long it may take: ASGI middleware.

The application may read a body inside its own error handling (FastAPI turns what is raised there into 400), so it is
told that the client has gone, and its answer is replaced.
"""

import asyncio
import contextlib
from http import HTTPStatus

from deployments.access.refusing import AsgiApp, Message, Receive, Scope, Send, error_body, refuse
from deployments.access.settings import EdgeLimits

SAY_END_S = 1.0  # for the last words to a client that may have stopped to read


class Bounds:
    """413 for a body that is too large, 408 for one that takes too long; a response that takes too long is cut off."""

    def __init__(self, app: AsgiApp, limits: EdgeLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and watch."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._limits)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.max_body_bytes:
            await request.refuse_body()
            return
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                await self._app(scope, request.receive, request.send)
        except TimeoutError:
            if not request.is_out_of_time:  # it is the application's own
                raise
            await request.cut_off()
            return
        except Exception:
            if request.problem is None:  # else it is about the client that it believes has gone
                raise
        if request.problem is not None:
            await request.refuse_body()


class _Request:
    """One request on its way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: EdgeLimits) -> None:
        self.problem: HTTPStatus | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._received_bytes = 0
        self._has_body = False
        self._has_started = False
        self._is_event_stream = False

    @property
    def is_out_of_time(self) -> bool:
        return self._loop.time() - self._began_s >= self._limits.request_timeout_s

    async def receive(self) -> Message:
        """The next part of the body, or the end of the client."""
        if self._has_body:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._began_s + self._limits.body_timeout_s):
                message = await self._receive()
        except TimeoutError:
            return self._give_up(HTTPStatus.REQUEST_TIMEOUT)
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._limits.max_body_bytes:
            return self._give_up(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._has_body = not message.get("more_body", False)
        return message

    def _give_up(self, problem: HTTPStatus) -> Message:
        self.problem = problem
        self._has_body = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if self.problem is not None and not self._has_started:
            return
        if message["type"] == "http.response.start":
            self._has_started = True
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._is_event_stream = kind.startswith(b"text/event-stream")
        await self._send(message)

    async def refuse_body(self) -> None:
        """Answer instead of the application, where it has not begun to."""
        if self._has_started:
            return
        if self.problem is HTTPStatus.REQUEST_TIMEOUT:
            why = f"The body did not arrive within {self._limits.body_timeout_s:g} s."
            await refuse(self._scope, self._send, HTTPStatus.REQUEST_TIMEOUT, why)
        else:
            why = f"The body is too large; give at most {self._limits.max_body_bytes} bytes."
            await refuse(self._scope, self._send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)

    async def cut_off(self) -> None:
        """Tell the client that its time is over, where it can still be told; the connection ends in any case."""
        why = f"The request took longer than {self._limits.request_timeout_s:g} s, and was ended."
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAY_END_S):
                if not self._has_started:
                    await refuse(self._scope, self._send, HTTPStatus.GATEWAY_TIMEOUT, why)
                elif self._is_event_stream:
                    event = b"data: " + error_body(self._scope["path"], HTTPStatus.GATEWAY_TIMEOUT, why) + b"\n\n"
                    await self._send({"type": "http.response.body", "body": event, "more_body": True})
