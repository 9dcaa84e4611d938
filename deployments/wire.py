"""The connection between an ingress and a replica: one TCP stream each way, of messages of several frames.

A message is the number of its frames, their lengths (32 bits each, big endian) and their bytes. The first one an
ingress sends is its name and the fleet's secret; each later one a batch: a JSON header (frames per request, aborts),
then the frames of its requests. A replica sends engine steps, and empty messages as signs of life: every now and then,
and at once when it has got requests.

Ray Serve's own streaming would put an object into the object store for each step, on the critical path of every token.
"""

import asyncio
import hmac
import json
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import accumulate
from operator import index

from deployments.membership import Member
from deployments.peer import Batch, Connection, Dial, Frames

CONNECT_TIMEOUT_S = 5.0
MAX_FRAMES = 1_000_000
MAX_MESSAGE_BYTES = 2**30
MAX_GREETING_BYTES = 4096  # of somebody who has not shown the secret yet
TURNED_AWAY = "the replica has closed the connection before a word: is its secret, or its TLS (RAY_TLS_*), another?"


class WireError(ConnectionError):
    """What came is no message of this protocol, or the peer may not connect."""


def pack(frames: Frames) -> bytes:
    """Encode one message."""
    return b"".join((struct.pack(f"!{1 + len(frames)}I", len(frames), *map(len, frames)), *frames))


def pack_batch(batch: Batch) -> bytes:
    """Encode a batch; an empty one as an empty message."""
    if not batch.requests and not batch.aborts:
        return pack([])
    header = {"requests": [len(frames) for frames in batch.requests], "aborts": batch.aborts}
    return pack([json.dumps(header).encode(), *(frame for frames in batch.requests for frame in frames)])


def unpack_batch(frames: Frames) -> Batch:
    """Decode what `pack_batch` made. Raises WireError."""
    if not frames:
        return Batch()
    try:
        header = json.loads(frames[0])
        sizes, aborts = list(map(index, header["requests"])), tuple(map(str, header["aborts"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"the header of a batch is not understood: {error!r}") from error
    ends = list(accumulate(sizes, initial=1))
    if min(sizes, default=0) < 0:
        raise WireError(f"a request of {min(sizes)} frames")
    if ends[-1] != len(frames):
        raise WireError(f"a batch of {len(frames)} frames, announced as {ends[-1]}")
    return Batch(tuple(frames[end - size : end] for end, size in zip(ends[1:], sizes, strict=True)), aborts)


def write(writer: asyncio.StreamWriter, message: bytes) -> None:
    """Send a message; what the socket does not take at once is kept in memory.

    To a peer that has gone nothing is sent, and its reader is about to say so. The writer itself would drop that too,
    but on uvloop, where Serve runs its replicas, it raises RuntimeError (uvloop/handles/handle.pyx, _ensure_alive);
    with TLS both drop it.
    """
    if not writer.transport.is_closing():
        writer.write(message)


async def read_message(reader: asyncio.StreamReader, max_bytes: int = MAX_MESSAGE_BYTES) -> Frames:
    """Read one message of at most ``max_bytes``.

    Raises:
        asyncio.IncompleteReadError: the stream has ended.
        WireError: it is no message.
    """
    (count,) = struct.unpack("!I", await reader.readexactly(4))
    if count == 0:
        return []
    if count > min(MAX_FRAMES, max_bytes):
        raise WireError(f"a message of {count} frames")
    sizes = struct.unpack(f"!{count}I", await reader.readexactly(4 * count))
    if sum(sizes) > max_bytes:
        raise WireError(f"a message of {sum(sizes)} bytes")
    body = await reader.readexactly(sum(sizes))
    return list(_parts(body, sizes))


def _parts(body: bytes, sizes: tuple[int, ...]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield body[start : start + size]
        start += size


class TcpConnection:
    """The ingress's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_answered = False

    def send(self, batch: Batch) -> None:
        """Send a batch; to a replica that has gone, nothing."""
        write(self._writer, pack_batch(batch))

    async def receive(self) -> Frames:
        """Wait for the next message. Raises OSError when the replica has gone."""
        try:
            frames = await read_message(self._reader)
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            # Under TLS 1.3 this is also how an ingress learns that its certificate was not accepted.
            how = "the replica has closed the connection" if self._is_answered else TURNED_AWAY
            raise ConnectionError(how) from error
        self._is_answered = True
        return frames


def dialer(secret: str, tls: ssl.SSLContext | None = None) -> Dial:
    """Connections to replicas that know ``secret``, encrypted with ``tls``."""

    @asynccontextmanager
    async def dial(member: Member, ingress: str) -> AsyncIterator[Connection]:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            try:
                reader, writer = await asyncio.open_connection(member.host, member.port, ssl=tls)
            except ConnectionResetError as error:
                raise ConnectionError(TURNED_AWAY) from error
        try:
            write(writer, pack([ingress.encode(), secret.encode()]))
            yield TcpConnection(reader, writer)
        finally:
            writer.transport.abort()  # not close(), which would wait for a replica that hangs to read the rest

    return dial


async def greeted(reader: asyncio.StreamReader, secret: str) -> str:
    """Read the first message of an ingress at the replica's end; returns its name.

    Raises:
        WireError: it is no greeting, or the secret is another.
    """
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        frames = await read_message(reader, MAX_GREETING_BYTES)
    if len(frames) != 2 or not hmac.compare_digest(frames[1], secret.encode()):
        raise WireError("an ingress of another fleet, or no ingress")
    return frames[0].decode(errors="replace")
