"""The HTTP side of a fleet over replicas in memory, with a stand-in for vLLM's application, for tests of telemetry."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from link_builders import Fleet, run, settled
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.engine import packed
from deployments.fleet_engine import FleetCore
from deployments.gate import GENERATING_PATHS, Gate
from deployments.telemetry.fields import TelemetryConfig
from deployments.telemetry.observing import Observed, Watch
from deployments.telemetry.tracing import IngressTracer

PATH = "/v1/completions"
MODEL = "acme/tiny"
PROMPT = [11, 12, 13]
NOW = "2026-01-02T03:04:05.678+00:00"
SETTINGS = TelemetryConfig(request_log=True, ttft_s=1.0, tpot_s=0.1)


class Ingress:
    """What is behind it asks the fleet for one answer and streams a piece of it for each step, as vLLM does: the head
    of the response first."""

    def __init__(self, fleet: Fleet, tracer: IngressTracer | None) -> None:
        self.fleet = fleet
        self.lines: list[str] = []
        self.scopes: list[Any] = []
        self._core = FleetCore(fleet.link, fleet.traffic, speculative=False)
        watch = Watch(
            model=MODEL,
            settings=SETTINGS,
            asked=fleet.link.asked,
            now_s=fleet.link.now,
            clock=lambda: NOW,
            write=self.lines.append,
            tracer=tracer,
        )
        self.app = Observed(Gate(self._answer, fleet.link), watch, lambda scope: scope["path"] in GENERATING_PATHS)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://fleet")

    @property
    def line(self) -> dict[str, Any]:
        """The only one of the log."""
        (line,) = self.lines
        found: dict[str, Any] = json.loads(line)
        return found

    def post(self, **headers: str) -> Awaitable[httpx.Response]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(PATH, json={"prompt": "a secret"}, headers=named)

    def sent(self, replica: str) -> list[EngineCoreRequest]:
        """What a replica was asked."""
        decoder = MsgpackDecoder(EngineCoreRequest)
        return [decoder.decode(frames) for batch in self.fleet[replica].sent for frames in batch.requests]

    async def step(self, replica: str, wire_id: str, *token_ids: int, finish: FinishReason | None = None) -> None:
        """Have a replica compute something of a request; the first one is called `r0`, and once moved `r0~1`."""
        output = EngineCoreOutput(wire_id, list(token_ids), finish_reason=finish)
        step = EngineCoreOutputs(outputs=[output], scheduler_stats=SchedulerStats(), timestamp=self.fleet.link.now())
        self.fleet.link.stepped(replica, packed(MsgpackEncoder().encode(step)))
        await settled()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        name = f"r{len(self.scopes)}"
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await self._core.add_request_async(engine_request(name))
        is_over = False
        while not is_over:
            for output in (await self._core.get_output_async()).outputs:
                is_over = output.finish_reason is not None
                body = json.dumps(output.new_token_ids).encode()
                await send({"type": "http.response.body", "body": body, "more_body": not is_over})


def engine_request(name: str) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=PROMPT,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=9),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def play(
    scenario: Callable[[Ingress], Awaitable[None]], *names: str, tracer: IngressTracer | None = None, **changes: Any
) -> None:
    """Play a scenario with a client of an ingress over the named replicas."""

    async def opened(fleet: Fleet) -> None:
        ingress = Ingress(fleet, tracer)
        async with ingress.client:
            await scenario(ingress)

    run(opened, *names, **changes)
