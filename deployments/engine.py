"""The one adapter between Archipelago and vLLM (0.32).

A request crosses two halves of the engine, with the wire between them:

    OpenAI app -> FleetEngine: render, tokenise          -> wire ->  ShardedEngine: EngineCore, one per replica
    OpenAI app <- FleetEngine: detokenise, stop strings  <- wire <-  ShardedEngine: token ids, one message a step

vLLM's AsyncLLM is those two halves over an ``EngineCoreClient``. ``FleetEngine`` keeps the first half in the ingress
and replaces the client by one that talks to many replicas; ``ShardedEngine`` keeps the second half beside the GPUs. So
text is made in one place, whichever replica computes, and what travels is vLLM's own msgpack of ``EngineCoreRequest``
and ``EngineCoreOutputs``.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.executor import Executor
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.data_parallel import seat_engine_cores
from deployments.peer import Frames
from deployments.resuming import resuming_scheduler
from deployments.telemetry.replica_spans import ReplicaSpans
from deployments.verification import Whereabouts
from deployments.worker_probe import tell_child_where_it_is
from placement import Shape

WORKER_PROBE = "deployments.worker_probe.WorkerProbe"
PROBE_TIMEOUT_S = 60.0
WARM_UP_TOKENS = (2, 4, 6)


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
        # One rank needs no worker process: it runs in EngineCore, on the GPU that the replica actor then holds.
        distributed_executor_backend="uni" if shape.gpus == 1 else "ray",
        worker_extension_cls=WORKER_PROBE,
        **(data_parallel_args(shape.dp) if shape.dp > 1 else {}),
        # An ingress keeps what it has made of images and sounds, and sends it along each time: a copy of it here, for
        # which vLLM would take 4 GiB of the node's memory, is never read (`frontend_config`).
        **{**engine_args, "mm_processor_cache_gb": 0},
    )
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    config.parallel_config.placement_group = placement_group
    # Not among the arguments: only the complete configuration knows whether scheduling is asynchronous.
    config.scheduler_config.scheduler_cls = resuming_scheduler(config.scheduler_config)
    return config


def data_parallel_args(degree: int) -> dict[str, Any]:
    """Arguments for EngineCores that are Ray actors on several nodes; rank 0's is on the node of this process."""
    return {
        "data_parallel_size": degree,
        "data_parallel_size_local": 1,
        "data_parallel_address": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        "data_parallel_backend": "ray",
    }


def warm_up_requests(config: VllmConfig) -> list[EngineCoreRequest]:
    """Requests for each data-parallel rank, of which a new engine learns what else the first clients would wait for.

    Foremost what every worker compiles for log probabilities (vllm/v1/sample/ops/logprobs.py:11), once for a batch of
    one, once for two, once for more, while all streams of the engine stand still. So there are three requests, which
    end one after the other. Empty for a model that does not answer a prompt of tokens with tokens.
    """
    model = config.model_config
    if model.runner_type != "generate" or model.is_encoder_decoder:
        return []
    ranks = config.parallel_config.data_parallel_size
    return [
        EngineCoreRequest(
            request_id=f"warm-up-{rank}-{tokens}",
            prompt_token_ids=[0],
            mm_features=None,
            sampling_params=SamplingParams(
                max_tokens=tokens, ignore_eos=True, seed=0, top_p=0.9, top_k=8, presence_penalty=0.1, logprobs=1
            ),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=rank if ranks > 1 else None,
        )
        for rank in range(ranks)
        for tokens in WARM_UP_TOKENS
    ]


class ShardedEngine:
    """The model on its GPUs: takes encoded requests, gives encoded steps.

    EngineCore is a child process, or with data parallelism an actor for each rank. Every request has an owner (the
    ingress that sent it); a step is split by owner.
    """

    def __init__(self, config: VllmConfig) -> None:
        if config.parallel_config.data_parallel_size > 1:
            seat_engine_cores()
        elif config.parallel_config.world_size == 1:
            tell_child_where_it_is(os.environ)
        else:
            # EngineCore inherits the environment: rank i runs in bundle i (vllm/v1/executor/ray_utils.py,
            # get_bundles_for_indices) and not in the order of random node ids.
            os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, range(config.parallel_config.world_size)))
        client = EngineCoreClient.make_async_mp_client(
            vllm_config=config, executor_class=Executor.get_class(config), log_stats=True
        )
        self.spans: ReplicaSpans | None = None  # who traces requests, where somebody does
        self._config = config
        self._client: AsyncMPClient = client
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._owners: dict[str, str] = {}
        self._rank_stats: dict[int, SchedulerStats] = {}
        self._moved_at_s = 0.0  # when the first of the requests came, or the last step

    @property
    def max_running(self) -> int:
        """Requests that a batch holds, over all data-parallel ranks."""
        return self._config.scheduler_config.max_num_seqs * self._config.parallel_config.data_parallel_size

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache holds, over all data-parallel ranks; None where vLLM does not tell."""
        cache = self._config.cache_config
        blocks = cache.num_gpu_blocks
        return blocks * cache.block_size * self._config.parallel_config.data_parallel_size if blocks else None

    @property
    def unfinished_requests(self) -> int:
        """Requests that were submitted and have neither finished nor been aborted."""
        return len(self._owners)

    def stalled_s(self, now_s: float) -> float:
        """For how long there have been requests and no step."""
        return now_s - self._moved_at_s if self._owners else 0.0

    async def submit(self, owner: str, frames: Frames) -> None:
        """Queue one request.

        Raises:
            EngineDeadError: the engine has failed and will not come back.
        """
        request: EngineCoreRequest = self._decoder.decode(frames)
        if not self._owners:
            self._moved_at_s = time.monotonic()
        self._owners[request.request_id] = owner
        if self.spans is not None:
            self.spans.submitted(request.request_id, request.trace_headers)
        await self._client.add_request_async(request)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Drop the requests; those that have finished are ignored."""
        for request_id in request_ids:
            self._owners.pop(request_id, None)
        if self.spans is not None:
            self.spans.aborted(request_ids)
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
        self._moved_at_s = time.monotonic()
        if self.spans is not None:
            self.spans.stepped(step.outputs, step.timestamp)
        by_owner: dict[str, list[EngineCoreOutput]] = {}
        for output in step.outputs:
            request_id = output.request_id
            owner = self._owners.pop(request_id, None) if output.finished else self._owners.get(request_id)
            if owner is not None:
                by_owner.setdefault(owner, []).append(output)
        return {owner: self._encode(step, outputs) for owner, outputs in by_owner.items()}

    def _encode(self, step: EngineCoreOutputs, outputs: list[EngineCoreOutput]) -> Frames:
        stats = self._replica_stats(step)
        return packed(
            self._encoder.encode(EngineCoreOutputs(outputs=outputs, scheduler_stats=stats, timestamp=step.timestamp))
        )

    def _replica_stats(self, step: EngineCoreOutputs) -> SchedulerStats | None:
        """A step's statistics as those of one engine, whichever data-parallel rank made it; KV usage is the mean."""
        if step.scheduler_stats is None or self._config.parallel_config.data_parallel_size == 1:
            return step.scheduler_stats
        self._rank_stats[step.engine_index] = step.scheduler_stats
        ranks = self._rank_stats.values()
        return replace(
            step.scheduler_stats,
            num_running_reqs=sum(one.num_running_reqs for one in ranks),
            num_waiting_reqs=sum(one.num_waiting_reqs for one in ranks),
            num_skipped_waiting_reqs=sum(one.num_skipped_waiting_reqs for one in ranks),
            kv_cache_usage=sum(one.kv_cache_usage for one in ranks) / self._config.parallel_config.data_parallel_size,
        )

    async def whereabouts(self) -> tuple[Whereabouts, ...]:
        """Ask every worker where it is; in rank order. (The answers arrive as msgpack maps.)"""
        answers = (Whereabouts(**answer) for answer in await self._ask_workers("whereabouts"))
        return tuple(sorted(answers, key=lambda answer: answer.dp_rank))

    async def unlink_shared_memory(self) -> None:
        """Let the engine's shared memory go with its processes, however they end."""
        await self._ask_workers("unlink_shared_memory")

    async def prepare(self) -> None:
        """Have the workers do what must be done before the first request, and take the first steps.

        Raises:
            EngineDeadError: the engine has failed at them.
        """
        await self.unlink_shared_memory()
        await self._ask_workers("take_up_resumed_requests")
        requests = warm_up_requests(self._config)
        for request in requests:
            await self._client.add_request_async(request)
        unfinished = len(requests)
        while unfinished:
            step = await self._client.get_output_async()
            unfinished -= sum(output.finished for output in step.outputs)

    async def _ask_workers(self, method: str) -> list[Any]:
        by_engine = await self._client.call_utility_all_async("collective_rpc", method, PROBE_TIMEOUT_S, (), None)
        return [answer for answers in by_engine for answer in answers]

    @property
    def is_dead(self) -> bool:
        """Whether EngineCore has exited; it never comes back."""
        return bool(self._client.resources.engine_dead)


def packed(encoded: Sequence[Any]) -> Frames:
    """The frames of one message, each in memory of its own."""
    # Tensors (logprobs) come as views of memory the encoder does not own, which Ray could not carry.
    return [bytes(frame) for frame in encoded]
