"""One streamed completion over HTTP from an asyncio program, timed where its tokens arrive.

Times start when the request is handed to the HTTP client. `client.py` does the same for thousands of requests at once,
on gevent and by a schedule; what an answer must have to be whole is in `answers.py` for both.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from loadtests.answers import Answer, said


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its client saw it.

    ``sent_s`` and ``end_s`` are on the clock of ``time.perf_counter``; ``first_s`` and ``last_s``, of the first and the
    last event that carried tokens, are seconds after ``sent_s``. ``error`` is None only when the answer was whole.
    """

    sent_s: float
    end_s: float
    first_s: float | None
    last_s: float | None
    tokens: int
    error: str | None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token; None when none came."""
        return self.first_s

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first: (last - first) / (tokens - 1); None below two tokens."""
        if self.tokens < 2 or self.first_s is None or self.last_s is None:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)


async def stream_completion(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> Sample:
    """Send one request to ``url`` (.../v1/completions) and read its stream to the end.

    Asks for the stream, the usage report and the ids of the tokens: a token whose bytes are not yet a whole character
    has no text. Does not raise for what the server or the network does; that is the sample's ``error``.
    """
    request = {**body, "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    answer = Answer(keeps_text=False)
    sent_s = time.perf_counter()
    try:
        async with client.stream("POST", url, json=request) as response:
            if response.status_code != httpx.codes.OK:
                answer.fail("http-error", f"HTTP {response.status_code}: {said(await response.aread())}")
            else:
                await _read(response, answer, sent_s)
    except httpx.HTTPError as error:
        answer.fail("cut", f"{type(error).__name__}: {error}")
    return Sample(
        sent_s=sent_s,
        end_s=time.perf_counter(),
        first_s=answer.first_s,
        last_s=answer.last_s,
        tokens=answer.output_tokens or 0,
        error=answer.detail,
    )


async def _read(response: httpx.Response, answer: Answer, sent_s: float) -> None:
    async for chunk in response.aiter_bytes():
        if not answer.feed(chunk, time.perf_counter() - sent_s):
            return
    answer.end(None, time.perf_counter() - sent_s)
