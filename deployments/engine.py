"""The one adapter between Archipelago and vLLM (0.32).

A request crosses two halves of the engine, with the wire between them:

    OpenAI app -> FleetEngine: render, tokenise          -> wire ->  ShardedEngine: EngineCore, one per replica
    OpenAI app <- FleetEngine: detokenise, stop strings  <- wire <-  ShardedEngine: token ids, one message a step

vLLM's AsyncLLM is those two halves over an ``EngineCoreClient``. ``FleetEngine`` keeps the first half in the ingress
and replaces the client by one that talks to many replicas; ``ShardedEngine`` keeps the second half beside the GPUs. So
text is made in one place, whichever replica computes, and what travels is vLLM's own msgpack of ``EngineCoreRequest``
and ``EngineCoreOutputs``.
"""

import asyncio
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import ray
from fastapi import FastAPI
from ray.util.placement_group import PlacementGroup
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.exceptions import GracefulHTTPError
from vllm.renderers import renderer_from_config
from vllm.tasks import SupportedTask
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.data_parallel import seat_engine_cores
from deployments.link import FleetLink, Frames, Lost, NoReplicaReadyError, Request, Step
from deployments.verification import Whereabouts
from placement import Shape

WORKER_PROBE = "deployments.worker_probe.WorkerProbe"
PROBE_TIMEOUT_S = 60.0
TASKS: tuple[SupportedTask, ...] = ("generate",)
# What of the scheduler's configuration is read in the ingress.
FRONTEND_SCHEDULING = ("stream_interval", "max_num_queued_reqs", "max_num_queued_tokens")


# --- beside the GPUs -------------------------------------------------------------------------------------------------


def shard_config(
    model: str, engine_args: Mapping[str, Any], shape: Shape, placement_group: PlacementGroup
) -> VllmConfig:
    """Build the engine configuration of one replica, its workers bound to ``placement_group``.

    Raises:
        ValueError: vLLM refuses the model or an argument; its message names which.
    """
    args = AsyncEngineArgs(
        model=model,
        tensor_parallel_size=shape.tp,
        pipeline_parallel_size=shape.pp,
        enable_expert_parallel=shape.ep > 1,
        distributed_executor_backend="ray",
        worker_extension_cls=WORKER_PROBE,
        **(data_parallel_args(shape.dp) if shape.dp > 1 else {}),
        **engine_args,
    )
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    config.parallel_config.placement_group = placement_group
    return config


def data_parallel_args(degree: int) -> dict[str, Any]:
    """Arguments for EngineCores that are Ray actors on several nodes; rank 0's is on the node of this process."""
    return {
        "data_parallel_size": degree,
        "data_parallel_size_local": 1,
        "data_parallel_address": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        "data_parallel_backend": "ray",
    }


class ShardedEngine:
    """The model on its GPUs: takes encoded requests, gives encoded steps.

    EngineCore is a child process, or with data parallelism an actor for each rank. Every request has an owner (the
    ingress that sent it); a step is split by owner.
    """

    def __init__(self, config: VllmConfig) -> None:
        if config.parallel_config.data_parallel_size > 1:
            seat_engine_cores()
        else:
            # EngineCore inherits the environment: rank i runs in bundle i (vllm/v1/executor/ray_utils.py,
            # get_bundles_for_indices) and not in the order of random node ids.
            os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, range(config.parallel_config.world_size)))
        client = EngineCoreClient.make_async_mp_client(
            vllm_config=config, executor_class=Executor.get_class(config), log_stats=True
        )
        self._client: AsyncMPClient = client
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._owners: dict[str, str] = {}

    @property
    def unfinished_requests(self) -> int:
        """Requests that were submitted and have neither finished nor been aborted."""
        return len(self._owners)

    async def submit(self, owner: str, frames: Frames) -> None:
        """Queue one request.

        Raises:
            EngineDeadError: the engine has failed and will not come back.
        """
        request: EngineCoreRequest = self._decoder.decode(frames)
        self._owners[request.request_id] = owner
        await self._client.add_request_async(request)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Drop the requests; those that have finished are ignored."""
        for request_id in request_ids:
            self._owners.pop(request_id, None)
        await self._client.abort_requests_async(list(request_ids))

    async def abort_all_of(self, owner: str) -> None:
        """Drop every request of an owner that has gone."""
        await self.abort([request_id for request_id, name in self._owners.items() if name == owner])

    async def next_step(self) -> dict[str, Frames]:
        """Wait for an engine step; return one message for each owner that has a request in it.

        Raises:
            EngineDeadError: the engine has failed.
        """
        step = await self._client.get_output_async()
        by_owner: dict[str, list[EngineCoreOutput]] = {}
        for output in step.outputs:
            request_id = output.request_id
            owner = self._owners.pop(request_id, None) if output.finished else self._owners.get(request_id)
            if owner is not None:
                by_owner.setdefault(owner, []).append(output)
        return {owner: self._encode(step, outputs) for owner, outputs in by_owner.items()}

    def _encode(self, step: EngineCoreOutputs, outputs: list[EngineCoreOutput]) -> Frames:
        message = EngineCoreOutputs(outputs=outputs, scheduler_stats=step.scheduler_stats, timestamp=step.timestamp)
        return _frames(self._encoder.encode(message))

    async def whereabouts(self) -> tuple[Whereabouts, ...]:
        """Ask every worker where it is; in rank order. (The answers arrive as msgpack maps.)"""
        answers = (Whereabouts(**answer) for answer in await self._ask_workers("whereabouts"))
        return tuple(sorted(answers, key=lambda answer: answer.dp_rank))

    async def unlink_shared_memory(self) -> None:
        """Let the engine's shared memory go with its processes, however they end."""
        await self._ask_workers("unlink_shared_memory")

    async def _ask_workers(self, method: str) -> list[Any]:
        by_engine = await self._client.call_utility_all_async("collective_rpc", method, PROBE_TIMEOUT_S, (), None)
        return [answer for answers in by_engine for answer in answers]

    @property
    def is_dead(self) -> bool:
        """Whether EngineCore has exited; it never comes back."""
        return bool(self._client.resources.engine_dead)


def _frames(encoded: Sequence[Any]) -> Frames:
    # Tensors (logprobs) come as views of memory the encoder does not own, which Ray could not carry.
    return [bytes(frame) for frame in encoded]


# --- in the ingress --------------------------------------------------------------------------------------------------


class FleetCore(EngineCoreClient):
    """What AsyncLLM takes for its engine core: a fleet of replicas behind a link."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link
        self._engine_indices = {name: index for index, name in enumerate(link.replicas)}
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)

    def shutdown(self, timeout: float | None = None) -> None:
        """Leave the replicas: they outlive an ingress."""
        self._link.close()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Send the request to the replica the router chooses.

        Raises:
            GracefulHTTPError: (503) no replica is ready.
        """
        prompt_tokens = len(request.prompt_token_ids or ())
        max_tokens = (request.sampling_params and request.sampling_params.max_tokens) or 0
        frames = _frames(self._encoder.encode(request))
        try:
            self._link.submit(Request(request.request_id, frames, prompt_tokens, max_tokens))
        except NoReplicaReadyError as error:
            raise GracefulHTTPError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from error

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Have the requests dropped where they are."""
        self._link.abort(request_ids)

    async def get_output_async(self) -> EngineCoreOutputs:
        """Wait for the next step of any replica, or for the end of requests whose replica has gone."""
        event = await self._link.next_event()
        match event:
            case Step(replica=replica, frames=frames):
                step: EngineCoreOutputs = self._decoder.decode(frames)
                step.engine_index = self._engine_indices[replica]
                for output in step.outputs:
                    self._link.settle(output.request_id, len(output.new_token_ids), finished=output.finished)
                return step
            case Lost(replica=replica, request_ids=request_ids):
                ends = [EngineCoreOutput(i, [], finish_reason=FinishReason.ERROR) for i in request_ids]
                return EngineCoreOutputs(engine_index=self._engine_indices[replica], outputs=ends)


class FleetEngine(AsyncLLM):
    """The whole fleet as one vLLM engine: AsyncLLM without an engine of its own."""

    def __init__(self, config: VllmConfig, link: FleetLink) -> None:
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
        self.engine_core = FleetCore(link)
        self.logger_manager = StatLoggerManager(config, engine_idxs=list(range(len(link.replicas))))
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
    config = VllmConfig(model_config=model_config, structured_outputs_config=structured_outputs_config)
    for name in FRONTEND_SCHEDULING:
        setattr(config.scheduler_config, name, getattr(engine_args, name))
    return namespace, config


async def openai_app(serve_args: Mapping[str, Any], link: FleetLink) -> FastAPI:
    """Build vLLM's OpenAI application over the fleet behind ``link``."""
    namespace, config = frontend_config(serve_args)
    fleet = FleetEngine(config, link)
    app = build_app(namespace, TASKS, config.model_config)
    await init_app_state(fleet, app.state, namespace, TASKS)
    return app
