"""Raw servers of event streams on this machine: what they send, and when, is written down piece by piece."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
_NAMES = json.dumps({"data": [{"id": "tiny"}]}).encode()
MODELS = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_NAMES), _NAMES)

Piece = bytes | float
Script = Callable[[dict[str, object]], Sequence[Piece]]


@dataclass(slots=True)
class Server:
    """One that runs.

    `models` is what a GET is answered, `bodies` are the requests that came, `connections` how many connections were
    opened, `sent_s` when each piece went out, on the clock of `perf_counter`.
    """

    url: str
    models: bytes = MODELS
    bodies: list[dict[str, object]] = field(default_factory=list)
    connections: int = 0
    sent_s: list[float] = field(default_factory=list)


def chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(values: object) -> bytes:
    """One event, as a chunk."""
    return chunk(b"data: " + json.dumps(values, ensure_ascii=False).encode() + b"\n\n")


def token(text: str, *ids: int, reason: str | None = None) -> bytes:
    """An event of vLLM's completions with some tokens."""
    return event({"choices": [{"index": 0, "text": text, "token_ids": list(ids), "finish_reason": reason}]})


def usage(prompt: int, completion: int) -> bytes:
    """The last event before the end, with the server's own count."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


def answer(tokens: int, *, prompt: int, ttft_s: float = 0.0, tpot_s: float = 0.0) -> list[Piece]:
    """A whole answer: the headers at once, then one event for each token."""
    pieces: list[Piece] = [HEAD, ttft_s]
    for number in range(tokens):
        last = number == tokens - 1
        pieces += [token(f" {number}", number + 100, reason="length" if last else None), 0.0 if last else tpot_s]
    return [*pieces, usage(prompt, tokens), chunk(DONE), LAST_CHUNK]


def obliging(body: dict[str, object], *, ttft_s: float = 0.0, tpot_s: float = 0.0) -> list[Piece]:
    """As many tokens as the request asks for."""
    prompt, tokens = body["prompt"], body["max_tokens"]
    assert isinstance(prompt, list)
    assert isinstance(tokens, int)
    return answer(tokens, prompt=len(prompt), ttft_s=ttft_s, tpot_s=tpot_s)


async def _send(server: Server, writer: asyncio.StreamWriter, script: Sequence[Piece]) -> None:
    """Send piece after piece; a number is a pause in seconds."""
    for piece in script:
        if isinstance(piece, bytes):
            server.sent_s.append(time.perf_counter())
            writer.write(piece)
            await writer.drain()
        elif piece:
            await asyncio.sleep(piece)


async def _handle(
    server: Server,
    script: Script,
    gate: Callable[[], Awaitable[None]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    server.connections += 1
    with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if head.startswith(b"get"):
                writer.write(server.models)
                continue
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"content-length" in line)
            body = json.loads(await reader.readexactly(length))
            server.bodies.append(body)
            await gate()
            pieces = script(body)
            await _send(server, writer, pieces)
            if not pieces or not isinstance(pieces[-1], bytes) or not pieces[-1].endswith(LAST_CHUNK):
                return  # an answer that does not say where it ends, ends with its connection


@contextlib.contextmanager
def serving(
    script: Script, *, stall_at_s: float | None = None, stall_s: float = 0.0, models: bytes = MODELS
) -> Iterator[Server]:
    """A server in a thread of its own that answers every request by `script`; yields it.

    With `stall_at_s`, nothing is answered for `stall_s` from so many seconds after the first request.
    """
    loop = asyncio.new_event_loop()
    ready: threading.Event = threading.Event()
    server = Server(url="", models=models)
    first: list[float] = []

    async def gate() -> None:
        now_s = loop.time()
        first.append(now_s)
        if stall_at_s is not None and 0 <= now_s - first[0] - stall_at_s < stall_s:
            await asyncio.sleep(first[0] + stall_at_s + stall_s - now_s)

    async def start() -> None:
        listener = await asyncio.start_server(
            lambda reader, writer: _handle(server, script, gate, reader, writer), "127.0.0.1", 0, backlog=4096
        )
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(start())  # noqa: RUF006  (the loop runs until the context ends)
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))  # so that connections are closed, too
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
