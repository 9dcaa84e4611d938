"""A request as a trace: from the client's `traceparent` over the ingress to each replica that it was on."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from link_builders import member, passed, settled
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from simulated_clock import Clock
from simulation_builders import VOCABULARY, limits
from telemetry_builders import MODEL, PATH, Ingress, engine_request, play
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, FinishReason
from vllm.v1.serial_utils import MsgpackEncoder

from deployments.engine import packed
from deployments.simulated_engine import Answers, SimulatedEngine
from deployments.simulation.pace import Pace
from deployments.simulation.scheduler import Scheduler
from deployments.telemetry.replica_spans import ReplicaSpans, replica_spans
from deployments.telemetry.tracing import IngressTracer, tracer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
QUEUED, SCHEDULED, PREEMPTED = EngineCoreEventType
S = 1_000_000_000


class Collected:
    """Spans that have ended, in memory."""

    def __init__(self, **changes: Any) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(**changes)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def __getitem__(self, name: str) -> ReadableSpan:
        (span,) = [one for one in self.spans if one.name == name]
        return span


def ids(span: ReadableSpan) -> tuple[str, str | None]:
    """The trace that a span is of, and its parent."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else None


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / S - Replica.BEGAN_S, span.end_time / S - Replica.BEGAN_S


@pytest.mark.parametrize("given", [TRACEPARENT, "", "00-nonsense", f"00-{TRACE}-{'0' * 16}-01"])
def test_a_request_is_a_span_of_the_clients_trace_or_of_one_of_its_own(given: str) -> None:
    collected = Collected()

    async def scenario(ingress: Ingress) -> None:
        answering = asyncio.ensure_future(ingress.post(traceparent=given, x_request_id="mine"))
        await settled()
        await ingress.step("a", "r0", 7, finish=FinishReason.LENGTH)
        await answering
        span = collected[f"POST {PATH}"]
        trace, parent = ids(span)
        assert parent == (PARENT if given == TRACEPARENT else None)
        assert (trace == TRACE) == (given == TRACEPARENT)
        assert span.attributes is not None
        assert dict(span.attributes) == {
            "http.request.method": "POST",
            "http.route": PATH,
            "http.response.status_code": 200,
            "gen_ai.request.model": MODEL,
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 1,
            "gen_ai.response.finish_reasons": ("length",),
            "archipelago.request_id": "mine",
            "archipelago.replica": "a",
            "archipelago.migrations": 0,
        }

    play(scenario, "a", tracer=IngressTracer(collected.tracer, MODEL))


def test_each_replica_gets_the_ingresss_span_as_parent_and_a_move_is_an_event() -> None:
    collected = Collected()

    async def scenario(ingress: Ingress) -> None:
        answering = asyncio.ensure_future(ingress.post(traceparent=TRACEPARENT))
        await settled()
        await ingress.step("a", "r0", 7)
        ingress.fleet.add(member("b"))
        await settled()
        ingress.fleet.change("a", leaves=True)
        await settled()
        await passed(0.1)
        await ingress.step("b", "r0~1", 8, finish=FinishReason.STOP)
        await answering
        span = collected[f"POST {PATH}"]
        assert span.context is not None
        expected = f"00-{TRACE}-{span.context.span_id:016x}-01"
        for replica in ("a", "b"):
            assert [one.trace_headers for one in ingress.sent(replica)] == [{"traceparent": expected}]
        assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
            ("first token", {"replica": "a"}),
            ("moved", {"from": "a"}),
        ]

    play(scenario, "a", tracer=IngressTracer(collected.tracer, MODEL))


@pytest.mark.parametrize("has_tracer", [False, True])
def test_without_a_trace_or_where_it_is_not_sampled_replicas_are_told_nothing(has_tracer: bool) -> None:
    collected = Collected(sampler=ALWAYS_OFF)

    async def scenario(ingress: Ingress) -> None:
        answering = asyncio.ensure_future(ingress.post(traceparent=TRACEPARENT))
        await settled()
        await ingress.step("a", "r0", 7, finish=FinishReason.STOP)
        await answering
        assert [one.trace_headers for one in ingress.sent("a")] == [None]
        assert collected.spans == ()

    play(scenario, "a", tracer=IngressTracer(collected.tracer, MODEL) if has_tracer else None)


class Replica:
    """Spans of a replica whose engine's clock is another machine's. Times are seconds since the test began."""

    AHEAD_S = 5000.0
    BEGAN_S = 1000.0

    def __init__(self) -> None:
        self.collected = Collected()
        self.now_s = 0.0
        self.spans = ReplicaSpans(self.collected.tracer, lambda: int((self.BEGAN_S + self.now_s) * S))

    def step(self, at_s: float, *tokens: int, finish: FinishReason | None = None, **events: float) -> None:
        self.now_s = at_s
        happened = [EngineCoreEvent(EngineCoreEventType[name], self.AHEAD_S + s) for name, s in events.items()]
        output = EngineCoreOutput("r", list(tokens), finish_reason=finish, events=happened or None)
        self.spans.stepped([output], self.AHEAD_S + at_s)


def test_a_replica_tells_how_long_a_request_waited_was_read_and_was_written() -> None:
    replica = Replica()
    replica.spans.submitted("r", {"traceparent": TRACEPARENT})
    replica.step(0.75, 7, QUEUED=0.01, SCHEDULED=0.25)
    replica.step(1.0, 8, PREEMPTED=0.8, SCHEDULED=0.9)
    replica.step(1.5, 9, finish=FinishReason.LENGTH)
    whole = replica.collected["replica"]
    assert ids(whole) == (TRACE, PARENT)
    assert whole.context is not None
    assert {ids(replica.collected[name]) for name in ("queue", "prefill", "decode")} == {
        (TRACE, f"{whole.context.span_id:016x}")
    }
    assert whole.attributes is not None
    assert dict(whole.attributes) == {
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "archipelago.preemptions": 1,
    }
    times = {span.name: pytest.approx(seconds(span), abs=1e-6) for span in replica.collected.spans}
    assert times == {"queue": (0, 0.25), "prefill": (0.25, 0.75), "decode": (0.75, 1.5), "replica": (0, 1.5)}


def test_a_request_that_leaves_before_its_first_token_only_waited() -> None:
    replica = Replica()
    replica.spans.submitted("r", {"traceparent": TRACEPARENT})
    replica.spans.submitted("without a trace", None)
    replica.step(1.0, SCHEDULED=0.5)
    replica.now_s = 2.0
    replica.spans.aborted(["r", "without a trace", "r"])
    assert sorted(span.name for span in replica.collected.spans) == ["queue", "replica"]
    attributes = replica.collected["replica"].attributes
    assert attributes is not None
    assert attributes["gen_ai.response.finish_reasons"] == ("abort",)


def test_the_simulated_engine_tells_of_its_requests() -> None:
    async def serve(engine: SimulatedEngine) -> None:
        asked = engine_request("r")
        asked.trace_headers = {"traceparent": TRACEPARENT}
        await engine.submit("ingress", packed(MsgpackEncoder().encode(asked)))
        while engine.unfinished_requests:
            await engine.next_step()

    collected, clock = Collected(), Clock()
    bounds = limits()
    engine = SimulatedEngine(
        Scheduler(bounds, lambda batch: 0.5),
        Answers(vocabulary=VOCABULARY, request_tokens=bounds.request_tokens),
        Pace(scale=1.0, now_s=clock.now_s, sleep=clock.sleep),
        (),
    )
    engine.spans = ReplicaSpans(collected.tracer, lambda: int((Replica.BEGAN_S + clock.now_s()) * S))
    asyncio.run(serve(engine))
    times = {span.name: pytest.approx(seconds(span), abs=1e-6) for span in collected.spans}
    assert times == {"queue": (0, 0), "prefill": (0, 0.5), "decode": (0.5, 4.5), "replica": (0, 4.5)}


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        received: list[tuple[str, bytes]] = vars(self.server)["received"]
        received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A collector of OTLP over HTTP; gives its address and what it has received."""
    server = HTTPServer(("127.0.0.1", 0), _Receiver)
    received: list[tuple[str, bytes]] = []
    vars(server)["received"] = received
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("place", ["configuration", "environment"])
def test_spans_arrive_at_a_collector(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, received):
        if place == "environment":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        spans = replica_spans(url if place == "configuration" else None, "m--tp2--0", "tp2", MODEL, lambda: 5 * S)
        assert spans is not None
        spans.submitted("r", {"traceparent": TRACEPARENT})
        spans.aborted(["r"])
        vars(spans)["_tracer"].span_processor.force_flush(5000)
        ((path, body),) = received
        assert path == "/v1/traces"
        (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
        resource = {one.key: one.value.string_value for one in sent.resource.attributes}
        assert resource["service.name"] == "archipelago"
        assert (resource["archipelago.replica"], resource["archipelago.shape"]) == ("m--tp2--0", "tp2")
        (span,) = sent.scope_spans[0].spans
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)


def test_where_nobody_wants_traces_nothing_is_made_and_nothing_imported() -> None:
    assert tracer(None, {}, {}) is None
    modules = "deployments.telemetry.observing, deployments.telemetry.replica_spans"
    code = f"import sys, {modules}; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
