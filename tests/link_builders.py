"""Replicas in memory and an ingress's link to them, for the tests of `deployments`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from deployments import link as link_module
from deployments.link import Batch, FleetLink, Frames, Request

TIMEOUT_S = 30
NEVER_S = 3600.0


class FakeReplica:
    """A replica in memory, as an ingress reaches it: the test says what it streams, and when and whether it answers."""

    def __init__(self) -> None:
        self.streams = 0
        self.batches: list[Batch] = []
        self.refusals: list[Exception] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self._messages: asyncio.Queue[Frames | Exception | None] = asyncio.Queue()

    async def stream(self, ingress: str) -> AsyncIterator[Frames]:
        self.streams += 1
        while (message := await self._messages.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message

    async def submit(self, ingress: str, batch: Batch) -> None:
        self.batches.append(batch)
        await self.answers.wait()
        if self.refusals:
            raise self.refusals.pop()

    def say(self, *frames: bytes) -> None:
        """Stream one message; an empty one means ready."""
        self._messages.put_nowait(list(frames))

    def break_stream(self, error: Exception | None = None) -> None:
        """End the stream, with an error or without."""
        self._messages.put_nowait(error)


def request(name: str, prompt_tokens: int = 10, max_tokens: int = 90) -> Request:
    return Request(name, [name.encode()], prompt_tokens, max_tokens)


def batch(*requests: str, aborts: tuple[str, ...] = ()) -> Batch:
    return Batch(tuple([name.encode()] for name in requests), aborts)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  (what is waited for has no event)
        await asyncio.sleep(0)


async def settled() -> None:
    """Give every task the turns it needs to come to rest."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(scenario: Callable[..., Awaitable[None]], *names: str, ready: bool = True, renew_s: float = NEVER_S) -> None:
    """Play a scenario on an open link over replicas in memory, which the scenario gets as further arguments."""

    async def play() -> None:
        replicas = {name: FakeReplica() for name in names}
        link = FleetLink("ingress-1", replicas)
        link.open()
        if ready:
            for replica in replicas.values():
                replica.say()
            await until(lambda: len(link.ready) == len(replicas))
        try:
            await scenario(link, *replicas.values())
        finally:
            link.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "RECONNECT_S", 0.0)
        patch.setattr(link_module, "RENEW_S", renew_s)
        asyncio.run(asyncio.wait_for(play(), TIMEOUT_S))
