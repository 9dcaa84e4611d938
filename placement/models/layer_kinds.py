"""Which kind of token mixer and which kind of MLP each layer of a model has, from its `config.json`."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from placement.models.config_fields import Fields, ModelConfigError

_Kind = TypeVar("_Kind")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


class Mixer(Enum):
    """What a layer mixes tokens with."""

    FULL = "full attention"
    WINDOW = "attention within a window"
    LINEAR = "linear attention or a state-space model"
    NONE = "nothing"


class Mlp(Enum):
    DENSE = "dense"
    EXPERTS = "experts"
    NONE = "nothing"


_LAYER_TYPES = {
    "full_attention": Mixer.FULL,
    "attention": Mixer.FULL,
    "global": Mixer.FULL,
    "global_attention": Mixer.FULL,
    "sliding_attention": Mixer.WINDOW,
    "sliding_window": Mixer.WINDOW,
    "local": Mixer.WINDOW,
    "local_attention": Mixer.WINDOW,
    "chunked_attention": Mixer.WINDOW,
    "linear_attention": Mixer.LINEAR,
    "mamba": Mixer.LINEAR,
    "mamba2": Mixer.LINEAR,
    # The names for sparse attention; which entries it reads is in other fields.
    "deepseek_sparse_attention": Mixer.FULL,
    "sparse_attention": Mixer.FULL,
    "minimax_m3_sparse": Mixer.FULL,
}
# Nemotron-H: a layer is one of these, where in other models it has a mixer and an MLP.
_BLOCKS = {
    "M": (Mixer.LINEAR, Mlp.NONE),
    "mamba": (Mixer.LINEAR, Mlp.NONE),
    "*": (Mixer.FULL, Mlp.NONE),
    "attention": (Mixer.FULL, Mlp.NONE),
    "-": (Mixer.NONE, Mlp.DENSE),
    "mlp": (Mixer.NONE, Mlp.DENSE),
    "E": (Mixer.NONE, Mlp.EXPERTS),
    "moe": (Mixer.NONE, Mlp.EXPERTS),
}
# Read from the model's own code, not from fields that this reader knows.
_UNREAD = ("attn_layer_period", "attn_layer_indices", "layer_configs", "ssm_cfg")
_MOST_LAYERS = 10_000
_GEMMA_PATTERN = 6  # Gemma 3: five windows, then one full layer, unless the config says otherwise
_NO_ROPE_INTERVAL = 4  # Llama 4: every fourth layer attends to everything


def layer_kinds(fields: Fields) -> list[tuple[Mixer, Mlp]]:
    """Mixer and MLP of each layer. Raises `ModelConfigError` for a kind it does not know, naming field and value."""
    for name in _UNREAD:
        if fields.config.get(name) is not None:
            raise ModelConfigError(
                f"{fields.model}: the config has {name}, which is not read here; layers must be described by "
                "layer_types, hybrid_override_pattern, full_attention_interval, linear_attn_config or sliding_window."
            )
    blocks = fields.text("hybrid_override_pattern") or fields.list("layers_block_type")
    if blocks:
        return [_known(fields, "the pattern of layers", _BLOCKS, block) for block in blocks]
    layers = fields.positive("num_hidden_layers", "n_layer")
    if layers > _MOST_LAYERS:
        raise ModelConfigError(f"{fields.model}: num_hidden_layers is {layers}; it must be at most {_MOST_LAYERS}.")
    if fields.list("block_configs"):
        return [_block(fields, block) for block in fields.per_layer("block_configs", layers)]
    experts = fields.optional(*EXPERTS)
    mlps = [_mlp(fields, layer, layers) if experts else Mlp.DENSE for layer in range(layers)]
    return list(zip(_mixers(fields, layers), mlps, strict=True))


def _mixers(fields: Fields, layers: int) -> list[Mixer]:
    named = _named_types(fields, layers) or _listed_layers(fields, layers) or _flags(fields, layers)
    if named:
        return named
    if interval := fields.optional("full_attention_interval"):
        return [Mixer.LINEAR if (layer + 1) % interval else Mixer.FULL for layer in range(layers)]
    return _windows(fields, layers)


def _named_types(fields: Fields, layers: int) -> list[Mixer]:
    types = fields.per_layer("layer_types", layers)
    return [_known(fields, "layer_types", _LAYER_TYPES, kind) for kind in types]


def _listed_layers(fields: Fields, layers: int) -> list[Mixer]:
    """Kimi Linear, whose layers count from 1."""
    linear = fields.inner("linear_attn_config").list("kda_layers")
    return [Mixer.LINEAR if layer + 1 in linear else Mixer.FULL for layer in range(layers)] if linear else []


def _flags(fields: Fields, layers: int) -> list[Mixer]:
    """Numbers for each layer: MiniMax-Text-01 (1 full, else linear), MiMo-V2 (1 a window), Llama 4 (0 full)."""
    if flags := fields.per_layer("attn_type_list", layers):
        return [Mixer.FULL if flag == 1 else Mixer.LINEAR for flag in flags]
    if flags := fields.per_layer("hybrid_layer_pattern", layers):
        return [Mixer.WINDOW if flag == 1 else Mixer.FULL for flag in flags]
    if not fields.text("model_type").startswith("llama4") or not fields.optional("attention_chunk_size"):
        return []
    interval = fields.optional("no_rope_layer_interval") or _NO_ROPE_INTERVAL
    flags = fields.per_layer("no_rope_layers", layers) or [(layer + 1) % interval for layer in range(layers)]
    return [Mixer.WINDOW if flag else Mixer.FULL for flag in flags]


def _windows(fields: Fields, layers: int) -> list[Mixer]:
    """Models that name a window but not the layers that have one; the rule is in each model's own code."""
    if not fields.optional("sliding_window") or not fields.flag("use_sliding_window", default=True):
        return [Mixer.FULL] * layers
    family = fields.text("model_type")
    interval = fields.optional("sliding_window_pattern", "_sliding_window_pattern")
    if family.startswith("gemma3"):
        interval = interval or _GEMMA_PATTERN
    elif family in ("gemma2", "gpt_oss"):
        interval = 2
    if interval:
        return [Mixer.WINDOW if (layer + 1) % interval else Mixer.FULL for layer in range(layers)]
    first = fields.optional("max_window_layers") if "use_sliding_window" in fields.config else 0
    return [Mixer.WINDOW if layer >= first else Mixer.FULL for layer in range(layers)]


def _block(fields: Fields, block: Any) -> tuple[Mixer, Mlp]:
    """Llama-Nemotron, whose search over architectures drops the attention or the MLP of some layers."""
    parts = Fields(block if isinstance(block, Mapping) else {}, fields.model)
    for part in ("attention", "ffn"):
        if parts.inner(part).flag("replace_with_linear"):
            raise fields.refused("block_configs", f"{part}.replace_with_linear", "no_op and plain attention and ffn")
    return (
        Mixer.NONE if parts.inner("attention").flag("no_op") else Mixer.FULL,
        Mlp.NONE if parts.inner("ffn").flag("no_op") else Mlp.DENSE,
    )


def _mlp(fields: Fields, layer: int, layers: int) -> Mlp:
    """In a model with experts."""
    if types := fields.per_layer("mlp_layer_types", layers):
        return Mlp.DENSE if types[layer] == "dense" else Mlp.EXPERTS
    if flags := fields.list("moe_layer_freq"):
        return Mlp.EXPERTS if layer < len(flags) and flags[layer] else Mlp.DENSE
    if layer < fields.optional("first_k_dense_replace") or layer in fields.list("mlp_only_layers"):
        return Mlp.DENSE
    if layer % (fields.optional("moe_layer_freq") or 1):  # DeepSeek counts layers from 0, Qwen and Llama from 1
        return Mlp.DENSE
    step = fields.optional("decoder_sparse_step", "interleave_moe_layer_step") or 1
    return Mlp.DENSE if (layer + 1) % step else Mlp.EXPERTS


def _known(fields: Fields, name: str, kinds: Mapping[str, _Kind], value: object) -> _Kind:
    if not isinstance(value, str) or value not in kinds:
        raise fields.refused(name, value, ", ".join(kinds))
    return kinds[value]
