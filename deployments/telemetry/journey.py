"""One HTTP request on its way through an ingress: the replicas it was on, its tokens and its times. Pure.

An HTTP request may be several to the engines (`n` choices, several prompts); each of them is a `Leg`.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from deployments.metrics.counting import REFUSALS, PromptTokens, RequestOutcome, SloOutcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span

ABORTED, FAILED = "abort", "error"  # vLLM's words (vllm/v1/engine/__init__.py, FINISH_REASON_STRINGS)


@dataclass(slots=True, kw_only=True)
class Leg:
    """One request to the engines. `replica` is the last one that it got tokens of."""

    wire_id: str
    moves: int = 0
    replica: str = ""
    shape: str = ""
    output_tokens: int = 0
    first_at_s: float = 0.0
    last_at_s: float = 0.0
    finish_reason: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Mean time from one token to the next; None with fewer than two."""
        gaps = self.output_tokens - 1
        return (self.last_at_s - self.first_at_s) / gaps if gaps > 0 else None


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Journey:
    """Times are on the ingress's monotonic clock. `trace_headers` go along to replicas; `key` is the client's name."""

    request_id: str
    path: str
    arrived_at_s: float
    key: str | None = None
    span: "Span | None" = None
    trace_headers: Mapping[str, str] | None = None
    legs: dict[str, Leg] = field(default_factory=dict)
    prompts: PromptTokens = field(default_factory=PromptTokens)
    input_tokens: int = 0
    first_replica: str = ""
    first_at_s: float | None = None
    status: int = 0  # none was sent yet
    is_failed: bool = False
    is_complete: bool = False  # the client got the whole answer
    ended_at_s: float = 0.0

    def sent(self, engine_id: str, wire_id: str, prompt_token_ids: Sequence[int]) -> None:
        """A leg is about to go to a replica, under another wire id each time that it really goes."""
        leg = self.legs.get(engine_id)
        if leg is None:
            self.legs[engine_id] = Leg(wire_id=wire_id)
            self.input_tokens += self.prompts.more(prompt_token_ids)
        elif wire_id != leg.wire_id:
            leg.wire_id = wire_id
            leg.moves += 1
            self._note("moved", {"from": leg.replica})

    def got(self, engine_id: str, replica: str, shape: str, tokens: int, finish_reason: str, now_s: float) -> None:
        """A replica has computed tokens of a leg; `finish_reason` is empty while it goes on."""
        leg = self.legs[engine_id]
        if tokens:
            if self.first_at_s is None:
                self.first_at_s, self.first_replica = now_s, replica
                self._note("first token", {"replica": replica})
            if not leg.output_tokens:
                leg.first_at_s = now_s
            leg.last_at_s, leg.replica, leg.shape = now_s, replica, shape
            leg.output_tokens += tokens
            self.prompts.generated(tokens)
        leg.finish_reason = finish_reason

    def failed(self) -> None:
        """A leg was given up, which may never have been sent."""
        self.is_failed = True

    @property
    def ttft_s(self) -> float | None:
        """From the arrival to the first token of any leg; None before it."""
        return None if self.first_at_s is None else self.first_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> float | None:
        """That of the slowest leg."""
        return max((tpot_s for leg in self.legs.values() if (tpot_s := leg.tpot_s) is not None), default=None)

    @property
    def output_tokens(self) -> int:
        return sum(leg.output_tokens for leg in self.legs.values())

    @property
    def moves(self) -> int:
        return sum(leg.moves for leg in self.legs.values())

    @property
    def finish_reason(self) -> str:
        """Of all legs: the worst. One that the engine was told to drop ended with a stop string, or its client left."""
        if self.is_failed:
            return FAILED
        reasons = [leg.finish_reason or ("stop" if self.is_complete else ABORTED) for leg in self.legs.values()]
        return next((reason for reason in (FAILED, ABORTED, "length") if reason in reasons), next(iter(reasons), ""))

    @property
    def outcome(self) -> RequestOutcome:
        """What became of it."""
        if self.status in REFUSALS:
            return "refused"
        if HTTPStatus.BAD_REQUEST <= self.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return "invalid"
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR or self.finish_reason == FAILED:
            return "failed"
        return "answered" if self.is_complete else "abandoned"

    def slo(self, ttft_s: float, tpot_s: float) -> SloOutcome | None:
        """Whether it kept the promise. None where nothing was promised: the request was wrong, or its client left
        while all was well."""
        if self.outcome == "invalid":
            return None
        waited_s = self.ended_at_s - self.arrived_at_s if self.ttft_s is None else self.ttft_s
        is_slow = waited_s > ttft_s or (self.tpot_s or 0.0) > tpot_s
        if is_slow or self.outcome in {"refused", "failed"}:
            return "missed"
        return "met" if self.outcome == "answered" else None

    def _note(self, name: str, attributes: Mapping[str, str]) -> None:
        if self.span is not None:
            self.span.add_event(name, attributes)


# The journey that is being made, for the engine far below the HTTP server.
current_journey: ContextVar[Journey | None] = ContextVar("current_journey", default=None)
