"""How full the busiest GPU of a replica gets: weights, KV cache of the asked context, and activations of one step.

    weights      the stage's layers: attention and MLPs over tp, experts over tp*dp, and whole on every rank the router
                 and the compressions of MLA; embeddings on the first stage, the language-model head on the last
    KV cache     the stage's share of the context, over min(tp, kv_heads): ranks beyond that hold copies; all do with
                 MLA. A window holds its last tokens and those of the running step; a linear layer its state, over tp
    activations  the tokens of one step, through the widest part of a layer, and the logits of the running requests
    available    (utilisation - 0.04) * GPU memory: vLLM's limit, less what CUDA, NCCL and CUDA graphs take of it

The 0.04 is 3.5 GB of an 80 GB H100, as NVIDIA's aiconfigurator counts it: the CUDA context and libraries, NCCL's
buffers (0.34-0.39 GB in TensorRT-LLM's reports) and a pool of CUDA graphs at about 10 MB each. The number of layers
per stage is vLLM's own split; kinds of layers are taken to be spread evenly, but for dense ones that come first. Left
out: a vision tower, multi-token-prediction layers, and what vLLM loses by giving every kind of layer pages of one size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from placement.clusters.hardware import Gpu
from placement.models.matrices import Matrices
from placement.models.model import ModelSpec
from placement.shape import Shape

STEP_TOKENS = 8192  # vLLM's default max_num_batched_tokens on GPUs of 70 GiB; smaller ones default to less
RUNNING_REQUESTS = 256  # vLLM's default max_num_seqs
_ACTIVATION_BYTES = 2  # 16-bit
_RUNTIME_SHARE = 0.04  # a share, to suit any size
_LOGIT_BYTES = 4  # vLLM samples from 32-bit logits


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes on the busiest GPU of a replica, and the bytes it may use."""

    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    available_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.activation_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.available_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRoom:
    """What is left for KV cache: bytes on the fullest GPU, and of one data-parallel rank the requests they hold.

    `tokens` are those of all these requests together.
    """

    free_bytes: int
    requests: int
    tokens: int


def memory_use(
    model: ModelSpec,
    shape: Shape,
    gpu: Gpu,
    *,
    context_tokens: int,
    kv_bytes_per_element: float = 2,
    utilisation: float = 0.9,
    requests: int = 1,
    step_tokens: int = STEP_TOKENS,
    running_requests: int = RUNNING_REQUESTS,
) -> MemoryUse:
    """The busiest GPU when each data-parallel rank holds `context_tokens` tokens of KV cache in equal `requests`.

    `step_tokens` and `running_requests` are the most that the engine takes into one step. Raises `ValueError` unless
    `context_tokens` is 0 or more, 0.04 < `utilisation` <= 1, the rest 1 or more, and pp is at most the layers.
    """
    counts = {"requests": requests, "step_tokens": step_tokens, "running_requests": running_requests}
    possible = context_tokens >= 0 and _RUNTIME_SHARE < utilisation <= 1 and shape.pp <= model.layers
    if not possible or min(counts.values()) < 1:
        raise ValueError(
            f"memory_use: context_tokens {context_tokens} must be 0 or more, utilisation {utilisation} above "
            f"{_RUNTIME_SHARE} and at most 1, pp{shape.pp} at most the {model.layers} layers of {model.name}, and "
            f"{', '.join(f'{name} {count}' for name, count in counts.items())} at least 1."
        )
    request_tokens = math.ceil(context_tokens / requests)
    kv_bytes_per_layer = (
        requests * kv_bytes_per_gpu(model, shape.tp, request_tokens, kv_bytes_per_element)
        + _in_flight_bytes(model, shape.tp, request_tokens, step_tokens, kv_bytes_per_element)
    ) / model.layers
    weights_bytes, kv_bytes = max(
        ((weights, layers * kv_bytes_per_layer) for layers, weights in _stages(model, shape)), key=sum
    )
    return MemoryUse(
        weights_bytes=math.ceil(weights_bytes),
        kv_bytes=math.ceil(kv_bytes),
        activation_bytes=_activation_bytes(model, shape, step_tokens, running_requests),
        available_bytes=int(gpu.memory_bytes * (utilisation - _RUNTIME_SHARE)),
    )


def kv_room(
    model: ModelSpec,
    shape: Shape,
    gpu: Gpu,
    *,
    context_tokens: int,
    kv_bytes_per_element: float = 2,
    utilisation: float = 0.9,
    step_tokens: int = STEP_TOKENS,
    running_requests: int = RUNNING_REQUESTS,
) -> KvRoom:
    """How many requests of `context_tokens` tokens, 1 or more, the KV cache of one data-parallel rank holds.

    Nothing where the weights do not fit. Raises `ValueError` as `memory_use` does.
    """
    if context_tokens < 1:
        raise ValueError(f"kv_room: context_tokens is {context_tokens}; it must be at least 1.")
    use = memory_use(
        model,
        shape,
        gpu,
        context_tokens=0,
        utilisation=utilisation,
        step_tokens=step_tokens,
        running_requests=running_requests,
    )
    per_layer = kv_bytes_per_gpu(model, shape.tp, context_tokens, kv_bytes_per_element) / model.layers
    in_flight = _in_flight_bytes(model, shape.tp, context_tokens, step_tokens, kv_bytes_per_element) / model.layers
    other_bytes = use.available_bytes - use.activation_bytes
    free_bytes, requests = min(
        (
            (free := other_bytes - weights - layers * in_flight, free / (layers * per_layer))
            for layers, weights in _stages(model, shape)
        ),
        key=lambda room: room[1],
    )
    free_bytes, requests = max(0.0, free_bytes), max(0.0, requests)
    return KvRoom(free_bytes=int(free_bytes), requests=int(requests), tokens=int(requests * context_tokens))


def kv_bytes_per_gpu(model: ModelSpec, tp: int, context_tokens: int, bytes_per_element: float) -> float:
    """The cache of one sequence on one of `tp` ranks, over all layers; divide by the stages for pipelines."""
    attention = sum(
        kind.kv_bytes(context_tokens, bytes_per_element) / kind.kv_shards(tp) for kind in model.attention_kinds
    )
    return attention + model.linear_layers * model.linear_state_bytes / tp


def stage_layers(layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each stage, as vLLM splits them: what is left over goes to the last stages but one."""
    base, left = divmod(layers, pp)
    return tuple(base + (pp - 1 - left <= stage < pp - 1) for stage in range(pp))


def _in_flight_bytes(model: ModelSpec, tp: int, context_tokens: int, step_tokens: int, element_bytes: float) -> float:
    """What windows keep beyond themselves while a step runs: vLLM frees tokens only after it."""
    return sum(
        kind.layers
        * min(step_tokens, max(0, context_tokens - kind.window_tokens))
        * kind.entry_bytes(element_bytes)
        / kind.kv_shards(tp)
        for kind in model.attention_kinds
        if not kind.grows
    )


def _stages(model: ModelSpec, shape: Shape) -> Iterator[tuple[int, float]]:
    """Number of layers and bytes of weights per GPU, for each stage."""
    full_bytes = model.embedding_bytes_per_weight or model.bytes_per_weight
    embedding = model.embedding_parameters * full_bytes / shape.tp
    per_layer = model.vocab_size * model.per_layer_embedding_size * full_bytes / shape.tp
    by_kind = {"mixer": 0.0, "dense": 0.0, "moe": 0.0}
    for part in model.matrices:
        kind = {"dense": "dense", "attention": "mixer", "linear": "mixer"}.get(part.kind, "moe")
        by_kind[kind] += _bytes_per_gpu(part, shape)
    first_layer = 0
    for stage, layers in enumerate(stage_layers(model.layers, shape.pp)):
        dense, moe = _mlp_shares(model, first_layer, first_layer + layers)
        weights = by_kind["mixer"] * layers / model.layers + by_kind["dense"] * dense + by_kind["moe"] * moe
        is_first, is_last = stage == 0, stage == shape.pp - 1
        copies = 1 if is_first and is_last and model.tied_embeddings else is_first + is_last
        yield layers, weights + copies * embedding + is_first * per_layer
        first_layer += layers


def _bytes_per_gpu(part: Matrices, shape: Shape) -> float:
    """Of all layers of the model that have it, on one GPU of a single stage."""
    if part.attention:
        return part.layers * part.attention.parameters_per_rank(shape.tp) * part.bytes_per_weight
    shards = {"experts": shape.expert_shards, "router": 1}.get(part.kind, shape.tp)
    return part.weight_bytes / shards


def _mlp_shares(model: ModelSpec, first: int, end: int) -> tuple[float, float]:
    """Which shares of the dense and of the MoE layers lie in layers `first` to `end`, exclusive."""
    leading = model.leading_dense_layers if model.is_moe else 0
    led = max(0, min(end, leading) - first)
    spread = (end - first - led) / max(1, model.layers - leading)
    dense = led + spread * (model.dense_layers - leading)
    return dense / max(1, model.dense_layers), spread


def _activation_bytes(model: ModelSpec, shape: Shape, step_tokens: int, running_requests: int) -> int:
    """Two residual streams in and out, and gate, up and their product in the widest MLP; then the logits."""
    active_experts = model.experts_per_token * model.expert_intermediate_size + model.shared_expert_intermediate_size
    dense = model.intermediate_size if model.dense_layers else 0
    width = 4 * model.hidden_size + 3 * max(dense, active_experts) / shape.tp
    logits = running_requests * model.vocab_size / shape.tp
    return math.ceil(step_tokens * width * _ACTIVATION_BYTES + logits * _LOGIT_BYTES)
