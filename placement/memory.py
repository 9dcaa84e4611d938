"""How full the busiest GPU of a replica gets: weights, KV cache of the asked context, and activations of one step.

    weights      the stage's layers, attention and dense MLPs over tp, experts over tp*dp;
                 embeddings on the first stage, the language-model head on the last, both over tp
    KV cache     the stage's layers * context, over min(tp, kv_heads): ranks beyond that hold copies; all do with MLA
    activations  the tokens of one step, through the widest part of a layer, and the logits of the running requests
    available    (utilisation - 0.04) * GPU memory: vLLM's limit, less what CUDA, NCCL and CUDA graphs take of it

The number of layers per stage is vLLM's own split. Left out: MLA's small query and key-value compressions are on every
rank, and a sliding window keeps less KV cache.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from placement.hardware import Gpu
from placement.model import ModelSpec
from placement.shape import Shape

_STEP_TOKENS = 8192  # vLLM's default max_num_batched_tokens on GPUs of 70 GiB; smaller ones default to less
_RUNNING_REQUESTS = 256  # vLLM's default max_num_seqs
_ACTIVATION_BYTES = 2  # 16-bit
_RUNTIME_SHARE = 0.04  # 3.5 GB of an 80 GB H100, as NVIDIA's aiconfigurator counts it; a share, to suit any size
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


def memory_use(
    model: ModelSpec,
    shape: Shape,
    gpu: Gpu,
    *,
    context_tokens: int,
    kv_bytes_per_element: float = 2,
    utilisation: float = 0.9,
) -> MemoryUse:
    """The busiest GPU when each data-parallel rank holds `context_tokens` tokens of KV cache.

    Raises `ValueError` unless `context_tokens` is 0 or more, 0.04 < `utilisation` <= 1, and pp is at most the layers.
    """
    if context_tokens < 0 or not _RUNTIME_SHARE < utilisation <= 1 or shape.pp > model.layers:
        raise ValueError(
            f"memory_use: context_tokens {context_tokens} must be 0 or more, utilisation {utilisation} above "
            f"{_RUNTIME_SHARE} and at most 1, and pp{shape.pp} at most the {model.layers} layers of {model.name}."
        )
    kv_shards = 1 if model.kv_lora_rank else min(shape.tp, model.kv_heads)
    kv_bytes_per_layer = model.kv_bytes_per_token(kv_bytes_per_element) / model.layers * context_tokens / kv_shards
    weights_bytes, kv_bytes = max(
        ((weights, layers * kv_bytes_per_layer) for layers, weights in _stages(model, shape)), key=sum
    )
    return MemoryUse(
        weights_bytes=math.ceil(weights_bytes),
        kv_bytes=math.ceil(kv_bytes),
        activation_bytes=_activation_bytes(model, shape),
        available_bytes=int(gpu.memory_bytes * (utilisation - _RUNTIME_SHARE)),
    )


def stage_layers(layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each stage, as vLLM splits them: what is left over goes to the last stages but one."""
    base, left = divmod(layers, pp)
    return tuple(base + (pp - 1 - left <= stage < pp - 1) for stage in range(pp))


def _stages(model: ModelSpec, shape: Shape) -> Iterator[tuple[int, float]]:
    """Number of layers and bytes of weights per GPU, for each stage."""
    full_bytes = model.embedding_bytes_per_weight or model.bytes_per_weight
    attention_bytes = model.attention_bytes_per_weight or model.bytes_per_weight
    attention = model.attention_parameters * attention_bytes / shape.tp
    dense_mlp = model.dense_mlp_parameters * model.bytes_per_weight / shape.tp
    experts = model.experts * model.expert_parameters / shape.expert_shards + model.shared_expert_parameters / shape.tp
    moe_mlp = experts * model.bytes_per_weight + model.router_parameters * full_bytes
    embedding = model.embedding_parameters * full_bytes / shape.tp
    first_layer = 0
    for stage, layers in enumerate(stage_layers(model.layers, shape.pp)):
        dense = min(layers, max(0, model.dense_layers - first_layer))
        weights = layers * attention + dense * dense_mlp + (layers - dense) * moe_mlp
        is_first, is_last = stage == 0, stage == shape.pp - 1
        copies = 1 if is_first and is_last and model.tied_embeddings else is_first + is_last
        yield layers, weights + copies * embedding
        first_layer += layers


def _activation_bytes(model: ModelSpec, shape: Shape) -> int:
    """Two residual streams in and out, and gate, up and their product in the widest MLP; then the logits."""
    active_experts = model.experts_per_token * model.expert_intermediate_size + model.shared_expert_intermediate_size
    dense = model.intermediate_size if model.dense_layers else 0
    width = 4 * model.hidden_size + 3 * max(dense, active_experts) / shape.tp
    logits = _RUNNING_REQUESTS * model.vocab_size / shape.tp
    return math.ceil(_STEP_TOKENS * width * _ACTIVATION_BYTES + logits * _LOGIT_BYTES)
