"""OpenTelemetry traces, where somebody has said where they go. Nothing is imported and nothing done otherwise.

A trace begins with the client's `traceparent` (W3C Trace Context) or here. The span of the HTTP request is the parent
of the spans of the replicas that it was on: `traceparent` goes along in vLLM's own field of a request
(EngineCoreRequest, `trace_headers`). OTLP over HTTP; the SDK's OTEL_* variables hold for what is not configured:
sampling, batches, headers.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deployments.telemetry.journey import FAILED, Journey

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

SERVICE = "archipelago"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_CARRIED = (b"traceparent", b"tracestate")


def tracer(endpoint: str | None, environ: Mapping[str, str], attributes: Mapping[str, str]) -> "Tracer | None":
    """What makes spans; None where nobody wants them. `endpoint` is that of a collector, without /v1/traces.

    Without it the standard variables say where, if they do. `attributes` are those of this process. The provider is not
    made the process's own: vLLM and Ray have theirs.
    """
    if endpoint is None and not any(environ.get(name) for name in _ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, **attributes}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer(SERVICE)


def context_of(headers: Mapping[str, str]) -> "Context":
    """The trace that headers speak of; an empty one where they speak of none, or wrongly."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(dict(headers), Context())


class IngressTracer:
    """Spans of HTTP requests."""

    def __init__(self, tracer: "Tracer", model: str) -> None:
        self._tracer = tracer
        self._model = model

    def begin(self, journey: Journey, headers: Mapping[bytes, bytes]) -> None:
        """Give a journey its span, and the headers by which replicas know it."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = {name.decode(): headers[name].decode("latin-1") for name in _CARRIED if name in headers}
        # Names as in OpenTelemetry's conventions for HTTP servers and for generative AI.
        attributes = {
            "http.request.method": "POST",
            "http.route": journey.path,
            "gen_ai.request.model": self._model,
            "archipelago.request_id": journey.request_id,
        }
        span = self._tracer.start_span(
            f"POST {journey.path}", context_of(given), kind=SpanKind.SERVER, attributes=attributes
        )
        journey.span = span
        if span.is_recording():
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
            journey.trace_headers = carrier

    def end(self, journey: Journey) -> None:
        """End it with what is known now."""
        from opentelemetry.trace import Status, StatusCode

        span = journey.span
        assert span is not None
        span.set_attributes(_known(journey))
        if journey.status >= 500 or journey.finish_reason == FAILED:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def _known(journey: Journey) -> dict[str, Any]:
    return {
        "http.response.status_code": journey.status,
        "gen_ai.usage.input_tokens": journey.input_tokens,
        "gen_ai.usage.output_tokens": journey.output_tokens,
        "gen_ai.response.finish_reasons": [journey.finish_reason] if journey.finish_reason else [],
        "archipelago.replica": journey.first_replica,
        "archipelago.migrations": journey.moves,
    }
