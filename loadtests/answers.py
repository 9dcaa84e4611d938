"""Reads one streamed answer, piece by piece, and judges it: whole, or damaged in a way that has a name. Does no I/O.

An event is mostly one line, `data: ` and its JSON: vLLM and its like write no others. Only where that line alone is no
JSON are the further ones of the event read as well (WHATWG HTML, 9.2.6).
"""

import hashlib
import json
from typing import Any

from loadtests.records import Outcome

MAX_LINE_BYTES = 1 << 22
_SHOWN_CHARACTERS = 300  # of what the server said
_DONE = b"[DONE]"
_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")
# What json.loads raises; a server may nest deeper than Python reads.
_NO_JSON = (ValueError, RecursionError)
_BAD_ENDS = frozenset({"abort", "error"})


class Answer:
    """What has been read of one answer. Times are those of whoever calls; `outcome` is None while nothing is wrong."""

    __slots__ = (
        "_begun_event",
        "_rest",
        "_text",
        "_tokens",
        "_unlike_events",
        "detail",
        "events",
        "finish_reason",
        "first_s",
        "input_tokens",
        "is_done",
        "last_s",
        "longest_gap_s",
        "outcome",
        "output_tokens",
    )

    def __init__(self, *, keeps_text: bool) -> None:
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.longest_gap_s: float | None = None
        self.events = 0
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.is_done = False
        self.outcome: Outcome | None = None
        self.detail: str | None = None
        self._tokens = 0
        self._text: list[bytes] | None = [] if keeps_text else None
        self._unlike_events = b""
        self._begun_event = bytearray()  # the data of one that goes on in the next line
        self._rest = b""

    def feed(self, chunk: bytes, at_s: float) -> bool:
        """Read what arrived at `at_s`, wherever it was cut; False when it is no use to read on."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line or self._begun_event:
                self.take(line, at_s)
        if len(self._rest) > MAX_LINE_BYTES:
            self.fail("garbage", f"a line of more than {MAX_LINE_BYTES} bytes")
            return False
        return True

    def take(self, line: bytes, at_s: float) -> None:
        """Read one line, without its end, that arrived at `at_s`."""
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == _DONE:
                self.is_done = True
            elif self._begun_event:
                if len(self._begun_event) < MAX_LINE_BYTES:
                    self._begun_event += b"\n" + data
            else:
                self._take_event(data, at_s, is_whole=False)
        elif not line.strip():
            self._end_event(at_s)
        elif not line.startswith(_OTHER_FIELDS) and len(self._unlike_events) < MAX_LINE_BYTES:
            self._unlike_events += line + b"\n"

    def end(self, asked_output_tokens: int | None, at_s: float) -> None:
        """The server has closed the answer in good order; `asked_output_tokens` is None where it may end sooner."""
        if self._rest:
            self.take(self._rest, at_s)
        self._end_event(at_s)
        if self._unlike_events:
            self._judge_body()
        elif not self.is_done:
            self.fail("cut", "the stream ended before [DONE]")
        elif self.finish_reason is None:
            self.fail("cut", "[DONE] came without a finish reason")
        elif self.finish_reason in _BAD_ENDS:
            self.fail("error-event", f"finish reason {self.finish_reason}")
        elif self.output_tokens is None:
            self.fail("no-usage", "the stream reports no usage, so its tokens cannot be counted")
        elif self._tokens and self._tokens != self.output_tokens:
            self.fail("gap-or-repeat", f"{self._tokens} tokens came, usage says {self.output_tokens}")
        elif asked_output_tokens is not None and self.output_tokens != asked_output_tokens:
            self.fail("gap-or-repeat", f"usage says {self.output_tokens} tokens, {asked_output_tokens} were asked for")

    def fail(self, outcome: Outcome, detail: str) -> None:
        """Keep the first failure: the others follow from it."""
        if self.outcome is None:
            self.outcome, self.detail = outcome, detail[:_SHOWN_CHARACTERS]

    def text_sha(self) -> str | None:
        """The hash of the text; None where the text is not kept."""
        return None if self._text is None else hashlib.sha256(b"".join(self._text)).hexdigest()

    def _end_event(self, at_s: float) -> None:
        """An empty line: what is no JSON by now is none."""
        if self._begun_event:
            data, self._begun_event = bytes(self._begun_event), bytearray()
            self._take_event(data, at_s, is_whole=True)

    def _take_event(self, data: bytes, at_s: float, *, is_whole: bool) -> None:
        try:
            event = json.loads(data)
        except _NO_JSON:
            if is_whole:
                self.fail("garbage", f"an event is not JSON: {shown(data)}")
            else:
                self._begun_event += data
            return
        try:
            if event.get("error") is not None:
                self.fail("error-event", said(data))
                return
            for choice in event["choices"]:
                self._take_choice(choice, at_s)
            if usage := event.get("usage"):
                self.input_tokens, self.output_tokens = (
                    _count(usage["prompt_tokens"]),
                    _count(usage["completion_tokens"]),
                )
        except (TypeError, ValueError, LookupError, AttributeError):
            self.fail("garbage", f"an event is no part of a completion: {shown(data)}")

    def _take_choice(self, choice: dict[str, Any], at_s: float) -> None:
        if choice.get("index"):
            self.fail("gap-or-repeat", "a second choice came; one was asked for")
        ids = choice.get("token_ids")
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else _text_of(delta)
        if ids or text:
            self._tokens += len(ids or ())
            self._time(at_s)
            if self._text is not None and text:
                self._text.append(text.encode(errors="replace"))
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)

    def _time(self, at_s: float) -> None:
        if self.last_s is None:
            self.first_s = at_s
        elif self.longest_gap_s is None or at_s - self.last_s > self.longest_gap_s:
            self.longest_gap_s = at_s - self.last_s
        self.last_s = at_s
        self.events += 1

    def _judge_body(self) -> None:
        """A body that has lines no stream of events has."""
        try:
            is_error = "error" in json.loads(self._unlike_events)
        except (*_NO_JSON, TypeError):
            is_error = False
        if is_error:
            self.fail("error-body", said(self._unlike_events))
        else:
            self.fail("garbage", f"the answer is not a stream of events: {shown(self._unlike_events)}")


def _count(tokens: object) -> int:
    """The server's own count. Raises ValueError where it is none."""
    if not isinstance(tokens, int) or tokens < 0:
        raise ValueError(f"{tokens!r} is no number of tokens")
    return tokens


def _text_of(delta: dict[str, Any]) -> str | None:
    """What a chat's user sees of an event: text, reasoning, or the arguments of a tool; an empty one is no token."""
    text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    if text is None and (calls := delta.get("tool_calls")):
        return json.dumps(calls)
    return text or None


def said(body: bytes) -> str:
    """The sentence inside an OpenAI-style error, else the whole text."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (*_NO_JSON, LookupError, TypeError):
        return shown(body)


def shown(data: bytes) -> str:
    """The beginning of what a server sent, as text."""
    return data[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")[:_SHOWN_CHARACTERS]
