"""One streamed completion over HTTP, timed where its tokens arrive.

Times start when the request is handed to the HTTP client. Tokens are counted by the server's own usage report and never
by the number of events, since a server may put several tokens into one event and an event may carry no token.
"""

import codecs
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

DONE = "[DONE]"
SHOWN_CHARACTERS = 300  # of an error's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its client saw it.

    ``sent_s`` and ``end_s`` are on the clock of ``time.perf_counter``; ``token_times_s`` are seconds after ``sent_s``,
    one for each event that carried tokens. ``error`` is None only when the stream was complete.
    """

    sent_s: float
    end_s: float
    token_times_s: tuple[float, ...]
    tokens: int
    error: str | None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token; None when none came."""
        return self.token_times_s[0] if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first: (last - first) / (tokens - 1); None below two tokens."""
        if self.tokens < 2 or not self.token_times_s:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (self.tokens - 1)


class SseParser:
    """Cuts the bytes of a stream of server-sent events into the events' data, however the bytes were cut on the way.

    Of the standard this leaves out what no completion uses: event names, ids and retry times.
    """

    def __init__(self) -> None:
        # Both hold back what a later chunk may complete: a character's first bytes, and a CR that an LF may follow.
        characters = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decoder = io.IncrementalNewlineDecoder(characters, translate=True)
        self._rest = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes; return the data of every event that they complete."""
        *lines, self._rest = (self._rest + self._decoder.decode(chunk)).split("\n")
        events: list[str] = []
        for line in lines:
            if not line and self._data:
                events.append("\n".join(self._data))
                self._data.clear()
            elif line == "data" or line.startswith("data:"):
                self._data.append(line[len("data:") :].removeprefix(" "))
        return events


class _Answer:
    """What has been read of one answer."""

    def __init__(self) -> None:
        self.token_times_s: list[float] = []
        self.tokens: int | None = None
        self.is_done = False
        self.error: str | None = None

    def take(self, data: str, at_s: float) -> None:
        """Read one event."""
        if data == DONE:
            self.is_done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            self.fail(f"an event is not JSON: {data}")
            return
        if not isinstance(event, dict) or "error" in event:
            self.fail(f"the stream says: {_message(data)}")
            return
        if any(choice.get("token_ids") or choice.get("text") for choice in event.get("choices", ())):
            self.token_times_s.append(at_s)
        if usage := event.get("usage"):
            self.tokens = usage["completion_tokens"]

    def end(self) -> None:
        """The server has closed the stream in good order."""
        if not self.is_done:
            self.fail(f"the stream ended before {DONE}")
        elif self.tokens is None:
            self.fail("the stream reports no usage, so its tokens cannot be counted")

    def fail(self, error: str) -> None:
        """Keep the first error: the others follow from it."""
        self.error = self.error or error[:SHOWN_CHARACTERS]


async def stream_completion(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> Sample:
    """Send one request to ``url`` (.../v1/completions) and read its stream to the end.

    Asks for the stream, the usage report and the ids of the tokens: a token whose bytes are not yet a whole character
    has no text. Does not raise for what the server or the network does; that is the sample's ``error``.
    """
    request = {**body, "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    answer = _Answer()
    parser = SseParser()
    sent_s = time.perf_counter()
    try:
        async with client.stream("POST", url, json=request) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                answer.fail(f"HTTP {response.status_code}: {_message(text)}")
            else:
                async for chunk in response.aiter_bytes():
                    at_s = time.perf_counter() - sent_s
                    for data in parser.feed(chunk):
                        answer.take(data, at_s)
                answer.end()
    except httpx.HTTPError as error:
        answer.fail(f"{type(error).__name__}: {error}")
    return Sample(
        sent_s=sent_s,
        end_s=time.perf_counter(),
        token_times_s=tuple(answer.token_times_s),
        tokens=answer.tokens or 0,
        error=answer.error,
    )


def _message(text: str) -> str:
    """The sentence inside an OpenAI-style error, else the whole text."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text
