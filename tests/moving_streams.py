"""Streams of every kind of request, and whether a disturbance of the fleet changed anything in them."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import pytest

TEXT = "Twelve islands, zwölf Inseln, 十二の島 🏝"
SCHEMA = {
    "type": "object",
    "properties": {"island": {"enum": ["north", "south"]}, "knots": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["island", "knots"],
    "additionalProperties": False,
}
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1, "top_p": 0.9, "top_k": 50},
    {"temperature": 1, "frequency_penalty": 1.0, "presence_penalty": 0.7, "repetition_penalty": 1.2},
    {"temperature": 0.8, "logprobs": 2},
    {"temperature": 1, "n": 2},
    {"temperature": 0, "min_tokens": 40, "ignore_eos": False, "logit_bias": {"2": 5}},
    {"temperature": 1, "stop": ["zz", "é"], "ignore_eos": False},
    {"temperature": 1, "structured_outputs": {"json": SCHEMA}, "ignore_eos": False},
)


class Gap(NamedTuple):
    """A time without a message, and when it ended."""

    until_s: float
    s: float


@dataclass
class Answer:
    """What one stream brought. Lists are by choice."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: Any = None
    error: str = ""
    arrived_s: list[float] = field(default_factory=list)  # when each message came, by `time.monotonic`

    @property
    def gaps(self) -> list[Gap]:
        """From each message to the next."""
        return [Gap(until_s=after_s, s=after_s - before_s) for before_s, after_s in itertools.pairwise(self.arrived_s)]

    @property
    def longest_gap_s(self) -> float:
        """How long the client has waited between two messages, at the most."""
        return max((gap.s for gap in self.gaps), default=0.0)

    def said(self) -> tuple[Any, ...]:
        """All that must be the same whatever happens to the fleet."""
        return (self.token_ids, self.texts, self.finish_reasons, self.usage, self.error)


def bodies(model: str, count: int, tokens: int) -> list[dict[str, Any]]:
    """``count`` requests of all kinds, each with prompt and seed of its own."""
    rng = random.Random(11)
    made = []
    for index in range(count):
        prompt = TEXT if index % 3 == 0 else [rng.randrange(20, 2000) for _ in range(rng.choice((3, 17, 70)))]
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "seed": index}
        body |= {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
        made.append(body | KINDS[index % len(KINDS)])
    return made


def run(
    url: str, requests: Sequence[dict[str, Any]], meanwhile: Callable[[], Any] | None = None, after_s: float = 1.0
) -> list[Answer]:
    """Send all requests at once; ``meanwhile`` happens (in a thread) ``after_s`` after their start, amid them."""

    async def play() -> list[Answer]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
            answers = [asyncio.create_task(stream(client, body)) for body in requests]
            if meanwhile is not None:
                await asyncio.sleep(after_s)
                assert not all(answer.done() for answer in answers), f"all streams have ended within {after_s:g} s"
                await asyncio.to_thread(meanwhile)
            return await asyncio.gather(*answers)

    return asyncio.run(play())


def keep_on(
    url: str, requests: Sequence[dict[str, Any]], meanwhile: Callable[[], Any], *, clients: int, at_least: int
) -> list[tuple[int, Answer]]:
    """Have ``clients`` streams at any moment until ``meanwhile`` is done and ``at_least`` streams have ended.

    Each answer comes with the index of its request; the requests are sent in turn, again and again.
    """
    answers: list[tuple[int, Answer]] = []

    async def play() -> None:
        limits = httpx.Limits(max_connections=None)
        turns = itertools.count()
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as http:
            disturbance = asyncio.create_task(asyncio.to_thread(meanwhile))

            async def client() -> None:
                while not disturbance.done() or len(answers) < at_least:
                    index = next(turns) % len(requests)
                    answers.append((index, await stream(http, requests[index])))

            await asyncio.gather(disturbance, *(client() for _ in range(clients)))

    asyncio.run(play())
    return answers


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Send one request and take all it brings."""
    answer = Answer()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                answer.error = f"{response.status_code}: {(await response.aread()).decode()}"
                return answer
            async for line in _lines(response):
                if line.startswith(b"data: {"):
                    answer.arrived_s.append(time.monotonic())
                    _take(answer, json.loads(line[6:]))
    except httpx.HTTPError as error:
        answer.error = repr(error)
    return answer


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines by newline alone: httpx would also split at characters that a model may write, such as U+2028."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line


def _take(answer: Answer, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        answer.error = json.dumps(chunk["error"])
        return
    answer.usage = chunk.get("usage") or answer.usage
    for choice in chunk["choices"]:
        index = choice["index"]
        answer.token_ids.setdefault(index, []).extend(choice.get("token_ids") or [])
        answer.texts[index] = answer.texts.get(index, "") + choice["text"]
        if choice.get("logprobs"):
            answer.logprobs.setdefault(index, []).extend(choice["logprobs"]["token_logprobs"])
        if choice["finish_reason"]:
            answer.finish_reasons[index] = choice["finish_reason"]


def assert_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """No stream has lost, repeated or altered anything."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_same_stream(index, one, other)


def assert_same_stream(index: int, one: Answer, other: Answer) -> None:
    """The stream of request ``index`` has lost, repeated or altered nothing."""
    kind = KINDS[index % len(KINDS)]
    assert other.error == ""
    assert one.said() == other.said(), f"stream {index} ({kind}) differs"
    assert one.logprobs.keys() == other.logprobs.keys()
    for choice, logprobs in other.logprobs.items():
        assert one.logprobs[choice] == pytest.approx(logprobs, abs=1e-3), f"stream {index} ({kind})"
