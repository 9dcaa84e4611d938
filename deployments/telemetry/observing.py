"""ASGI middleware around everything that answers a request to generate: what it went through is counted and told.

The response's headers go out with the first piece of its body, when it is known which replica gave the first token. A
client waits for that piece anyway; vLLM would send the headers of a stream before any replica is chosen.
"""

import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from deployments.access.refusing import AsgiApp, Message, Receive, Scope, Send
from deployments.metrics.counting import Asked
from deployments.telemetry.fields import TelemetryConfig
from deployments.telemetry.journey import Journey, current_journey
from deployments.telemetry.request_log import line
from deployments.telemetry.tracing import IngressTracer, tracer

REPLICA_HEADER = b"x-archipelago-replica"
REQUEST_ID_HEADER = b"x-request-id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # what may stand in a header and in a line of a log


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told. `now_s` is monotonic, `clock` says the time of day in ISO 8601, `write` takes a line of the log."""

    model: str
    settings: TelemetryConfig
    asked: Asked
    now_s: Callable[[], float]
    clock: Callable[[], str]
    write: Callable[[str], None]
    tracer: IngressTracer | None = None

    def begin(self, scope: Scope) -> Journey:
        """A request has arrived."""
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID_HEADER, b"").decode("latin-1")
        journey = Journey(
            request_id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
            path=scope["path"],
            arrived_at_s=self.now_s(),
            key=scope.get("state", {}).get("api_key"),
        )
        if self.tracer is not None:
            self.tracer.begin(journey, headers)
        return journey

    def end(self, journey: Journey) -> None:
        """Its answer is over, whole or not."""
        journey.ended_at_s = self.now_s()
        outcome = journey.slo(self.settings.ttft_s, self.settings.tpot_s)
        if outcome is not None:
            self.asked.slo[outcome] += 1
        use = self.asked.by_key[journey.key or ""]
        use.requests[journey.outcome] += 1
        use.input_tokens += journey.input_tokens
        use.output_tokens += journey.output_tokens
        if self.settings.request_log:
            self.write(line(journey, self.model, self.clock()))
        if self.tracer is not None:
            self.tracer.end(journey)


class Observed:
    """`generates` says which requests are watched; the others pass."""

    def __init__(self, app: AsgiApp, watch: Watch, generates: Callable[[Scope], bool]) -> None:
        self._app = app
        self._watch = watch
        self._generates = generates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and watch."""
        if scope["type"] != "http" or not self._generates(scope):
            await self._app(scope, receive, send)
            return
        journey = self._watch.begin(scope)
        others = [header for header in scope["headers"] if header[0] != REQUEST_ID_HEADER]
        headers = [*others, (REQUEST_ID_HEADER, journey.request_id.encode())]  # vLLM makes its own ids of it
        token = current_journey.set(journey)
        try:
            await self._app({**scope, "headers": headers}, receive, _Answer(journey, send).send)
        except Exception:
            journey.status = journey.status or 500  # the server below answers so
            raise
        finally:
            current_journey.reset(token)
            self._watch.end(journey)


class _Answer:
    """Holds the headers of a response back until there is something to send behind them."""

    def __init__(self, journey: Journey, send: Send) -> None:
        self._journey = journey
        self._send = send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        """Send it, or keep it."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            self._journey.status = start["status"]
            await self._send({**start, "headers": [*start.get("headers", ()), *self._headers()]})
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._journey.is_complete = True

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(REQUEST_ID_HEADER, self._journey.request_id.encode())]
        if self._journey.first_replica:
            headers.append((REPLICA_HEADER, self._journey.first_replica.encode("latin-1", "replace")))
        return headers


def watch(model: str, settings: TelemetryConfig, asked: Asked, ingress: str) -> Watch:
    """Who is told in a process that serves `model` as `ingress`: its standard output and a collector, as configured."""
    traces = tracer(settings.otlp_endpoint, os.environ, {"service.instance.id": ingress, "gen_ai.request.model": model})
    return Watch(
        model=model,
        settings=settings,
        asked=asked,
        now_s=time.monotonic,
        clock=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"),
        write=_write,
        tracer=None if traces is None else IngressTracer(traces, model),
    )


def _write(text: str) -> None:
    """Past the loggers, which would put their own words around it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
