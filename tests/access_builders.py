"""Keys, key files and a server behind which everything is as in an ingress but the model."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deployments.access.keys import KeyRecord, digest, new_key, write_keys
from deployments.access.listening import guarded, serve
from deployments.access.settings import Access, EdgeLimits, Tls

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEADLINE_S = 30.0


def made_key(name: str = "alice", **fields: Any) -> tuple[str, KeyRecord]:
    """A key and its record."""
    key, key_id = new_key()
    return key, KeyRecord(id=key_id, name=name, sha256=digest(key), created_at=NOW, **fields)


def key_file(path: Path, *records: KeyRecord) -> Path:
    """A file with these keys."""
    write_keys(path, records)
    return path


@dataclass
class Hands:
    """A clock that is set by hand."""

    s: float = 1000.0

    def __call__(self) -> float:
        return self.s


@dataclass
class Echo:
    """An application that says what it got; with ``events`` it streams them, one every ``pace_s``."""

    events: int = 0
    pace_s: float = 0.01
    scopes: list[Any] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            size, more = size + len(message["body"]), message.get("more_body", False)
        kind = b"text/event-stream" if self.events else b"text/plain"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for number in range(self.events):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.sleep(self.pace_s)
        await send({"type": "http.response.body", "body": b"" if self.events else b"%d" % size})


@contextlib.contextmanager
def served(app: Any, access: Access, *, is_endpoint: bool = True) -> Iterator[int]:
    """Serve an application in another thread, as an ingress does, or as the fleet controller does; gives the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener, serving(app, access, listener, is_endpoint):
        yield listener.getsockname()[1]


@contextlib.contextmanager
def serving(
    app: Any, access: Access, listener: socket.socket, is_endpoint: bool = True
) -> Iterator[Callable[[], threading.Thread]]:
    """Serve at a socket; gives what has the server close, and its thread, which then ends by itself."""
    loop = asyncio.new_event_loop()
    closes = asyncio.Event()

    async def main() -> None:
        inner = guarded(app, access)[0] if is_endpoint else app
        await serve(inner, [listener], access.limits, access.tls, closes)

    task = loop.create_task(main())

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()

    def close() -> threading.Thread:
        loop.call_soon_threadsafe(closes.set)
        return thread

    try:
        yield close
    finally:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


def talk(port: int, *parts: bytes) -> bytes:
    """Send these bytes over a connection of their own, and read until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        with contextlib.suppress(OSError):  # it may have heard enough before the end
            for part in parts:
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
        return answer


def certificate(
    directory: Path, name: str = "server", hosts: Sequence[str] = ("localhost",), signer: Tls | None = None
) -> Tls:
    """A certificate of an authority, or that is its own, and its key."""
    key = signing_key = ec.generate_private_key(ec.SECP256R1())
    subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    if signer is not None:
        issuer = x509.load_pem_x509_certificate(Path(signer.certificate).read_bytes()).subject
        signing_key = cast(
            "ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(Path(signer.key).read_bytes(), None)
        )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .sign(signing_key, hashes.SHA256())
    )
    files = Tls(certificate=str(directory / f"{name}.pem"), key=str(directory / f"{name}.key"))
    Path(files.certificate).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    Path(files.key).write_bytes(pem)
    return files


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def run_server(limits: EdgeLimits) -> None:
    """Serve `Echo` until the input ends, in a process of its own, which says its port first."""
    with served(Echo(), Access(limits=limits)) as port:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        sys.stdin.read()


@contextlib.contextmanager
def server_process(limits: EdgeLimits) -> Iterator[int]:
    """`run_server` in another process, whose files and event loop are not ours."""
    code = f"from access_builders import EdgeLimits, run_server; run_server({limits!r})"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(DEADLINE_S)
