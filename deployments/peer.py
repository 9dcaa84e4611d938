"""One replica as an ingress reaches it: a connection that is made again whenever it breaks, and the mail for it.

A connection carries one message per engine step for all requests of this ingress; one message per token would cost a
third of the throughput. Upstream, whatever gathers in one turn of the event loop goes as one batch.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from deployments.membership import Member

Frames = list[bytes]

RECONNECT_S = 0.2
# A replica drops the requests of an ingress it has not heard of for LEASE_S, and an ingress gives up a replica that was
# silent for as long; both send something every RENEW_S. A broken connection is noticed at once: this is for the rest.
# Silence is counted in renewals of one's own, not by the clock: who was stopped, or too busy to listen, heard nobody
# and must not blame the others.
RENEW_S = 1.0
LEASE_S = 10.0
MOST_SILENT_RENEWALS = int(LEASE_S / RENEW_S)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """What an ingress tells one replica at a time; an empty one renews its lease."""

    requests: tuple[Frames, ...] = ()
    aborts: tuple[str, ...] = ()


class Connection(Protocol):
    """An open connection to one replica."""

    def send(self, batch: Batch) -> None:
        """Write a batch; never waits."""

    async def receive(self) -> Frames:
        """Wait for the next engine step; an empty message is a sign of life. Raises OSError when the replica goes."""


Dial = Callable[[Member, str], AbstractAsyncContextManager[Connection]]


class Listener(Protocol):
    """Who is told what becomes of a replica."""

    def connected(self) -> None:
        """A replica can take requests."""

    def stepped(self, replica: str, frames: Frames) -> None:
        """A replica has sent an engine step."""

    def lost(self, peer: "Peer") -> None:
        """The connection has broken: what was on the replica is gone. Mail for it has been dropped."""


class Peer:
    """A replica, from when it joins the fleet until it leaves."""

    def __init__(self, member: Member, ingress: str, dial: Dial, listener: Listener) -> None:
        self.member = member
        self._ingress = ingress
        self._dial = dial
        self._listener = listener
        self._connection: Connection | None = None
        self._is_closed = False
        self._complaint = ""  # why there is no connection, as last told
        self._silent_renewals = 0
        self._messages = 0
        self._requests: list[Frames] = []
        self._aborts: list[str] = []
        self._task = asyncio.create_task(self._stay_connected())

    @property
    def is_connected(self) -> bool:
        """Whether the replica has been heard of on this connection."""
        return self._connection is not None

    @property
    def takes_requests(self) -> bool:
        """Whether requests may be sent now. A replica is ready with its first message."""
        return self._connection is not None and not self.member.leaves

    @property
    def messages(self) -> int:
        """How many have come. A replica answers a batch of requests at once, so it shows by them that it has got it."""
        return self._messages

    def send(self, frames: Frames) -> None:
        """Put a request in the mail."""
        self._requests.append(frames)
        self._mail()

    def abort(self, wire_id: str) -> None:
        """Put an abort in the mail; it arrives behind the request it aborts."""
        self._aborts.append(wire_id)
        self._mail()

    def close(self) -> None:
        """Drop the connection and the mail, and tell nobody."""
        self._is_closed = True  # to cancel a task group that is just ending with an error has no effect
        self._drop()
        self._task.cancel()

    def _drop(self) -> bool:
        was_connected = self._connection is not None
        self._connection = None
        self._requests, self._aborts = [], []
        return was_connected

    def _mail(self) -> None:
        if len(self._requests) + len(self._aborts) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._connection is not None and (self._requests or self._aborts):
            batch = Batch(tuple(self._requests), tuple(self._aborts))
            self._requests, self._aborts = [], []
            self._connection.send(batch)

    async def _stay_connected(self) -> None:
        while not self._is_closed:
            try:
                async with self._dial(self.member, self._ingress) as connection, asyncio.TaskGroup() as both:
                    both.create_task(self._receive(connection))
                    both.create_task(self._keep_alive(connection))
            except* Exception as errors:  # noqa: BLE001  whatever it was, the answer is to connect again
                self._miss(repr(errors.exceptions[0]))
            await asyncio.sleep(RECONNECT_S)

    def _miss(self, why: str) -> None:
        if self._drop():
            log.warning("lost replica %s: %s", self.member.replica, why)
            self._listener.lost(self)
        elif why != self._complaint and not self._is_closed:  # it is tried again for ever, and told once
            log.warning("no connection to replica %s: %s", self.member.replica, why)
            self._complaint = why

    async def _receive(self, connection: Connection) -> None:
        while True:
            frames = await connection.receive()
            self._silent_renewals = 0
            self._messages += 1
            if self._connection is None:
                self._connection = connection
                self._complaint = ""
                self._listener.connected()
            if frames:
                self._listener.stepped(self.member.replica, frames)

    async def _keep_alive(self, connection: Connection) -> None:
        self._silent_renewals = 0
        while self._silent_renewals <= MOST_SILENT_RENEWALS:
            await asyncio.sleep(RENEW_S)
            connection.send(Batch())
            self._silent_renewals += 1
        raise ConnectionError(f"nothing heard for {LEASE_S:g} s")
