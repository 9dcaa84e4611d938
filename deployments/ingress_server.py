"""The replica's end of the wire: takes requests of the ingresses that connect, sends each its share of every step."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.peer import LEASE_S, MOST_SILENT_RENEWALS, RENEW_S, Frames
from deployments.wire import CONNECT_TIMEOUT_S, greeted, pack, read_message, unpack_batch, write

# What an ingress may leave unread before it counts as gone: minutes of steps, long before memory runs short.
MAX_UNREAD_BYTES = 256 * 2**20

log = logging.getLogger("ray.serve")


class Engine(Protocol):
    """What takes the requests."""

    async def submit(self, owner: str, frames: Frames) -> None:
        """Queue one request of an ingress."""

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests."""

    async def abort_all_of(self, owner: str) -> None:
        """Drop every request of an ingress."""


@dataclass(slots=True)
class _Connection:
    writer: asyncio.StreamWriter
    task: asyncio.Task[Any]
    silent_renewals: int = 0


class IngressServer:
    """The connections of all ingresses to one engine."""

    def __init__(self, engine: Engine, secret: str, tls: ssl.SSLContext | None = None) -> None:
        self._engine = engine
        self._secret = secret
        self._tls = tls
        self._connections: dict[str, _Connection] = {}
        self._server: asyncio.Server | None = None

    async def listen(self, host: str) -> int:
        """Accept connections at a free port, which is returned."""
        patience_s = CONNECT_TIMEOUT_S if self._tls else None  # asyncio takes it together with a context only
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=self._tls, ssl_handshake_timeout=patience_s)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def deliver(self, steps: Mapping[str, Frames]) -> None:
        """Send each ingress its part of an engine step."""
        for ingress, frames in steps.items():
            connection = self._connections.get(ingress)
            if connection is not None:
                write(connection.writer, pack(frames))

    def close(self) -> None:
        """Stop listening and drop every connection, with the requests that came over it."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections.values():
            connection.task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # To be cancelled is a way to end here, but Python 3.11 logs it as an error (asyncio/streams.py:248).
        with contextlib.suppress(asyncio.CancelledError):
            await self._converse(reader, writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ingress = ""
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(writer, task)
        try:
            ingress = await greeted(reader, self._secret)
            await self._end_connection_of(ingress)
            self._connections[ingress] = connection
            async with asyncio.TaskGroup() as both:
                both.create_task(self._renew(connection))
                both.create_task(self._take(ingress, reader, connection))
        except* (OSError, EOFError, TimeoutError) as errors:
            log.info("ingress %s has gone: %r", ingress or "(unknown)", errors.exceptions[0])
        finally:
            writer.transport.abort()  # not close(), which would keep what nobody reads until it is read
            if self._connections.get(ingress) is connection:
                del self._connections[ingress]
                await self._engine.abort_all_of(ingress)

    async def _end_connection_of(self, ingress: str) -> None:
        """End the earlier connection, which the ingress has given up: nothing that is still in it may be taken."""
        while (earlier := self._connections.get(ingress)) is not None:
            earlier.task.cancel()
            await asyncio.wait([earlier.task])

    async def _take(self, ingress: str, reader: asyncio.StreamReader, connection: _Connection) -> None:
        while True:
            batch = unpack_batch(await read_message(reader))
            connection.silent_renewals = 0
            if batch.requests:
                write(connection.writer, pack([]))  # they are here, so if this process dies it may be of them
            for frames in batch.requests:
                await self._engine.submit(ingress, frames)
            if batch.aborts:
                await self._engine.abort(batch.aborts)

    async def _renew(self, connection: _Connection) -> None:
        while connection.silent_renewals <= MOST_SILENT_RENEWALS:
            if connection.writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                raise ConnectionError(f"it has left {MAX_UNREAD_BYTES} bytes unread")
            write(connection.writer, pack([]))
            await asyncio.sleep(RENEW_S)
            connection.silent_renewals += 1
        raise TimeoutError(f"nothing heard for {LEASE_S:g} s")
