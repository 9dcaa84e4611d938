"""What one pass through a sharded model makes one GPU do, before any constant is fitted: bytes, FLOPs, messages.

A `Work` follows one tensor-parallel rank through all stages: a token that leaves the last stage was in each of them
once. Bytes are read per pass however many tokens share it, FLOPs and messages are per token. Experts are apart, because
a pass reads only those that its tokens chose. Many works stack into one whose fields are arrays, so that `cost` is
written once for one shape and for a thousand.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.clusters.hardware import GpuKind
from placement.collectives import (
    Engine,
    ExpertBackend,
    Group,
    Routing,
    all_reduce,
    moe_combine,
    moe_dispatch,
    send_recv,
)
from placement.cost.arithmetic import arithmetic, mlp_arithmetic
from placement.cost.constants import Constants
from placement.models.matrices import Matrices
from placement.models.model import ModelSpec
from placement.shape import Shape

Array = NDArray[np.float64]
Number = Any  # a float, or an `Array` with one entry per case

# Messages are timed at 1 KiB, 2 KiB, ... 1 GiB, and interpolated between.
_SMALLEST_MESSAGE = 10
_SIZES = 21
_ACTIVATION_BYTES = 2  # 16-bit
# Tokens are quantised before they are gathered, so that they travel in the experts' format, 4 bits with a scale for
# each 16 (vLLM 0.32, vllm/model_executor/layers/fused_moe/prepare_finalize/naive_dp_ep.py:37 and 136).
_DISPATCHED_SHARE = {"fp8": 0.5, "fp4": 0.28}
_PIPELINE_TENSORS = 2  # vLLM sends hidden states and residual (vllm/sequence.py IntermediateTensors)
_SHARPEST = 4.0  # of a corner between two roofs; beyond it a fit only followed noise
_GEMMS = {"attention": 2, "linear": 2, "dense": 2, "shared": 2}  # in, and out of the block


class Groups(NamedTuple):
    """Who talks to whom: ranks that share each layer, that share the experts, and pairs at stage boundaries.

    `boundaries` are pairs of a group of two and how many boundaries are like it.
    """

    tensor: Group
    experts: Group
    boundaries: tuple[tuple[Group, int], ...] = ()


class Matrix(NamedTuple):
    """Matrices multiplied alike: parameters on one GPU over all layers, how many products, and the GPU's curve."""

    parameters: Number
    bytes_per_weight: Number
    flops_per_s: Number
    products: Number
    launch_s: Number
    flops_share: Number
    bandwidth_share: Number
    sharpness: Number


class Work(NamedTuple):
    """Of one pass, on one GPU: numbers for one shape, arrays once stacked. The last three are times by message size."""

    tp: Number
    pp: Number
    dp: Number
    ep: Number
    layers: Number
    moe_layers: Number
    linear_layers: Number
    latent_layers: Number
    sparse_layers: Number
    reductions: Number
    memory_bytes_per_s: Number
    bf16_flops_per_s: Number
    attention: Matrix
    mlp: Matrix
    head: Matrix
    expert_flops_per_token: Number
    expert_flops_per_s: Number
    expert_bytes: Number
    experts: Number
    experts_per_token: Number
    kv_read_bytes: Number
    decode_attention_flops: Number
    prefill_attention_flops: Number
    token_bytes: Number
    all_reduce_s: Array
    exchange_s: Array
    send_s: Array


class Traffic(NamedTuple):
    """What a request looks like to the memory: tokens in and out, and bytes of one cached element."""

    input_tokens: float
    output_tokens: float
    kv_bytes_per_element: float

    @property
    def context_tokens(self) -> int:
        """Half-way through the answer: what a decode step reads on average."""
        return round(self.input_tokens + self.output_tokens / 2)


def work_of(
    model: ModelSpec,
    shape: Shape,
    gpu: GpuKind,
    groups: Groups,
    traffic: Traffic,
    *,
    engine: Engine = "vllm",
    exchange: ExpertBackend = "allgather_reducescatter",
    constants: Constants,
) -> Work:
    """The work of `shape` for requests like `traffic`, each field one number.

    `exchange` is how tokens get to their experts and back with data-parallel attention.
    """
    attention = _of_kind(model, shape, "attention", "linear")
    mlp = _of_kind(model, shape, "dense", "shared", "router")
    attention_math = arithmetic(model.attention_math or model.mlp_math, gpu)
    mlp_math = mlp_arithmetic(model, gpu)
    expert_math = arithmetic(model.mlp_math, gpu)
    curve = _Curves(gpu, engine, constants)
    context = traffic.context_tokens
    prompt = round(traffic.input_tokens)
    shares = [(kind, kind.kv_shards(shape.tp)) for kind in model.attention_kinds]
    read_bytes = sum(kind.read_bytes(context, traffic.kv_bytes_per_element) / shards for kind, shards in shares)
    state_bytes = 2 * model.linear_layers * model.linear_state_bytes / shape.tp  # read and written
    expert_share = model.moe_layers * model.expert_parameters / shape.expert_shards
    routing = Routing(hidden_size=model.hidden_size, top_k=max(1, model.experts_per_token))
    sent_bytes = _ACTIVATION_BYTES * _dispatched_share(expert_math, engine)
    nothing = np.zeros(_SIZES)
    return Work(
        tp=shape.tp,
        pp=shape.pp,
        dp=shape.dp,
        ep=shape.ep,
        layers=model.layers,
        moe_layers=model.moe_layers,
        linear_layers=model.linear_layers,
        latent_layers=model.layers - model.linear_layers if model.kv_lora_rank else 0,
        sparse_layers=sum(kind.layers for kind in model.attention_kinds if kind.sparse_entries),
        reductions=_reductions(model),
        memory_bytes_per_s=gpu.memory_bandwidth_bytes_per_s,
        bf16_flops_per_s=gpu.flops["bf16"],
        attention=curve.matrix(attention, attention_math),
        mlp=curve.matrix(mlp, mlp_math),
        head=curve.matrix([_head(model, shape)], "bf16"),
        expert_flops_per_token=2 * expert_share * model.experts_per_token,
        expert_flops_per_s=gpu.flops[expert_math],
        expert_bytes=expert_share * model.bytes_per_weight,
        experts=model.experts,
        experts_per_token=model.experts_per_token,
        kv_read_bytes=read_bytes + state_bytes,
        decode_attention_flops=model.attention_flops(1, context) / shape.tp,
        prefill_attention_flops=model.attention_flops(prompt, 0) / shape.tp / max(1, prompt),
        token_bytes=model.hidden_size * _ACTIVATION_BYTES,
        all_reduce_s=_all_reduces(groups.tensor, engine),
        exchange_s=_exchanges(groups.experts, engine, routing, exchange, sent_bytes) if shape.dp > 1 else nothing,
        send_s=np.sum([count * _sends(pair) for pair, count in groups.boundaries if count] or [nothing], axis=0),
    )


def stack(works: Sequence[Work], repeats: int | Sequence[int] = 1) -> Work:
    """One work whose fields are arrays over `works`, each of them so many times in a row."""
    return Work(*(_stacked(values, repeats) for values in zip(*works, strict=True)))


def message_s(table: Array, size_bytes: Array) -> Array:
    """Times of messages of `size_bytes`, one for each row of `table`; below 1 KiB as for 1 KiB."""
    position = np.clip(np.log2(np.maximum(size_bytes, 1.0)) - _SMALLEST_MESSAGE, 0, None)
    left = np.minimum(position.astype(np.intp), _SIZES - 2)
    rows = np.arange(len(table))
    low, high = table[rows, left], table[rows, left + 1]
    # Both axes are logarithmic, so that a straight line is a power law; 0 stays 0 for groups of one.
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.exp2(np.log2(low) + (np.log2(high) - np.log2(low)) * (position - left))
    return np.where(low > 0, between, 0.0)


def _stacked(values: tuple[Any, ...], repeats: int | Sequence[int]) -> Any:
    if isinstance(values[0], Matrix):
        return Matrix(*(_stacked(column, repeats) for column in zip(*values, strict=True)))
    return np.repeat(np.array(values, dtype=np.float64), repeats, axis=0)


class _Curves(NamedTuple):
    gpu: GpuKind
    engine: Engine
    constants: Constants

    def matrix(self, parts: Sequence[tuple[float, float, float]], math: str) -> Matrix:
        """`parts` are parameters on one GPU, bytes per weight, and number of products."""
        parameters = sum(part[0] for part in parts)
        stored_bytes = sum(part[0] * part[1] for part in parts)
        launch_us, flops, bandwidth, sharpness = self.constants.gemm_curve(self.gpu.kind, self.engine, math)
        return Matrix(
            parameters=parameters,
            bytes_per_weight=stored_bytes / parameters if parameters else 1.0,
            flops_per_s=self.gpu.flops[math],
            products=sum(part[2] for part in parts),
            launch_s=launch_us * 1e-6,
            flops_share=flops,
            bandwidth_share=bandwidth,
            sharpness=min(sharpness, _SHARPEST),
        )


def _dispatched_share(math: str, engine: Engine) -> float:
    """Bytes of a token on its way to the experts against 16 bits; SGLang gathers 16 bits."""
    return 1.0 if engine == "sglang" else _DISPATCHED_SHARE.get(math, 1.0)


def _reductions(model: ModelSpec) -> int:
    """All-reduces of a pass: after attention and after the MLP of each layer, or once where they run side by side."""
    if model.parallel_mlp:
        return model.layers
    return 2 * model.layers - model.attention_free_layers - model.mlp_free_layers


def _of_kind(model: ModelSpec, shape: Shape, *kinds: str) -> list[tuple[float, float, float]]:
    return [
        (_on_one_gpu(part, shape), part.bytes_per_weight, part.layers * _GEMMS.get(part.kind, 0))
        for part in model.matrices
        if part.kind in kinds
    ]


def _on_one_gpu(part: Matrices, shape: Shape) -> float:
    """Parameters of all layers; the router is whole on every rank, and so are some compressions of attention."""
    if part.attention is not None:
        return part.layers * part.attention.parameters_per_rank(shape.tp)
    return part.layers * part.parameters / (1 if part.kind == "router" else shape.tp)


def _head(model: ModelSpec, shape: Shape) -> tuple[float, float, float]:
    return model.head_parameters / shape.tp, model.embedding_bytes_per_weight or model.bytes_per_weight, 1


@lru_cache(maxsize=4096)
def _all_reduces(group: Group, engine: Engine) -> Array:
    return np.array([all_reduce(size, group, engine).time_s for size in _sizes()])


@lru_cache(maxsize=4096)
def _exchanges(group: Group, engine: Engine, routing: Routing, backend: ExpertBackend, sent_bytes: float) -> Array:
    """Dispatch and combine of all tokens in the step, by the bytes that these have in 16 bits.

    Outside an island the one-sided kernels do not reach, and the engine's default stands in.
    """
    if backend == "one_sided" and group.span != "island":
        backend = "allgather_reducescatter"
    times = []
    for size in _sizes():
        tokens = size / (routing.hidden_size * _ACTIVATION_BYTES * group.ranks)
        there = moe_dispatch(tokens, group, routing, backend=backend, bytes_per_element=sent_bytes, engine=engine)
        back = moe_combine(tokens, group, routing, backend=backend, engine=engine)
        times.append(there.time_s + back.time_s)
    return np.array(times)


@lru_cache(maxsize=4096)
def _sends(group: Group) -> Array:
    return np.array([_PIPELINE_TENSORS * send_recv(size, group).time_s for size in _sizes()])


def _sizes() -> list[float]:
    return [2.0 ** (_SMALLEST_MESSAGE + step) for step in range(_SIZES)]
