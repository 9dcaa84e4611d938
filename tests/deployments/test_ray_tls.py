"""Ray's certificates on the connection between ingress and replica."""

import asyncio
import contextlib
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from link_builders import batch
from wire_builders import (
    DEADLINE_S,
    HOST,
    SECRET,
    Encryption,
    Replica,
    authority,
    next_step,
    play,
    ray_environ,
    until,
)

from deployments import peer
from deployments.access.ray_tls import dialling_context, listening_context
from deployments.access.tls import TlsError
from deployments.ingress import Ingress
from deployments.link import FleetLink
from deployments.membership import Member, Membership
from deployments.replica import Replica as ReplicaActor
from deployments.routing import Limits
from deployments.traffic import Traffic
from deployments.wire import dialer

VARIABLES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
NO_WORD = "closed the connection before a word: is its secret, or its TLS (RAY_TLS_*), another?"


@pytest.mark.parametrize(("told", "is_used"), [("1", True), ("True", True), ("0", False), ("", False), (None, False)])
def test_it_is_used_where_ray_uses_it(told: str | None, is_used: bool, tmp_path: Path) -> None:
    environ = ray_environ(tmp_path, authority(tmp_path))
    del environ["RAY_USE_TLS"]
    if told is not None:
        environ["RAY_USE_TLS"] = told
    assert (listening_context(environ) is not None) is is_used
    assert (dialling_context(environ) is not None) is is_used


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "{} is not set, but RAY_USE_TLS is: give a file in PEM"),
        ("/nowhere", "{}: /nowhere cannot be read (No such file or directory); give a file in PEM"),
        ("text", "{}"),
    ],
    ids=["not set", "not there", "not PEM"],
)
def test_a_file_that_cannot_be_used_is_named_with_its_variable(
    variable: str, value: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("hello")
    environ = ray_environ(tmp_path, authority(tmp_path))
    environ[variable] = value.replace("text", str(tmp_path / "text"))
    for context in (listening_context, dialling_context):
        with pytest.raises(TlsError) as caught:
            context(environ)
        assert words.format(variable) in str(caught.value)
        assert environ[variable] in str(caught.value)


@pytest.mark.parametrize("actor", [ReplicaActor, Ingress])
def test_a_process_without_its_files_ends_at_its_start(actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(TlsError, match="RAY_TLS_SERVER_CERT is not set"):
        asyncio.run(actor.__init__(object.__new__(actor), None))


def test_neither_the_secret_nor_a_prompt_can_be_read_on_the_way(tmp_path: Path) -> None:
    """Between two nodes: each has a certificate of its own, and who dials is at no address of hers."""
    signer = authority(tmp_path)
    here, there = ray_environ(tmp_path, signer, "here", "10.0.0.1"), ray_environ(tmp_path, signer, "there")
    seen = bytearray()

    async def scenario(replica: Replica) -> None:
        is_over = asyncio.Event()

        async def tapped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward, back = await asyncio.open_connection(HOST, replica_port)
            await asyncio.gather(copied(reader, back), copied(onward, writer))
            is_over.set()

        async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    seen.extend(data)
                    writer.write(data)
            writer.close()

        replica_port = replica.member.port
        async with await asyncio.start_server(tapped, HOST, 0) as tap:
            replica.member = replace(replica.member, port=tap.sockets[0].getsockname()[1])
            async with replica.dial("i1") as connection:
                connection.send(batch("a prompt"))
                await replica.told(("submit", "i1", [b"a", b"prompt"]))
                replica.server.deliver({"i1": [b"an answer"]})
                assert await next_step(connection) == [b"an answer"]
            async with asyncio.timeout(DEADLINE_S):
                await is_over.wait()
        assert len(seen) > 1000
        assert not [word for word in (SECRET.encode(), b"requests", b"prompt", b"an answer") if word in seen]

    play(scenario, encryption=Encryption(listening=listening_context(there), dialling=dialling_context(here)))


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("listens", "dials", "words"),
    [
        ("node", "bare", NO_WORD),
        ("node", "stranger", NO_WORD),
        ("node", "plain", NO_WORD),
        ("plain", "node", NO_WORD),
        ("stranger", "node", "unable to get local issuer certificate"),
        ("elsewhere", "node", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
    ids=[
        "no certificate",
        "another authority",
        "plain ingress",
        "plain replica",
        "another's replica",
        "another address",
    ],
)
def test_two_that_do_not_fit_have_no_connection_and_the_ingress_says_why_once(
    listens: str,
    dials: str,
    words: str,
    loop: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer, "RECONNECT_S", 0.001)
    told: list[str] = []
    monkeypatch.setattr(peer.log, "warning", lambda text, *values: told.append(text % values))
    signer, another = authority(tmp_path), authority(tmp_path, "another")
    environs: dict[str, dict[str, str]] = {
        "plain": {},
        "node": ray_environ(tmp_path, signer),
        "elsewhere": ray_environ(tmp_path, signer, "elsewhere", "10.0.0.1"),
        "stranger": ray_environ(tmp_path, another, "stranger") | {"RAY_TLS_CA_CERT": signer.certificate},
    }
    dialling = (
        ssl.create_default_context(cafile=signer.certificate) if dials == "bare" else dialling_context(environs[dials])
    )

    async def scenario(replica: Replica) -> None:
        tries = 0
        dial = dialer(SECRET, dialling)

        def counted(member: Member, ingress: str) -> Any:
            nonlocal tries
            tries += 1
            return dial(member, ingress)

        link = FleetLink("i1", counted, Traffic("i1", Limits()))
        link.update(Membership(members=(replica.member,), planned_replicas=1))
        await until(lambda: tries > 3)
        assert link.ready == ()
        link.close()
        assert replica.engine.told == []

    play(scenario, loop, Encryption(listening=listening_context(environs[listens])))
    (said,) = told
    assert said.startswith("no connection to replica a: ")
    assert words in said
