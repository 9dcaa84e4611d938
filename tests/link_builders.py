"""Replicas in memory, an ingress's link to them, and a clock that the test moves, for the tests of `deployments`."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from deployments.link import FleetLink
from deployments.membership import Member, Membership
from deployments.peer import LEASE_S, RECONNECT_S, Batch, Frames
from deployments.routing import Limits
from deployments.stream import Request
from deployments.traffic import Traffic

END_S = 3600.0  # no scenario lasts as long, on its own clock
TURNS = 30  # of the event loop, in which every task comes to rest
BACK_S = RECONNECT_S + 0.01
NO_LIMITS = Limits(max_queued_requests=10**6, max_ttft_s=1e6)


class _Impatient(selectors.DefaultSelector):
    """Does not wait until the next timer is due: it moves the clock there."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self._patience_s = patience_s

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(timeout and min(timeout, self._patience_s))
        if not ready and timeout:
            self.now_s += timeout
        return ready


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when all tasks wait for it, and then at once.

    Sockets are given ``patience_s`` of real time to become ready before it does.
    """

    def __init__(self, patience_s: float = 0.0) -> None:
        self._clock = _Impatient(patience_s)
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s

    def stall(self, length_s: float) -> None:
        """Time passes in which this process does nothing."""
        self._clock.now_s += length_s


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario on a clock of its own, on which `asyncio.sleep` takes no time."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), END_S)

    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        runner.run(bounded())


class FakeReplica:
    """A replica in memory, at the other end of a `Connection`: the test says what it streams, and when it goes."""

    def __init__(self) -> None:
        self.is_up = True
        self.is_silent = False
        self.greets = True
        self.dialled: list[Member] = []
        self.sent: list[Batch] = []  # of all connections, renewals included
        self._connections: list[FakeConnection] = []  # those that are open

    @asynccontextmanager
    async def dial(self, member: Member, ingress: str) -> AsyncIterator["FakeConnection"]:
        self.dialled.append(member)
        if not self.is_up:
            raise ConnectionRefusedError(member.port)
        connection = FakeConnection(self)
        self._connections.append(connection)
        signs = asyncio.create_task(connection.give_signs_of_life())
        try:
            yield connection
        finally:
            signs.cancel()
            self._connections.remove(connection)

    @property
    def batches(self) -> list[Batch]:
        """What it was told, without the renewals."""
        return [batch for batch in self.sent if batch != Batch()]

    @property
    def requests(self) -> list[str]:
        return [frames[0].decode() for batch in self.sent for frames in batch.requests]

    @property
    def aborts(self) -> list[str]:
        return [wire_id for batch in self.sent for wire_id in batch.aborts]

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def connection(self) -> "FakeConnection | None":
        return self._connections[-1] if self._connections else None

    def greet(self) -> None:
        """Become ready."""
        self.greets = True
        self.say()

    def say(self, *frames: bytes) -> None:
        """Stream one message."""
        for connection in self._connections:
            connection.messages.put_nowait(list(frames))

    def break_connection(self, error: Exception | None = None) -> None:
        for connection in self._connections:
            connection.messages.put_nowait(error or ConnectionError("gone"))

    def die(self) -> None:
        """Break, and be down until `come_back`."""
        self.is_up = False
        self.break_connection()

    def come_back(self) -> None:
        self.is_up = True


class FakeConnection:
    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica
        self.sent: list[Batch] = []
        self.messages: asyncio.Queue[Frames | Exception] = asyncio.Queue()

    async def give_signs_of_life(self) -> None:
        while True:
            if self._replica.greets and not self._replica.is_silent:
                self.messages.put_nowait([])
            await asyncio.sleep(LEASE_S / 10)

    def send(self, batch: Batch) -> None:
        self.sent.append(batch)
        self._replica.sent.append(batch)
        if batch.requests:
            self.messages.put_nowait([])

    async def receive(self) -> Frames:
        message = await self.messages.get()
        if isinstance(message, Exception):
            raise message
        return message


class Fleet:
    """A link over replicas in memory, and the membership that it was told last."""

    def __init__(self, *names: str, limits: Limits = NO_LIMITS, **changes: Any) -> None:
        self.replicas = {name: FakeReplica() for name in names}
        self.traffic = Traffic("ingress", limits)
        self.link = FleetLink("ingress", self.dial, self.traffic, asyncio.get_running_loop().time)
        self.membership = Membership(
            members=tuple(member(name) for name in names), planned_replicas=len(names), **changes
        )

    @asynccontextmanager
    async def dial(self, member: Member, ingress: str) -> AsyncIterator[FakeConnection]:
        async with self.replicas[member.replica].dial(member, ingress) as connection:
            yield connection

    def __getitem__(self, name: str) -> FakeReplica:
        return self.replicas[name]

    def update(self, **changes: Any) -> None:
        """Change what is said of the whole fleet."""
        self.membership = replace(self.membership, version=self.membership.version + 1, **changes)
        self.link.update(self.membership)

    def change(self, name: str, **changes: Any) -> None:
        """Change what is said of one replica."""
        members = self.membership.members
        self.update(members=tuple(replace(one, **changes) if one.replica == name else one for one in members))

    def remove(self, *names: str) -> None:
        self.update(members=tuple(one for one in self.membership.members if one.replica not in names))

    def add(self, *members: Member) -> None:
        for one in members:
            self.replicas.setdefault(one.replica, FakeReplica())
        self.update(members=self.membership.members + members)

    def settle(self, replica: str, wire_id: str, *token_ids: int, is_finished: bool = False) -> str | None:
        return self.link.settle(replica, wire_id, token_ids, is_finished=is_finished, now_s=self.link.now())

    def where(self, request_id: str) -> tuple[str, str]:
        """On which replica a request has been put last, and under which wire id."""
        sendings = {wire_id: name for name, replica in self.replicas.items() for wire_id in replica.requests}
        wire_id = max(
            (one for one in sendings if _of(one) == request_id), key=lambda one: int(one.partition("~")[2] or 0)
        )
        return sendings[wire_id], wire_id

    def assert_nothing_is_left(self) -> None:
        """The books hold nothing of requests that have ended."""
        report = self.link.report()
        assert (report.unfinished_requests, report.held_requests) == (0, 0)
        assert vars(self.link)["_aboard"] == {}
        for load in vars(self.traffic)["_loads"].values():
            assert (load.prefill_tokens, load.decode_tokens) == ({}, {})


def _of(wire_id: str) -> str:
    return wire_id.partition("~")[0]


def member(name: str, **changes: Any) -> Member:
    return replace(Member(replica=name, shape="tp2", host="host", port=1), **changes)


def request(name: str, prompt_tokens: int = 10, max_tokens: int = 90, **changes: Any) -> Request:
    """A request whose message is its wire id, then the token ids after which it is to continue."""

    def encode(wire_id: str, token_ids: Sequence[int]) -> Frames:
        return [wire_id.encode(), *(str(token_id).encode() for token_id in token_ids)]

    return Request(
        request_id=name, encode=encode, prompt_token_ids=range(prompt_tokens), max_tokens=max_tokens, **changes
    )


def batch(*requests: str, aborts: tuple[str, ...] = ()) -> Batch:
    """What a replica is told; a request is its wire id, and token ids behind it."""
    return Batch(tuple([part.encode() for part in each.split()] for each in requests), aborts)


async def settled() -> None:
    """Give every task the turns it needs to come to rest; no time passes."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def passed(duration_s: float) -> None:
    """Let the time pass."""
    await asyncio.sleep(duration_s)
    await settled()


def run(scenario: Callable[[Fleet], Awaitable[None]], *names: str, ready: bool = True, **changes: Any) -> None:
    """Play a scenario with a link over the named replicas, which are all ready unless it says otherwise."""

    async def opened() -> None:
        fleet = Fleet(*names, **changes)
        for replica in fleet.replicas.values():
            replica.greets = ready
        fleet.update()
        await settled()
        assert fleet.link.ready == (names if ready else ())
        try:
            await scenario(fleet)
        finally:
            fleet.link.close()

    play(opened)
