"""Spans of the requests on one replica: how long each waited, was read and was written.

They are made when a request has ended there, of the times that the engine's steps tell. A request that goes on
elsewhere ends here with `abort`, and has another span there.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deployments.telemetry.journey import ABORTED
from deployments.telemetry.tracing import context_of, tracer

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

_NS = 1_000_000_000


class Event(Protocol):
    """vLLM's EngineCoreEvent: `type` is QUEUED, SCHEDULED or PREEMPTED, `timestamp` on the clock of its step."""

    type: Any
    timestamp: float


class Output(Protocol):
    """vLLM's EngineCoreOutput."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: Any
    events: Any


@dataclass(slots=True, kw_only=True)
class _Live:
    """Times are nanoseconds since the epoch; 0 is not yet."""

    context: "Context"
    began_ns: int
    scheduled_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    tokens: int = 0
    preemptions: int = 0


class ReplicaSpans:
    """Of the requests that came with a trace. `now_ns` is the time of day."""

    def __init__(self, tracer: "Tracer", now_ns: Callable[[], int]) -> None:
        self._tracer = tracer
        self._now_ns = now_ns
        self._live: dict[str, _Live] = {}

    def submitted(self, request_id: str, trace_headers: Mapping[str, str] | None) -> None:
        """A request has come."""
        if trace_headers:
            self._live[request_id] = _Live(context=context_of(trace_headers), began_ns=self._now_ns())

    def stepped(self, outputs: Iterable[Output], sent_at_s: float) -> None:
        """A step is over; `sent_at_s` is on the clock of its events, which may be another machine's."""
        if not self._live:
            return
        now_ns = self._now_ns()
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None:
                continue
            for event in output.events or ():
                _take(live, event, now_ns - int((sent_at_s - event.timestamp) * _NS))
            if output.new_token_ids:
                live.first_ns = live.first_ns or now_ns
                live.last_ns = now_ns
                live.tokens += len(output.new_token_ids)
            if output.finish_reason is not None:
                self._end(output.request_id, str(output.finish_reason), now_ns)

    def aborted(self, request_ids: Sequence[str]) -> None:
        """Requests were dropped; unknown ones have ended already."""
        for request_id in request_ids:
            if request_id in self._live:
                self._end(request_id, ABORTED, self._now_ns())

    def _end(self, request_id: str, finish_reason: str, now_ns: int) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        live = self._live.pop(request_id)
        attributes: dict[str, Any] = {
            "gen_ai.usage.output_tokens": live.tokens,
            "gen_ai.response.finish_reasons": [finish_reason],
            "archipelago.preemptions": live.preemptions,
        }
        span = self._tracer.start_span(
            "replica", live.context, kind=SpanKind.SERVER, attributes=attributes, start_time=live.began_ns
        )
        inside = set_span_in_context(span)
        bounds = (live.began_ns, live.scheduled_ns, live.first_ns, live.last_ns)
        for name, from_ns, to_ns in zip(("queue", "prefill", "decode"), bounds, bounds[1:], strict=False):
            if from_ns and to_ns:
                self._tracer.start_span(name, inside, start_time=from_ns).end(to_ns)
        span.end(now_ns)


def _take(live: _Live, event: Event, at_ns: int) -> None:
    if event.type.name == "SCHEDULED" and not live.scheduled_ns:
        live.scheduled_ns = max(at_ns, live.began_ns)
    live.preemptions += event.type.name == "PREEMPTED"


def replica_spans(
    endpoint: str | None, replica: str, shape: str, model: str, now_ns: Callable[[], int]
) -> ReplicaSpans | None:
    """What makes the spans of this process's replica; None where nobody wants them."""
    attributes = {
        "service.instance.id": replica,
        "archipelago.replica": replica,
        "archipelago.shape": shape,
        "gen_ai.request.model": model,
    }
    made = tracer(endpoint, os.environ, attributes)
    return None if made is None else ReplicaSpans(made, now_ns)
