"""Both ends of the wire over TCP: `dialer` in the ingress, `IngressServer` in the replica."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from link_builders import ClockLoop, batch, request
from wire_builders import (
    DEADLINE_S,
    PLAIN,
    SECRET,
    Encryption,
    Replica,
    authority,
    next_step,
    play,
    ray_environ,
    until,
)

from deployments import ingress_server
from deployments.access.ray_tls import dialling_context, listening_context
from deployments.link import FleetLink, Step
from deployments.membership import Member, Membership
from deployments.peer import LEASE_S, RENEW_S, Batch
from deployments.routing import Limits
from deployments.traffic import Traffic
from deployments.wire import dialer, pack


@pytest.fixture(params=["plain", "TLS"])
def encryption(request: pytest.FixtureRequest, tmp_path: Path) -> Encryption:
    """Both ways of a connection."""
    if request.param == "plain":
        return PLAIN
    environ = ray_environ(tmp_path, authority(tmp_path))
    return Encryption(listening=listening_context(environ), dialling=dialling_context(environ))


@asynccontextmanager
async def raw(member: Member, data: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A stranger, who has written ``data``."""
    reader, writer = await asyncio.open_connection(member.host, member.port)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.close()


def test_batches_arrive_in_their_order_and_each_step_goes_to_its_ingress(encryption: Encryption) -> None:
    async def scenario(replica: Replica) -> None:
        async with replica.dial("i1") as one, replica.dial("i2") as two:
            one.send(batch("r1 7 8", "r2"))
            one.send(batch("r3", aborts=("r1", "r2")))
            await replica.told(
                ("submit", "i1", [b"r1", b"7", b"8"]),
                ("submit", "i1", [b"r2"]),
                ("submit", "i1", [b"r3"]),
                ("abort", "r1", "r2"),
            )
            await two.receive()  # it is known
            replica.server.deliver({"i1": [b"x", b""], "i2": [b"y"], "unknown": [b"z"]})
            replica.server.deliver({"i1": [b"w" * 1_000_000]})
            assert await next_step(one) == [b"x", b""]
            assert await next_step(two) == [b"y"]
            assert await next_step(one) == [b"w" * 1_000_000]

    play(scenario, encryption=encryption)


def test_a_replica_says_at_once_that_it_is_there() -> None:
    async def scenario(replica: Replica) -> None:
        async with replica.dial("i1") as connection, asyncio.timeout(DEADLINE_S):
            assert await connection.receive() == []

    play(scenario)


def test_a_replica_answers_at_once_that_it_has_got_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress_server, "RENEW_S", 10 * DEADLINE_S)

    async def scenario(replica: Replica) -> None:
        replica.engine.takes.clear()
        async with replica.dial("i1") as connection, asyncio.timeout(DEADLINE_S):
            assert await connection.receive() == []
            connection.send(batch("r1", "r2"))
            assert await connection.receive() == []

    play(scenario)


def test_what_an_ingress_had_is_dropped_with_its_connection(encryption: Encryption) -> None:
    async def scenario(replica: Replica) -> None:
        async with replica.dial("i2") as other:
            async with replica.dial("i1") as connection:
                connection.send(batch("r1"))
                await replica.told(("submit", "i1", [b"r1"]))
            await replica.told(("submit", "i1", [b"r1"]), ("abort all of", "i1"))
            replica.server.deliver({"i1": [b"late"], "i2": [b"step"]})
            assert await next_step(other) == [b"step"]

    play(scenario, encryption=encryption)


def test_a_connection_that_breaks_amid_steps_takes_neither_end_with_it(encryption: Encryption) -> None:
    """Each turn of the event loop between the break and its notice; uvloop refuses to write to what has gone."""

    async def scenario(replica: Replica) -> None:
        async with replica.dial("i1") as connection:
            await connection.receive()
            replica.server.deliver({"i1": [b"unread"]})  # so that the kernel resets the connection
        while not replica.engine.told:
            replica.server.deliver({"i1": [b"step"]})
            await asyncio.sleep(0)
        assert replica.engine.told == [("abort all of", "i1")]
        async with replica.dial("i2") as connection:
            await connection.receive()
            replica.server.close()
            lost = asyncio.create_task(next_step(connection))
            while not lost.done():
                connection.send(batch("r1"))
                await asyncio.sleep(0)
            assert isinstance(lost.exception(), OSError)

    play(scenario, uvloop.new_event_loop, encryption)


def test_a_second_connection_of_an_ingress_replaces_the_first(encryption: Encryption) -> None:
    async def scenario(replica: Replica) -> None:
        replica.engine.takes.clear()
        async with replica.dial("i1") as first:
            first.send(batch("r1", "never taken"))
            await replica.told(("submit", "i1", [b"r1"]))
            async with replica.dial("i1") as second:
                with pytest.raises(ConnectionError, match="closed"):
                    await next_step(first)
                replica.engine.takes.set()
                second.send(batch("r2"))
                await replica.told(("submit", "i1", [b"r1"]), ("abort all of", "i1"), ("submit", "i1", [b"r2"]))
                replica.server.deliver({"i1": [b"step"]})
                assert await next_step(second) == [b"step"]

    play(scenario, encryption=encryption)


@pytest.mark.parametrize(
    "data",
    [
        pack([b"i1", b"open simsim"]),
        pack([b"i1"]),
        pack([]),
        b"GET /v1/models HTTP/1.1\r\nHost: fleet\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the start of a TLS greeting
    ],
)
def test_who_does_not_belong_here_is_shown_the_door(data: bytes) -> None:
    async def scenario(replica: Replica) -> None:
        async with raw(replica.member, data) as (reader, _), asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        async with replica.dial("i1") as connection:  # and others are served
            connection.send(batch("r1"))
            await replica.told(("submit", "i1", [b"r1"]))

    play(scenario)


def test_a_wrong_secret_ends_the_connection_on_the_ingress_side() -> None:
    async def scenario(replica: Replica) -> None:
        async with replica.dial("i1", "another") as connection, asyncio.timeout(DEADLINE_S):
            connection.send(batch("r1"))
            with pytest.raises(OSError, match=r"closed|reset"):
                await connection.receive()
        assert replica.engine.told == []

    play(scenario)


@pytest.mark.parametrize(
    "data",
    [pack([b"garbage"]), pack([b'{"requests": [5], "aborts": []}', b"r2"]), b"\xff\xff\xff\xff", pack([b"cut"])[:-1]],
    ids=["garbage", "announces more", "huge", "breaks off"],
)
def test_an_ingress_that_talks_nonsense_loses_its_connection_and_its_requests(data: bytes) -> None:
    async def scenario(replica: Replica) -> None:
        async with raw(replica.member, pack([b"i1", SECRET.encode()])) as (_, writer):
            writer.write(pack([b'{"requests": [1], "aborts": []}', b"r1"]) + data)
            writer.write_eof()
            await replica.told(("submit", "i1", [b"r1"]), ("abort all of", "i1"))

    play(scenario)


class TcpClockLoop(ClockLoop):
    """Its time does not pass before what is on its way through the kernel has arrived."""

    def __init__(self) -> None:
        super().__init__(patience_s=0.02)


def test_a_silent_ingress_is_dropped_when_its_lease_has_passed_and_not_before() -> None:
    async def scenario(replica: Replica) -> None:
        async with replica.dial("i1") as connection:
            connection.send(batch("r1"))
            for _ in range(int(2 * LEASE_S)):
                await asyncio.sleep(RENEW_S)
                connection.send(Batch())
            await replica.told(("submit", "i1", [b"r1"]))
            await asyncio.sleep(LEASE_S - RENEW_S)
            await replica.told(("submit", "i1", [b"r1"]))
            await asyncio.sleep(2 * RENEW_S)
            await replica.told(("submit", "i1", [b"r1"]), ("abort all of", "i1"))
            with pytest.raises(ConnectionError, match="closed"):
                await next_step(connection)

    play(scenario, TcpClockLoop)


def test_a_replica_that_was_stopped_does_not_blame_its_ingresses() -> None:
    async def scenario(replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockLoop)
        async with replica.dial("i1") as connection:
            connection.send(batch("r1"))
            await asyncio.sleep(RENEW_S)
            connection.send(Batch())
            loop.stall(3 * LEASE_S)
            await asyncio.sleep(RENEW_S)
            await replica.told(("submit", "i1", [b"r1"]))

    play(scenario, TcpClockLoop)


def test_a_stranger_who_says_nothing_does_not_stay(encryption: Encryption) -> None:
    async def scenario(replica: Replica) -> None:
        async with raw(replica.member) as (reader, _):
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""

    play(scenario, TcpClockLoop, encryption)


def test_an_ingress_that_reads_nothing_is_dropped_before_memory_runs_short(
    monkeypatch: pytest.MonkeyPatch, encryption: Encryption
) -> None:
    monkeypatch.setattr(ingress_server, "MAX_UNREAD_BYTES", 2**20)
    monkeypatch.setattr(ingress_server, "LEASE_S", 10 * DEADLINE_S)
    monkeypatch.setattr(ingress_server, "RENEW_S", 0.01)

    async def scenario(replica: Replica) -> None:
        async with replica.dial("i1") as connection:
            assert await connection.receive() == []
            for _ in range(64):  # more than the kernel takes
                replica.server.deliver({"i1": [bytes(2**20)]})
            await replica.told(("abort all of", "i1"))
            arrived = 0
            with contextlib.suppress(OSError):
                while arrived < 64:
                    arrived += bool(await connection.receive())
            assert arrived < 64

    play(scenario, encryption=encryption)


def test_a_link_moves_its_requests_from_a_replica_that_ends_to_another(encryption: Encryption) -> None:
    async def scenario(first: Replica) -> None:
        second = Replica(encryption)
        link = FleetLink("i1", dialer(SECRET, encryption.dialling), Traffic("i1", Limits()))
        link.update(Membership(members=(first.member,), planned_replicas=2))
        await until(lambda: link.ready)
        link.submit(request("r1"))
        await first.told(("submit", "i1", [b"r1"]))
        first.server.deliver({"i1": [b"step"]})
        assert await asyncio.wait_for(link.next_event(), DEADLINE_S) == Step("a", [b"step"])
        link.settle("a", "r1", [7], is_finished=False, now_s=link.now())
        link.update(Membership(members=(first.member, await second.listen("b")), planned_replicas=2))
        await until(lambda: len(link.ready) == 2)
        first.server.close()
        await second.told(("submit", "i1", [b"r1~1", b"7"]))
        assert link.ready == ("b",)
        link.close()
        await second.told(("submit", "i1", [b"r1~1", b"7"]), ("abort all of", "i1"))
        second.server.close()

    play(scenario, encryption=encryption)
