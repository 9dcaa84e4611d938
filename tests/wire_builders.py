"""A replica's end of the wire over real sockets, with an engine that writes down what it is told."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from access_builders import certificate

from deployments.access.settings import Tls
from deployments.ingress_server import IngressServer
from deployments.membership import Member
from deployments.peer import Connection, Frames
from deployments.wire import dialer

HOST = "127.0.0.1"
SECRET = "open sesame"
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """What the two ends speak TLS with, each by itself; by default they do not."""

    listening: ssl.SSLContext | None = None
    dialling: ssl.SSLContext | None = None


PLAIN = Encryption()


def authority(directory: Path, name: str = "authority") -> Tls:
    """Who signs the certificates of a cluster's nodes."""
    return certificate(directory, name)


def ray_environ(directory: Path, signer: Tls, name: str = "node", host: str = HOST) -> dict[str, str]:
    """The environment of a process on a node of a Ray cluster that uses TLS."""
    files = certificate(directory, name, (host,), signer)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": files.certificate,
        "RAY_TLS_SERVER_KEY": files.key,
        "RAY_TLS_CA_CERT": signer.certificate,
    }


class FakeEngine:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.takes = asyncio.Event()
        self.takes.set()

    async def submit(self, owner: str, frames: Frames) -> None:
        self.told.append(("submit", owner, frames))
        await self.takes.wait()

    async def abort(self, request_ids: Sequence[str]) -> None:
        self.told.append(("abort", *request_ids))

    async def abort_all_of(self, owner: str) -> None:
        self.told.append(("abort all of", owner))


class Replica:
    """It listens, and knows how to be dialled."""

    def __init__(self, encryption: Encryption = PLAIN) -> None:
        self.engine = FakeEngine()
        self.server = IngressServer(self.engine, SECRET, encryption.listening)
        self.encryption = encryption
        self.member = Member(replica="none", shape="tp1", host=HOST, port=0)

    async def listen(self, name: str = "a") -> Member:
        """Begin, as the replica of this name."""
        self.member = Member(replica=name, shape="tp1", host=HOST, port=await self.server.listen(HOST))
        return self.member

    def dial(self, ingress: str, secret: str = SECRET) -> AbstractAsyncContextManager[Connection]:
        """Connect as this ingress."""
        return dialer(secret, self.encryption.dialling)(self.member, ingress)

    async def told(self, *expected: tuple[Any, ...]) -> None:
        """Wait until the engine has been told this, and assert that it was nothing else."""
        await until(lambda: len(self.engine.told) >= len(expected))
        assert self.engine.told == list(expected)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def next_step(connection: Connection) -> Frames:
    """The next message that is not only a sign of life."""
    async with asyncio.timeout(DEADLINE_S):
        while not (frames := await connection.receive()):
            pass
    return frames


def play(
    scenario: Callable[[Replica], Awaitable[None]],
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    encryption: Encryption = PLAIN,
) -> None:
    """Run a scenario with a replica that listens."""

    async def listening() -> None:
        replica = Replica(encryption)
        await replica.listen()
        try:
            await scenario(replica)
        finally:
            replica.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(listening())
