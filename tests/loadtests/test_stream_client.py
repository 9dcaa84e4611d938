import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from loadtests.closed_loop import Load, run_load
from loadtests.stream_client import Sample, stream_completion

# A timer or a scheduler on a busy machine is late, never early (but for the resolution of the clocks).
EARLY_S = 0.005
LATE_S = 1.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
Piece = bytes | float


def token(text: str, *ids: int, reason: str | None = None) -> bytes:
    """One event of vLLM with the given tokens."""
    choice = {"index": 0, "text": text, "token_ids": list(ids), "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


def pieces(*script: Piece) -> Answer:
    """An answer that is sent piece by piece; a number is a pause in seconds."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in script:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            else:
                await asyncio.sleep(piece)

    return answer


@asynccontextmanager
async def serving(answer: Answer, bodies: list[bytes]) -> AsyncIterator[str]:
    """A server on this machine that gives every request the same answer and closes; yields its URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        bodies.append(await reader.readexactly(length))
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def sample_of(answer: Answer, bodies: list[bytes] | None = None, timeout_s: float = 30) -> Sample:
    """What the client makes of an answer."""

    async def ask() -> Sample:
        async with (
            serving(answer, [] if bodies is None else bodies) as url,
            httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client,
        ):
            return await stream_completion(client, f"{url}/v1/completions", {"model": "m", "prompt": [1, 2, 3]})

    return asyncio.run(ask())


# --- times -----------------------------------------------------------------------------------------------------------


def test_the_first_token_is_timed_when_it_arrives_not_with_the_headers_nor_with_an_empty_event() -> None:
    sample = sample_of(
        pieces(HEAD, 0.1, token(""), 0.1, token("a", 7), 0.3, token("b", 8, reason="length"), USAGE, DONE)
    )
    assert sample.error is None
    assert sample.tokens == 2
    assert sample.ttft_s is not None
    assert 0.2 - EARLY_S <= sample.ttft_s < 0.2 + LATE_S
    assert sample.first_s is not None
    assert sample.last_s is not None
    first_s, last_s = sample.first_s, sample.last_s
    assert 0.3 - EARLY_S <= last_s - first_s < 0.3 + LATE_S
    assert sample.tpot_s == pytest.approx(last_s - first_s)
    assert sample.end_s - sample.sent_s >= last_s


def test_an_event_is_seen_before_the_next_is_sent() -> None:
    """A client that fills a buffer before it looks would see both events together."""
    second_sent_s: list[float] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        await pieces(HEAD, token("a", 7), 0.5)(writer)
        second_sent_s.append(time.perf_counter())
        await pieces(token("b", 8, reason="length"), USAGE, DONE)(writer)

    sample = sample_of(answer)
    assert sample.first_s is not None
    assert sample.last_s is not None
    assert sample.sent_s + sample.first_s < second_sent_s[0] <= sample.sent_s + sample.last_s


def test_a_character_cut_between_two_packets_does_no_harm() -> None:
    event = token("漢", 7)
    cut = event.index("漢".encode()) + 1
    sample = sample_of(pieces(HEAD, event[:cut], 0.05, event[cut:], token("b", 8, reason="length"), USAGE, DONE))
    assert (sample.error, sample.tokens) == (None, 2)


def test_a_token_without_text_is_a_token() -> None:
    sample = sample_of(pieces(HEAD, token("", 7), 0.2, token("é", 8, reason="length"), USAGE, DONE))
    assert sample.tpot_s is not None
    assert sample.tpot_s >= 0.2 - EARLY_S


def test_tokens_are_counted_by_the_usage_report_not_by_events() -> None:
    usage = USAGE.replace(b'"completion_tokens": 2', b'"completion_tokens": 5')
    sample = sample_of(pieces(HEAD, token("abc", 7, 8, 9), 0.2, token("de", 10, 11, reason="length"), usage, DONE))
    assert (sample.error, sample.tokens) == (None, 5)
    assert sample.first_s is not None
    assert sample.last_s is not None
    assert sample.tpot_s == pytest.approx((sample.last_s - sample.first_s) / 4)


@pytest.mark.parametrize(
    ("first_s", "last_s", "tokens", "tpot_s"),
    [
        pytest.param(None, None, 0, None, id="none came"),
        pytest.param(0.5, 0.5, 1, None, id="one token has no time between tokens"),
        pytest.param(0.5, 1.5, 3, 0.5, id="three tokens"),
        pytest.param(0.5, 1.5, 5, 0.25, id="several tokens in an event"),
        pytest.param(None, None, 2, None, id="reported but never seen"),
    ],
)
def test_times_of_a_sample(first_s: float | None, last_s: float | None, tokens: int, tpot_s: float | None) -> None:
    sample = Sample(sent_s=0, end_s=2, first_s=first_s, last_s=last_s, tokens=tokens, error=None)
    assert (sample.ttft_s, sample.tpot_s) == (first_s, tpot_s)


# --- errors ----------------------------------------------------------------------------------------------------------

CHUNKED = HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked")
END = token("b", 8, reason="length")
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
OPENAI_ERROR = b'{"error": {"message": "not ready yet", "type": "ServiceUnavailable"}}'


@pytest.mark.parametrize(
    ("script", "error", "is_token_seen"),
    [
        pytest.param([REFUSED % (len(OPENAI_ERROR), OPENAI_ERROR)], "HTTP 503: not ready yet", False, id="refused"),
        pytest.param([REFUSED % (4, b"busy")], "HTTP 503: busy", False, id="refused in plain text"),
        pytest.param([HEAD, token("a", 7)], "the stream ended before [DONE]", True, id="closed too early"),
        pytest.param([CHUNKED, b"5\r\ndata:"], "RemoteProtocolError: ", False, id="cut inside a chunk"),
        pytest.param([b""], "RemoteProtocolError: ", False, id="closed without an answer"),
        pytest.param([HEAD, DONE], "[DONE] came without a finish reason", False, id="no end"),
        pytest.param([HEAD, END, DONE], "the stream reports no usage", True, id="no usage report"),
        pytest.param([HEAD, b"data: {oops\n\n", USAGE, DONE], "an event is not JSON: {oops", False, id="no JSON"),
        pytest.param(
            [HEAD, b"data: 7\n\n", USAGE, DONE],
            "an event is no part of a completion: 7",
            False,
            id="JSON of another kind",
        ),
        pytest.param(
            [HEAD, token("a", 7), b"data: " + OPENAI_ERROR + b"\n\n", DONE],
            "not ready yet",
            True,
            id="an error in the middle of the stream",
        ),
    ],
)
def test_what_went_wrong_is_told_and_what_came_before_is_kept(
    script: list[bytes], error: str, is_token_seen: bool
) -> None:
    sample = sample_of(pieces(*script))
    assert sample.error is not None
    assert sample.error.startswith(error)
    assert (sample.first_s is not None) == is_token_seen


def test_a_stream_that_stalls_ends_with_the_clients_timeout() -> None:
    sample = sample_of(pieces(HEAD, token("a", 7), 3.0), timeout_s=0.2)
    assert sample.error == "ReadTimeout: "


def test_nobody_listens() -> None:
    async def ask() -> Sample:
        async with serving(pieces(), []) as url:
            pass
        async with httpx.AsyncClient(trust_env=False) as client:
            return await stream_completion(client, url, {})

    sample = asyncio.run(ask())
    assert sample.error is not None
    assert sample.error.startswith("ConnectError: ")


# --- requests --------------------------------------------------------------------------------------------------------


def test_the_request_asks_for_all_that_the_sample_needs() -> None:
    bodies: list[bytes] = []
    sample_of(pieces(HEAD, USAGE, DONE), bodies)
    assert [json.loads(body) for body in bodies] == [
        {
            "model": "m",
            "prompt": [1, 2, 3],
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
    ]


def test_a_load_sends_its_prompts_and_never_more_at_once_than_it_has_clients() -> None:
    load = Load(concurrency=3, requests=8, prompt_tokens=4, output_tokens=2, seed=5)
    bodies: list[bytes] = []
    at_once: list[int] = []
    open_requests = 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal open_requests
        open_requests += 1
        at_once.append(open_requests)
        await pieces(HEAD, token("a", 7), 0.05, token("b", 8, reason="length"), USAGE)(writer)
        open_requests -= 1
        await pieces(DONE)(writer)

    async def run() -> list[Sample]:
        async with serving(answer, bodies) as url:
            return await run_load(url, "m", load)

    samples = asyncio.run(run())
    assert [(sample.error, sample.tokens) for sample in samples] == [(None, 2)] * 8
    sent = [json.loads(body) for body in bodies]
    assert sorted(body["prompt"] for body in sent) == sorted(load.iter_prompts())
    assert {(body["max_tokens"], body["temperature"], body["ignore_eos"]) for body in sent} == {(2, 0, True)}
    assert max(at_once) == 3


def test_prompts_depend_on_the_seed_alone() -> None:
    def prompts(seed: int, concurrency: int = 1) -> list[list[int]]:
        load = Load(concurrency=concurrency, requests=5, prompt_tokens=64, output_tokens=1, seed=seed)
        return list(load.iter_prompts())

    assert prompts(1) == prompts(1, concurrency=8)
    assert prompts(1) != prompts(2)
    assert [len(prompt) for prompt in prompts(1)] == [64] * 5
    assert len({tuple(prompt[:4]) for prompt in prompts(1)}) == 5
