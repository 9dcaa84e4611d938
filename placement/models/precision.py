"""In how many bytes a model is served: its weights in another precision than its config states, its KV cache."""

from dataclasses import replace

from placement.models.model import ModelSpec
from placement.models.quantisation import PRECISIONS, Stored

_FOUR_BITS = ("fp4", "mxfp4", "int4")


def with_precision(model: ModelSpec, precision: str) -> ModelSpec:
    """`model` with its weights in `precision`: bf16, fp8, int8, fp4 (NVFP4), mxfp4 or int4 (groups of 128, W4A16).

    As checkpoints are published under these names: embeddings, head and router stay in 16 bits. In 4 bits a linear
    mixer does too, and so does attention of a model with experts and MLA; mxfp4 is for routed experts alone where there
    are any. A model whose own weights are in a 4-bit float stays as it is for fp4: that is what "fp4" means there.
    Raises `ValueError` for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be {', '.join(PRECISIONS)}.")
    if precision == "fp4" and model.mlp_math in ("fp4", "mxfp4"):
        return model
    full, asked = PRECISIONS["bf16"], PRECISIONS[precision]
    experts_only = precision == "mxfp4" and model.is_moe
    mixed = precision in _FOUR_BITS and model.is_moe and model.kv_lora_rank > 0
    return _stored(
        model,
        experts=asked,
        shared=full if experts_only else asked,
        attention=full if experts_only or mixed else asked,
        linear=full if precision in _FOUR_BITS else asked,
    )


def kv_bytes_per_element(model: ModelSpec, dtype: str) -> float:
    """Bytes of a number in the KV cache, for what vLLM calls kv_cache_dtype.

    `auto` is the dtype of the activations, which is that of what is never quantised.
    """
    if dtype == "auto":
        return model.embedding_bytes_per_weight or model.bytes_per_weight
    return 1.0 if dtype.startswith(("fp8", "int8")) else 2.0


def _stored(model: ModelSpec, *, experts: Stored, shared: Stored, attention: Stored, linear: Stored) -> ModelSpec:
    return replace(
        model,
        bytes_per_weight=experts.bytes_per_weight,
        mlp_math=experts.math,
        dense_bytes_per_weight=shared.bytes_per_weight,
        shared_bytes_per_weight=shared.bytes_per_weight,
        shared_math=shared.math,
        attention_bytes_per_weight=attention.bytes_per_weight,
        attention_math=attention.math,
        linear_bytes_per_weight=linear.bytes_per_weight,
        linear_math=linear.math,
        embedding_bytes_per_weight=PRECISIONS["bf16"].bytes_per_weight,
        notes=(),
    )
