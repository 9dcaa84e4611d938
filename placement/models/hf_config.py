"""The sizes that a Hugging Face `config.json` states, as the arguments of `ModelSpec`.

Sources: the configs of the models and their modeling files in `transformers` and vLLM, which define what a field means
and which default holds where it is absent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from placement.models import quantisation
from placement.models.attention import AttentionLayers
from placement.models.config_fields import ACCEPTED, Fields, ModelConfigError
from placement.models.hf_mixers import WIDTH_MULTIPLE, attention_layers, block_width, head_sizes, linear_sizes
from placement.models.layer_kinds import EXPERTS, Mixer, Mlp, layer_kinds
from placement.models.quantisation import Checkpoint, Stored

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_INHERITED = ("architectures", "model_type", "torch_dtype", "dtype", "quantization_config", "tie_word_embeddings")
# Two matrices, up and down, where others have a third for the gate.
_UNGATED = ("falcon", "gpt2", "gpt_neox", "gpt_neo", "gptj", "gpt_bigcode", "opt", "bloom", "mpt", "phi", "starcoder2")
_UNGATED_ACTIVATIONS = ("relu2", "relu")
_PARALLEL = ("gptj", "phi", "cohere", "cohere2")  # attention and MLP of a layer read the same input
# transformers' own defaults, which the published configs of these models leave out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"tie_word_embeddings": True},
    "gemma3_text": {
        "tie_word_embeddings": True,
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
    "gemma4_text": {"tie_word_embeddings": True},
    "falcon": {"max_position_embeddings": 2048},
    "opt": {"tie_word_embeddings": True},
    "gpt2": {"tie_word_embeddings": True},
}
# Where checkpoints keep attention, linear mixers, dense MLPs, routed experts and shared experts, below `layers.N.`, by
# the start of model_type.
_MODULES: Mapping[str, tuple[str, str, str, str, str]] = {
    "": ("self_attn", "linear_attn", "mlp", "mlp.experts", "mlp.shared_experts"),
    "nemotron_h": ("mixer", "mixer", "mixer", "mixer.experts", "mixer.shared_experts"),
    "deepseek_v4": ("attn", "attn", "ffn", "ffn.experts", "ffn.shared_experts"),
    "deepseek_v3": ("self_attn", "self_attn", "mlp", "mlp.experts", "mlp.shared_experts"),
    "kimi_k2": ("self_attn", "self_attn", "mlp", "mlp.experts", "mlp.shared_experts"),
    "kimi_linear": ("self_attn", "self_attn", "mlp", "block_sparse_moe.experts", "block_sparse_moe.shared_experts"),
    "minimax": ("self_attn", "self_attn", "mlp", "block_sparse_moe.experts", "block_sparse_moe.shared_experts"),
    "mixtral": ("self_attn", "self_attn", "mlp", "block_sparse_moe.experts", "block_sparse_moe.shared_experts"),
    "gemma4": ("self_attn", "self_attn", "mlp", "experts", "mlp"),
    "llama4": ("self_attn", "self_attn", "feed_forward", "feed_forward.experts", "feed_forward.shared_experts"),
}
_LINEAR_PARTS: Mapping[str, tuple[str, ...]] = {
    "mixer": ("in_proj", "out_proj"),
    "linear_attn": ("in_proj_qkv", "in_proj_z", "out_proj"),
    "self_attn": ("q_proj", "k_proj", "v_proj", "g_proj", "o_proj"),
}
_TOP_K = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts", "moe_k")


def read(config: Mapping[str, Any], *, name: str, hf_quant_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every argument of `ModelSpec` but the name. Raises `ModelConfigError` when a field is missing or impossible.

    `hf_quant_config` is the content of the file of that name, which holds where `config` has no quantisation.
    """
    if not isinstance(config, Mapping):
        raise ModelConfigError(f"{name}: the config is {type(config).__name__}, not an object. {ACCEPTED}")
    fields = Fields(_text_config(config), name)
    if fields.flag("is_encoder_decoder"):
        raise ModelConfigError(f"{name}: is_encoder_decoder is true. {ACCEPTED}")
    kinds = layer_kinds(fields)
    hidden_size = fields.positive("hidden_size", "n_embd", "d_model")
    stated = fields.config.get("quantization_config") or hf_quant_config
    checkpoint = quantisation.read({**fields.config, "quantization_config": stated})
    heads = head_sizes(fields, hidden_size)
    attention = attention_layers(fields, kinds, hidden_size=hidden_size, heads=heads)
    sizes = {
        "architecture": _architecture(fields.config),
        "layers": len(kinds),
        "hidden_size": hidden_size,
        "vocab_size": fields.positive("vocab_size"),
        "max_position_tokens": _max_position_tokens(fields),
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        "attention": attention,
        "attention_free_layers": sum(mixer is Mixer.NONE for mixer, _ in kinds),
        "mlp_free_layers": sum(mlp is Mlp.NONE for _, mlp in kinds),
        "parallel_mlp": _is_parallel(fields),
        "per_layer_embedding_size": len(kinds) * fields.optional("hidden_size_per_layer_input"),
        "notes": (checkpoint.note,) if checkpoint.note else (),
        **heads,
        **linear_sizes(fields, kinds, hidden_size=hidden_size),
        **_mlp_sizes(fields, kinds, hidden_size),
    }
    return sizes | _precisions(fields, checkpoint, kinds, attention)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _TEXT_CONFIGS:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            inherited = {field: config[field] for field in _INHERITED if config.get(field) is not None}
            return _text_config({**inherited, **inner})
    defaults = _DEFAULTS.get(str(config.get("model_type")), {})
    return {**config, **{field: value for field, value in defaults.items() if config.get(field) is None}}


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, Sequence) and not isinstance(architectures, str) and architectures:
        return str(architectures[0])
    return str(config.get("model_type") or "unknown")


def _max_position_tokens(fields: Fields) -> int:
    tokens = fields.positive("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    rope = fields.config.get("rope_scaling") or fields.config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return tokens
    factor, original = rope.get("factor", 1), rope.get("original_max_position_embeddings", tokens)
    if not isinstance(factor, int | float) or not isinstance(original, int):
        raise ModelConfigError(f"{fields.model}: rope scaling has factor {factor!r} of {original!r}; both are numbers.")
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "yarn":  # DeepSeek already states the stretched length, Qwen the original: compute it from the original
        return int(original * factor)
    return int(tokens * factor) if kind in ("linear", "dynamic") else tokens


def _is_parallel(fields: Fields) -> bool:
    family = fields.text("model_type")
    default = family in _PARALLEL or (family == "falcon" and fields.flag("new_decoder_architecture"))
    return fields.flag("parallel_attn", default=fields.flag("use_parallel_residual", default=default))


def _mlp_sizes(fields: Fields, kinds: Sequence[tuple[Mixer, Mlp]], hidden_size: int) -> dict[str, int]:
    moe_layers = sum(mlp is Mlp.EXPERTS for _, mlp in kinds)
    dense_size = _dense_size(fields, kinds, hidden_size)
    family = fields.text("model_type")
    activation = fields.text("mlp_hidden_act") or fields.text("activation_function")
    matrices = 2 if family in _UNGATED or activation in _UNGATED_ACTIVATIONS else 3
    experts = fields.optional(*EXPERTS)
    if not experts:
        if any(mlp is not Mlp.NONE for _, mlp in kinds) and not dense_size:
            fields.positive("intermediate_size")
        return {"intermediate_size": dense_size, "mlp_matrices": matrices}
    expert_size = fields.optional("moe_intermediate_size", "expert_ffn_hidden_size")
    return {
        "intermediate_size": dense_size,
        "mlp_matrices": matrices,
        "experts": experts,
        "experts_per_token": fields.positive(*_TOP_K),
        "expert_intermediate_size": expert_size or fields.positive("intermediate_size"),
        "expert_hidden_size": fields.optional("moe_latent_size", "routed_expert_hidden_size"),
        "shared_expert_intermediate_size": _shared_size(fields, expert_size or fields.positive("intermediate_size")),
        "moe_layers": moe_layers,
        "leading_dense_layers": _leading_dense_layers([mlp for _, mlp in kinds]),
    }


def _leading_dense_layers(mlps: Sequence[Mlp]) -> int:
    """How many dense layers there are if all come first, 0 where they alternate with others."""
    dense = mlps.count(Mlp.DENSE)
    return dense if all(mlp is Mlp.DENSE for mlp in mlps[:dense]) else 0


def _dense_size(fields: Fields, kinds: Sequence[tuple[Mixer, Mlp]], hidden_size: int) -> int:
    """Width of a dense MLP; the mean where layers differ, rounded up to a multiple that tensor parallelism divides."""
    if blocks := fields.per_layer("block_configs", len(kinds)):
        sizes = [size for size in (block_width(fields, block, hidden_size) for block in blocks) if size]
        return math.ceil(sum(sizes) / max(1, len(sizes)) / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    names = ("intermediate_size_mlp", "dense_intermediate_size", "intermediate_size", "ffn_hidden_size", "ffn_dim")
    size = fields.optional(*names, "n_inner")
    return size or (4 * hidden_size if fields.text("model_type") in _UNGATED else 0)


def _shared_size(fields: Fields, expert_size: int) -> int:
    """Width of all shared experts of a layer together."""
    count = fields.optional("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    stated = fields.optional("shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size")
    if fields.text("model_type").startswith("llama4"):
        return expert_size
    if fields.flag("enable_moe_block"):  # Gemma 4: the dense MLP runs beside the experts of its layer
        return fields.positive("intermediate_size")
    return stated or count * (fields.optional("moe_shared_expert_intermediate_size") or expert_size)


def _precisions(
    fields: Fields,
    checkpoint: Checkpoint,
    kinds: Sequence[tuple[Mixer, Mlp]],
    attention: Sequence[AttentionLayers],
) -> dict[str, Any]:
    """Bytes per weight and arithmetic of each kind of matrix, over all layers that have it."""
    family = fields.text("model_type")
    names = next((names for prefix, names in _MODULES.items() if prefix and family.startswith(prefix)), _MODULES[""])
    with_attention = [i for i, (mixer, _) in enumerate(kinds) if mixer in (Mixer.FULL, Mixer.WINDOW)]
    with_linear = [i for i, (mixer, _) in enumerate(kinds) if mixer is Mixer.LINEAR]
    with_dense = [i for i, (_, mlp) in enumerate(kinds) if mlp is Mlp.DENSE]
    with_experts = [i for i, (_, mlp) in enumerate(kinds) if mlp is Mlp.EXPERTS]
    projections = [part for part in attention[0].projections if part[0] != "norms"] if attention else []
    linear_parts = _LINEAR_PARTS.get(names[1], ())
    means = {
        "attention": _mean(checkpoint, with_attention, [(f"{names[0]}.{part}", size) for part, size in projections]),
        "linear": _mean(checkpoint, with_linear, [(f"{names[1]}.{part}", 1) for part in linear_parts]),
        "dense": _mean(checkpoint, with_dense, [(f"{names[2]}.down_proj", 1)]),
        "experts": _mean(checkpoint, with_experts, [(f"{names[3]}.0.down_proj", 1)]),
        "shared": _mean(checkpoint, with_experts, [(f"{names[4]}.down_proj", 1)]),
    }
    if fields.text("expert_dtype") == "fp4" and not checkpoint.listed:  # DeepSeek-V4: beside an fp8 quantization_config
        means["experts"] = quantisation.PRECISIONS["mxfp4"]
    mlp = means["experts"] if with_experts else means["dense"]
    shared = means["shared"] if with_experts else means["dense"]
    return {
        "bytes_per_weight": mlp.bytes_per_weight,
        "attention_bytes_per_weight": means["attention"].bytes_per_weight,
        "linear_bytes_per_weight": means["linear"].bytes_per_weight,
        "dense_bytes_per_weight": (means["dense"] if with_dense else shared).bytes_per_weight,
        "shared_bytes_per_weight": shared.bytes_per_weight,
        "embedding_bytes_per_weight": checkpoint.full.bytes_per_weight,
        "mlp_math": mlp.math,
        "shared_math": shared.math,
        "attention_math": means["attention"].math,
        "linear_math": means["linear"].math,
    }


def _mean(checkpoint: Checkpoint, layers: Sequence[int], modules: Iterable[tuple[str, int]]) -> Stored:
    """The mean bytes of a weight of `modules`, weighted by their sizes, and the arithmetic most weights are in."""
    total, total_bytes, by_math = 0, 0.0, dict[str, int]()
    for module, size in modules:
        for layer in layers:
            stored = checkpoint.stored(f"layers.{layer}.{module}")
            total += size
            total_bytes += size * stored.bytes_per_weight
            by_math[stored.math] = by_math.get(stored.math, 0) + size
    if not total:
        return checkpoint.quantised
    return Stored(total_bytes / total, max(by_math, key=lambda math_name: by_math[math_name]))
