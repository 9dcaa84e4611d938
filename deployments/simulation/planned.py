"""How large and how fast a simulated replica is: limits and step times from the planner's cost model.

The planner prices a step for requests of one length. Here lengths differ, so there is a table for every power of two:
what decodes take is read at their mean context, what chunks of prompts add at the prompt length whose tokens attend to
as many others, and both are straight between two tables.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.simulation.scheduler import Batch, Limits
from deployments.verification import Whereabouts
from placement import Cluster, Gpu, Layout, Lengths, ModelSpec, Node, Question, Shape, Workload, kv_room
from placement.clusters.machines import gpu_kind, gpu_kinds, gpu_of
from placement.clusters.terrain import Region, regions
from placement.cost import constants
from placement.cost.simulation import step_table
from placement.cost.simulation_replica import StepTable
from placement.models.memory import RUNNING_REQUESTS, STEP_TOKENS, kv_bytes_per_gpu, stage_layers
from placement.models.precision import kv_bytes_per_element

_BLOCK_TOKENS = 16  # vLLM's default block_size on GPUs
_UTILISATION = 0.92  # vLLM's default gpu_memory_utilization
_SHORTEST_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrices:
    """Seconds of a step; `tables[i]` is for requests of `lengths[i]` tokens."""

    lengths: tuple[int, ...]
    tables: tuple[StepTable, ...]

    def __call__(self, batch: Batch) -> float:
        """From this step to the next: the whole pass, or with stages the time until the next may enter."""
        stages = self.tables[0].stages
        writing = batch.decodes * stages  # `pass_s` spreads them over the micro-batches
        pass_s = self._decode_s(writing, batch.decode_context / batch.decodes) if batch.decodes else 0.0
        if batch.prompt_tokens:
            pass_s += self._added_s(writing, batch.prompt_tokens, batch.prompt_reach / batch.prompt_tokens)
        host_s = batch.admitted * self.tables[0].request_s if batch.decodes else 0.0
        return pass_s / stages + host_s

    def _decode_s(self, writing: int, context: float) -> float:
        left, share = self._position(context)
        low_s, high_s = (self.tables[index].pass_s(writing, 0) for index in (left, left + 1))
        return low_s + (high_s - low_s) * share

    def _added_s(self, writing: int, tokens: int, length: float) -> float:
        left, share = self._position(length)
        low_s, high_s = (
            table.pass_s(writing, tokens) - (table.pass_s(writing, 0) if writing else 0.0)
            for table in self.tables[left : left + 2]
        )
        return low_s + (high_s - low_s) * share

    def _position(self, length: float) -> tuple[int, float]:
        """The table left of `length`, and the share of the way to the next; beyond the ends straight on."""
        left = min(max(bisect_right(self.lengths, length) - 1, 0), len(self.lengths) - 2)
        return left, (length - self.lengths[left]) / (self.lengths[left + 1] - self.lengths[left])


def step_prices(
    model: ModelSpec, layout: Layout, gpu: str, request_tokens: int, engine_args: Mapping[str, Any]
) -> StepPrices:
    """Step times of `layout` if its GPUs were of the kind `gpu`, for requests of up to `request_tokens` tokens."""
    region = _region(layout, gpu)
    lengths = [_SHORTEST_TOKENS, 2 * _SHORTEST_TOKENS]
    while lengths[-1] < request_tokens:
        lengths.append(2 * lengths[-1])
    return StepPrices(
        lengths=tuple(lengths),
        tables=tuple(step_table(_question(model, length, engine_args), layout.shape, region) for length in lengths),
    )


def limits_of(model: ModelSpec, shape: Shape, gpu: str, engine_args: Mapping[str, Any]) -> Limits:
    """What vLLM would allow on GPUs of the kind `gpu`, a name the planner knows, from the arguments it would be given.

    Raises:
        ValueError: the GPU is unknown, or the KV cache does not hold one request.
    """
    running = engine_args.get("max_num_seqs") or RUNNING_REQUESTS
    step_tokens = engine_args.get("max_num_batched_tokens") or STEP_TOKENS
    request_tokens = engine_args.get("max_model_len") or model.max_position_tokens
    block_tokens = engine_args.get("block_size") or _BLOCK_TOKENS
    blocks = engine_args.get("num_gpu_blocks_override")
    if blocks is None:
        blocks = _kv_tokens(model, shape, gpu, request_tokens, running, step_tokens, engine_args) // block_tokens
    return Limits(
        running_requests=running * shape.dp,
        step_tokens=step_tokens * shape.dp,
        request_tokens=request_tokens,
        kv_blocks=blocks * shape.dp,
        block_tokens=block_tokens,
        stages=shape.pp,
    )


def workers_of(layout: Layout, bundle_nodes: Sequence[str], actor_id: str, *, pid: int) -> list[Whereabouts]:
    """Where the workers of `layout` would be, in rank order: all are one process, which takes no memory for them."""
    return [
        Whereabouts(
            dp_rank=seat.dp_rank,
            pp_rank=seat.pp_rank,
            tp_rank=seat.tp_rank,
            ray_node_id=node,
            ray_actor_id=actor_id,
            gpu_ids=(str(seat.slot),),
            pid=pid,
            memory_bytes=0,
        )
        for seat, node in zip(layout.seats, bundle_nodes, strict=True)
    ]


def _kv_tokens(
    model: ModelSpec,
    shape: Shape,
    gpu: str,
    request_tokens: int,
    running: int,
    step_tokens: int,
    engine_args: Mapping[str, Any],
) -> int:
    """Tokens that the KV cache of one data-parallel rank holds."""
    element_bytes = _kv_bytes_per_element(model, engine_args)
    given = engine_args.get("kv_cache_memory_bytes")
    if given is not None:
        share = max(stage_layers(model.layers, shape.pp)) / model.layers
        return int(given / (kv_bytes_per_gpu(model, shape.tp, request_tokens, element_bytes) * share) * request_tokens)
    room = kv_room(
        model,
        shape,
        _gpu(gpu),
        context_tokens=request_tokens,
        kv_bytes_per_element=element_bytes,
        utilisation=engine_args.get("gpu_memory_utilization") or _UTILISATION,
        step_tokens=step_tokens,
        running_requests=running,
    )
    return room.tokens


def _question(model: ModelSpec, length: int, engine_args: Mapping[str, Any]) -> Question:
    return Question(
        model=model,
        workload=Workload(input_tokens=Lengths(mean_tokens=length), output_tokens=Lengths(mean_tokens=1)),
        constants=constants.shipped(),
        kv_bytes_per_element=_kv_bytes_per_element(model, engine_args),
    )


def _kv_bytes_per_element(model: ModelSpec, engine_args: Mapping[str, Any]) -> float:
    return kv_bytes_per_element(model, str(engine_args.get("kv_cache_dtype", "auto")))


def _gpu(name: str) -> Gpu:
    kind = gpu_kind(name)
    if kind is None:
        raise ValueError(f"GPU {name!r} is not known; give one of {', '.join(sorted(gpu_kinds()))}")
    return gpu_of(kind)


def _region(layout: Layout, gpu: str) -> Region:
    """The islands of `layout` as if each were a machine of its own, with the links usual for that kind of GPU."""
    seats = Counter(seat.island for seat in layout.seats)
    widest = max(seats.values())
    nodes = (Node(name=island, island=island, gpus=widest, gpu=_gpu(gpu)) for island in seats)
    return regions(Cluster(nodes=tuple(nodes)))[0]
