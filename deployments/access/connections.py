"""HTTP/1.1 connections that a client can neither hold open for nothing nor fill the memory through.

uvicorn with httptools bounds neither the head of a request nor the time it takes to arrive: its only timer runs between
two requests (uvicorn/protocols/http/httptools_impl.py). What is added here is counted in bytes as they come, since the
parser keeps a header until it is complete.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployments.access.refusing import error_body
from deployments.access.settings import EdgeLimits

# What is written last may wait this long for a client to read it.
LINGER_S = 5.0
# Closed at once, with something unread, TCP would reset the connection and the client might lose the answer (RFC 9112,
# section 9.6).
READ_ON_S = 1.0
# Requests that a client may send before the answer to its first one. Hardly any client does so, and each takes memory.
MAX_PIPELINED = 16


class Connections:
    """Those of one server. When it is full, the one that has been idle the longest makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[GuardedProtocol] = set()
        self._idle: dict[GuardedProtocol, None] = {}  # in the order in which they became so

    def open(self, connection: "GuardedProtocol") -> bool:
        """Take one more; False when there is no room."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            self.close(oldest)
            oldest.abort()
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def close(self, connection: "GuardedProtocol") -> None:
        """It has gone."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def busy(self, connection: "GuardedProtocol") -> None:
        """A request of it is being answered."""
        self._idle.pop(connection, None)

    def idle(self, connection: "GuardedProtocol") -> None:
        """Nothing of it is being answered."""
        if connection in self._open:
            self._idle[connection] = None


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Its head has `header_timeout_s` from when the connection opened or its last answer ended."""

    def __init__(self, *args: Any, limits: EdgeLimits, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._all = connections
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # since the last thing that the application was given, to within one read
        self._headers_seen = 0
        self._is_over = False
        self._is_last = False  # the next answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if self._all.open(self):
            self._arm(self._limits.header_timeout_s, self._close)
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "All connections are in use; try again in a moment.")
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._all.close(self)
        self._disarm()
        self._is_over = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and count it."""
        if self._is_over:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse_head(f"The headers are too long; send at most {self._limits.max_header_bytes} bytes.")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._headers_seen = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those that may follow a body in chunks come here too."""
        self._headers_seen += 1
        if self._headers_seen <= self._limits.max_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request is there."""
        head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._headers_seen > self._limits.max_headers:
            self._refuse_head(f"There are too many headers; send at most {self._limits.max_headers}.")
        elif head_bytes > self._limits.max_header_bytes:
            self._refuse_head(f"The headers are too long; send at most {self._limits.max_header_bytes} bytes.")
        elif len(self.pipeline) >= MAX_PIPELINED:
            self.abort()
        elif not self._is_over:
            self._head_bytes = 0
            self._all.busy(self)
            self._arm(self._limits.request_timeout_s + LINGER_S, self.abort)
            super().on_headers_complete()
            if self._is_last:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of a body, which the application bounds."""
        if not self._is_over:
            self._head_bytes = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        if not self._is_over:
            self._head_bytes = 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been written; the next request may be waiting already."""
        if not self.pipeline and not self._is_over:
            self._all.idle(self)
            self._arm(self._limits.header_timeout_s, self._close)
        super().on_response_complete()

    def shutdown(self) -> None:
        """The server leaves: say so with the next answer, since a client may be sending a request just now.

        One that sends none is closed when it has been idle for as long as any may be.
        """
        self._is_last = True

    def send_400_response(self, msg: str) -> None:
        """What the parser did not understand; nothing where an answer has been given or begun."""
        if not self._is_over:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def abort(self) -> None:
        """End the connection now, whatever is still to be written."""
        self._is_over = True
        self.transport.abort()

    def _refuse_head(self, message: str) -> None:
        if not self._is_over:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer without the application and close; where another answer is being written, only close."""
        self._is_over = True
        if not getattr(self.cycle, "response_complete", True):  # None before the first request
            self.transport.abort()
            return
        body = error_body("", status, message)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self._arm(READ_ON_S, self._close)

    def _close(self) -> None:
        """Close when all is written, or after a moment."""
        self.transport.close()
        self._arm(LINGER_S, self.abort)

    def _arm(self, delay_s: float, then: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
