"""The ingress's half of the vLLM adapter: vLLM's AsyncLLM and OpenAI application over a fleet of replicas."""

import asyncio
import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

from fastapi import FastAPI
from vllm.config import ParallelConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.exceptions import GracefulHTTPError, MaxQueuedTokensError, QueueOverflowError
from vllm.renderers import renderer_from_config
from vllm.tasks import SupportedTask
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import PrefillStats, PrefixCacheStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.access.priorities import current_least_priority, granted
from deployments.access.quotas import Charge, current_charge
from deployments.engine import packed
from deployments.link import Failed, FleetLink, NoReplicaReadyError, Step
from deployments.peer import Frames
from deployments.resuming import inexact, resumed
from deployments.stream import Request
from deployments.telemetry.journey import Journey, current_journey
from deployments.traffic import Traffic, current_place

TASKS: tuple[SupportedTask, ...] = ("generate",)
# What of the scheduler's configuration is read in the ingress.
FRONTEND_SCHEDULING = ("stream_interval", "max_num_queued_reqs", "max_num_queued_tokens")


class FleetCore(EngineCoreClient):
    """What AsyncLLM takes for its engine core: a fleet of replicas behind a link."""

    def __init__(self, link: FleetLink, traffic: Traffic, *, speculative: bool) -> None:
        self._link = link
        self._traffic = traffic
        self._speculative = speculative
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._journeys: WeakValueDictionary[str, Journey] = WeakValueDictionary()
        self._charges: WeakValueDictionary[str, Charge] = WeakValueDictionary()  # by request id, until it is answered

    def shutdown(self, timeout: float | None = None) -> None:
        """Leave the replicas: they outlive an ingress."""
        self._link.close()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Send the request to the replica the router chooses.

        Raises:
            GracefulHTTPError: (503) no replica is ready.
        """

        journey = current_journey.get()
        if journey is not None:
            request.trace_headers = journey.trace_headers
        request.priority = granted(request.priority, current_least_priority.get())
        if (place := current_place.get()) is not None:
            place.give_up()

        def encode(wire_id: str, token_ids: Sequence[int]) -> Frames:
            if journey is not None:
                journey.sent(request.request_id, wire_id, request.prompt_token_ids or ())
            return packed(self._encoder.encode(resumed(request, token_ids, wire_id)))

        try:
            self._link.submit(
                Request(
                    request_id=request.request_id,
                    encode=encode,
                    prompt_token_ids=request.prompt_token_ids or (),
                    max_tokens=(request.sampling_params and request.sampling_params.max_tokens) or 0,
                    priority=request.priority,
                    salt=_salt(request),
                    unmovable=inexact(request, speculative=self._speculative),
                )
            )
        except NoReplicaReadyError as error:
            self._link.asked.refused[HTTPStatus.SERVICE_UNAVAILABLE] += 1
            raise GracefulHTTPError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from error
        if journey is not None:
            self._journeys[request.request_id] = journey
        if (charge := current_charge.get()) is not None:
            charge.use_prompt(request.prompt_token_ids or ())
            self._charges[request.request_id] = charge

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Have the requests dropped where they are."""
        self._link.abort(request_ids)

    async def get_output_async(self) -> EngineCoreOutputs:
        """Wait for the next step of any replica, or for the end of a request that could not go on."""
        event = await self._link.next_event()
        match event:
            case Step(replica=replica, frames=frames):
                step: EngineCoreOutputs = self._decoder.decode(frames)
                self._take(replica, step)
                return step
            case Failed(request_id=request_id):
                if (journey := self._journeys.get(request_id)) is not None:
                    journey.failed()
                end = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)
                return EngineCoreOutputs(engine_index=0, outputs=[end])

    def _take(self, replica: str, step: EngineCoreOutputs) -> None:
        """Leave in a step what is of requests that are still there, as if one engine on this machine had made it."""
        now_s = self._link.now()
        outputs = [output for output in step.outputs if self._is_current(replica, output, now_s, step.timestamp)]
        prefills = [output.prefill_stats for output in outputs if output.prefill_stats is not None]
        if prefills:
            computed_tokens = sum(one.num_computed_tokens for one in prefills)
            self._traffic.prefilled(replica, computed_tokens, sum(one.num_cached_tokens for one in prefills))
        stats = step.scheduler_stats
        if stats is not None:
            waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
            self._traffic.stepped(replica, stats.num_running_reqs, waiting, stats.kv_cache_usage, now_s)
        step.engine_index = 0
        step.outputs = outputs
        step.timestamp = now_s
        step.scheduler_stats = stats and self._fleet_stats(stats, prefills)

    def _is_current(self, replica: str, output: EngineCoreOutput, now_s: float, sent_at_s: float) -> bool:
        """Give the output its request's own id and this machine's time; False when the request has moved on or gone.

        vLLM subtracts times of a request from one another, and two replicas that it was on have two clocks
        (vllm/v1/metrics/stats.py, IterationStats.update_from_output).
        """
        if output.events is not None:
            self._translate_events(replica, output, now_s - sent_at_s)
        request_id = self._link.settle(
            replica,
            output.request_id,
            output.new_token_ids,
            is_finished=output.finish_reason is not None,
            now_s=now_s,
        )
        if request_id is None:
            return False
        output.request_id = request_id
        if (journey := self._journeys.get(request_id)) is not None:
            reason = "" if output.finish_reason is None else str(output.finish_reason)
            journey.got(request_id, replica, self._traffic.shape_of(replica), len(output.new_token_ids), reason, now_s)
        if (charge := self._charges.get(request_id)) is not None:
            charge.use(len(output.new_token_ids))
        return True

    def _translate_events(self, replica: str, output: EngineCoreOutput, shift_s: float) -> None:
        events = output.events or []
        # A request is queued once, at its first replica: vLLM would take the last time, and the first scheduling.
        if self._link.is_continued(output.request_id):
            events = [event for event in events if event.type is not EngineCoreEventType.QUEUED]
        for event in events:
            event.timestamp += shift_s
        output.events = events
        self._traffic.preempted(replica, sum(event.type is EngineCoreEventType.PREEMPTED for event in events))

    def _fleet_stats(self, stats: SchedulerStats, prefills: Sequence[PrefillStats]) -> SchedulerStats:
        """A step's statistics as those of one engine: gauges are summed over the replicas (KV usage: the fullest).

        What the prefix cache gave is counted by request: the scheduler's own numbers go to every ingress that has a
        request in the step, and to none where no request has an output yet.
        """
        running, waiting, fullest = self._traffic.totals()
        return dataclasses.replace(
            stats,
            num_running_reqs=running,
            num_waiting_reqs=waiting,
            num_skipped_waiting_reqs=0,  # among those that wait
            kv_cache_usage=fullest,
            prefix_cache_stats=PrefixCacheStats(
                requests=len(prefills),
                queries=sum(one.num_prompt_tokens for one in prefills),
                hits=sum(one.num_local_cached_tokens for one in prefills),
            ),
        )


def _salt(request: EngineCoreRequest) -> str:
    adapter = request.lora_request.lora_name if request.lora_request else ""
    return f"{adapter}/{request.cache_salt or ''}"


class FleetEngine(AsyncLLM):
    """The whole fleet as one vLLM engine: AsyncLLM without an engine of its own."""

    def __init__(self, config: VllmConfig, link: FleetLink, traffic: Traffic, *, speculative: bool) -> None:
        # As AsyncLLM.__init__ (vllm/v1/engine/async_llm.py), which would start an engine core in its middle.
        self.vllm_config = config
        self.model_config = config.model_config
        self.scheduler_config = config.scheduler_config
        self.observability_config = config.observability_config
        self.log_requests = False
        self.log_stats = True
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self.admission_stats = None
        self.output_processor = OutputProcessor(
            self.renderer.tokenizer, log_stats=True, stream_interval=config.scheduler_config.stream_interval
        )
        self.engine_core = FleetCore(link, traffic, speculative=speculative)
        traffic.max_model_len = config.model_config.max_model_len
        self.logger_manager = StatLoggerManager(config)
        self.output_handler = None
        self.profiler = None
        self._link = link
        self._client_count = 1
        self._profile_lock = asyncio.Lock()
        self._frontend_profiler_injected = False
        self._profile_session_guard_enabled = False
        self._profile_session_active = False

    async def get_supported_tasks(self) -> tuple[SupportedTask, ...]:
        """Generation is all a fleet does."""
        return TASKS

    @property
    def errored(self) -> bool:
        """A fleet outlives its replicas: only the loss of its own output loop ends it."""
        return not self.is_running

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Refuse by vLLM's own limits, where they are set."""
        try:
            super().check_admission(n, request_id)
        except (QueueOverflowError, MaxQueuedTokensError):
            self._link.asked.refused[HTTPStatus.SERVICE_UNAVAILABLE] += 1
            raise

    async def check_health(self) -> None:
        """Raise EngineDeadError, which ``/health`` turns into 503, while no replica is ready."""
        if self.errored or not self._link.ready:
            raise EngineDeadError()


def frontend_config(serve_args: Mapping[str, Any]) -> tuple[Namespace, VllmConfig]:
    """Complete ``vllm serve`` arguments (by their Python names) for a process without a GPU.

    The caller has set ``VLLM_TARGET_DEVICE=cpu``, so that a CUDA build needs no device here either. Quantised kernels
    never run in the ingress, hence no quantisation (as vllm/entrypoints/launchers/render/entry.py does).
    """
    parser = FlexibleArgumentParser()  # type: ignore[no-untyped-call]
    namespace = make_arg_parser(parser).parse_args([])
    vars(namespace).update(serve_args, served_model_name=[serve_args["served_model_name"]])
    engine_args = AsyncEngineArgs.from_cli_args(namespace)
    model_config = engine_args.create_model_config()
    model_config.quantization = None
    structured_outputs_config = engine_args.create_structured_outputs_config()
    namespace.structured_outputs_config = structured_outputs_config
    # One of several processes before the engines, to vLLM: the only one would send an image again by its hash, which
    # the next replica may not have (vllm/multimodal/cache/factories.py:37).
    parallel_config = ParallelConfig(_api_process_count=2)
    config = VllmConfig(
        model_config=model_config,
        parallel_config=parallel_config,
        structured_outputs_config=structured_outputs_config,
    )
    for name in FRONTEND_SCHEDULING:
        setattr(config.scheduler_config, name, getattr(engine_args, name))
    return namespace, config


async def openai_app(serve_args: Mapping[str, Any], link: FleetLink, traffic: Traffic) -> FastAPI:
    """Build vLLM's OpenAI application over the fleet behind ``link``."""
    namespace, config = frontend_config(serve_args)
    fleet = FleetEngine(config, link, traffic, speculative=bool(serve_args.get("speculative_config")))
    app = build_app(namespace, TASKS, config.model_config)
    await init_app_state(fleet, app.state, namespace, TASKS)
    return app
