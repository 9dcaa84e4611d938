"""The ingress's end of the wire: one long-lived stream from each replica, one batch of requests at a time to each.

Downstream a replica sends one message per engine step for all requests of this ingress; one Ray object per token would
cost a third of the throughput. Upstream, whatever has gathered while the last batch was on its way goes as one batch,
which also keeps an abort behind the request it aborts. A replica is ready while its stream is up.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deployments import router

Frames = list[bytes]

RECONNECT_S = 0.5
# The replica drops the requests of an ingress it has not heard of for LEASE_S; an idle link renews well within it.
RENEW_S = 5.0
LEASE_S = 30.0

log = logging.getLogger(__name__)


class NoReplicaReadyError(Exception):
    """No replica of the model can take a request now."""


@dataclass(frozen=True, slots=True)
class Request:
    """An encoded request and what the router needs to know of it."""

    request_id: str
    frames: Frames
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What an ingress tells one replica at a time; an empty one renews its lease."""

    requests: tuple[Frames, ...] = ()
    aborts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step of a replica: vLLM's encoded outputs."""

    replica: str
    frames: Frames


@dataclass(frozen=True, slots=True)
class Lost:
    """The requests that were on a replica when its stream broke."""

    replica: str
    request_ids: tuple[str, ...]


class ReplicaPort(Protocol):
    """How an ingress reaches one replica (over Ray Serve in production)."""

    def stream(self, ingress: str) -> AsyncIterator[Frames]:
        """Yield an empty message when the replica is ready, then one message per engine step, until it goes."""

    async def submit(self, ingress: str, batch: Batch) -> None:
        """Deliver one batch; returns when the replica has taken it."""


@dataclass(slots=True)
class _Connection:
    port: ReplicaPort
    ready: bool = False
    outstanding: dict[str, int] = field(default_factory=dict)  # request id -> tokens still to compute
    requests: list[Frames] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    has_mail: asyncio.Event = field(default_factory=asyncio.Event)


class FleetLink:
    """The replicas as one ingress sees them. Used from one event loop."""

    def __init__(self, ingress: str, ports: Mapping[str, ReplicaPort]) -> None:
        self._ingress = ingress
        self._connections = {name: _Connection(port) for name, port in ports.items()}
        self._holder: dict[str, str] = {}  # request id -> replica
        self._events: asyncio.Queue[Step | Lost] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of all replicas, ready or not."""
        return tuple(self._connections)

    @property
    def ready(self) -> tuple[str, ...]:
        """Names of the replicas that take requests now."""
        return tuple(name for name, connection in self._connections.items() if connection.ready)

    def open(self) -> None:
        """Start to connect; replicas become ready as their engines do."""
        for name, connection in self._connections.items():
            self._tasks.append(asyncio.create_task(self._stay_connected(name, connection)))

    def close(self) -> None:
        """Drop the connections; the replicas notice and abort what is left."""
        for task in self._tasks:
            task.cancel()

    def submit(self, request: Request) -> None:
        """Route a request and put it in the mail.

        Raises:
            NoReplicaReadyError: nothing has been sent.
        """
        loads = (
            router.Load(replica=name, outstanding_tokens=sum(connection.outstanding.values()))
            for name, connection in self._connections.items()
            if connection.ready
        )
        name = router.choose(loads)
        if name is None:
            raise NoReplicaReadyError(f"none of the {len(self._connections)} replicas is ready")
        connection = self._connections[name]
        self._holder[request.request_id] = name
        connection.outstanding[request.request_id] = request.prompt_tokens + request.max_tokens
        connection.requests.append(request.frames)
        connection.has_mail.set()

    def abort(self, request_ids: list[str]) -> None:
        """Put aborts in the mail of the replicas that hold the requests; unknown ids have finished already."""
        for request_id in request_ids:
            name = self._holder.pop(request_id, None)
            if name is not None:
                connection = self._connections[name]
                connection.outstanding.pop(request_id, None)
                connection.aborts.append(request_id)
                connection.has_mail.set()

    def settle(self, request_id: str, new_tokens: int, *, finished: bool) -> None:
        """Account for tokens a replica has computed."""
        name = self._holder.get(request_id)
        if name is None:
            return
        outstanding = self._connections[name].outstanding
        if finished:
            del self._holder[request_id], outstanding[request_id]
        else:
            outstanding[request_id] = max(1, outstanding[request_id] - new_tokens)

    async def next_event(self) -> Step | Lost:
        """Wait for the next message of any replica, or the loss of one."""
        return await self._events.get()

    async def _stay_connected(self, name: str, connection: _Connection) -> None:
        while True:
            try:
                # When one direction fails the other is ended with it: only a new stream makes the replica drop what
                # this ingress has given up, and a batch that is still on its way belongs to that.
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._receive(name, connection))
                    directions.create_task(self._send(connection))
            except* Exception as errors:  # noqa: BLE001  whatever it was, the answer is to connect again
                log.warning("lost replica %s: %s", name, errors.exceptions[0])
            finally:
                self._disconnect(name, connection)
            await asyncio.sleep(RECONNECT_S)

    async def _receive(self, name: str, connection: _Connection) -> None:
        async for frames in connection.port.stream(self._ingress):
            connection.ready = True
            if frames:
                self._events.put_nowait(Step(name, frames))
        raise ConnectionError("its stream has ended")

    async def _send(self, connection: _Connection) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_S):
                    await connection.has_mail.wait()
            connection.has_mail.clear()
            if connection.ready:
                batch = Batch(tuple(connection.requests), tuple(connection.aborts))
                connection.requests, connection.aborts = [], []
                await connection.port.submit(self._ingress, batch)

    def _disconnect(self, name: str, connection: _Connection) -> None:
        connection.ready = False
        lost = tuple(connection.outstanding)
        connection.requests, connection.aborts, connection.outstanding = [], [], {}
        connection.has_mail.clear()
        for request_id in lost:
            self._holder.pop(request_id, None)
        if lost:
            self._events.put_nowait(Lost(name, lost))
