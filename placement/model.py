"""What the planner needs to know of a model: sizes that decide memory, divisibility and traffic.

A `ModelSpec` is read once from a Hugging Face `config.json`. Everything counted here is the language model: the vision
tower of a multimodal model, multi-token-prediction layers and biases are left out. Three approximations, all on the
safe side for memory: sliding-window layers are counted as if they kept the whole context, an unknown quantisation
counts as none, and embeddings whose tying the config does not mention count twice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from placement.quantisation import weight_bytes

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_INHERITED = ("architectures", "torch_dtype", "dtype", "quantization_config", "tie_word_embeddings")


class ModelConfigError(ValueError):
    """A model config lacks a field, or holds a value no model can have. The message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The sizes of one decoder-only language model.

    `experts` is 0 for a dense model, `kv_lora_rank` 0 for a model without multi-head latent attention (MLA), and
    `q_lora_rank` 0 where queries are not compressed. With MLA, `head_dim` is the whole query head (nope + rope) and
    `v_head_dim` the value head. `shared_expert_intermediate_size` is the width of all shared experts together.
    `bytes_per_weight` is that of the quantised matrices; `attention_bytes_per_weight` and
    `embedding_bytes_per_weight` differ from it in quantised checkpoints, and 0 means the same.
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_tokens: int
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    moe_layers: int = 0
    tied_embeddings: bool = False
    bytes_per_weight: float = 2.0
    attention_bytes_per_weight: float = 0.0
    embedding_bytes_per_weight: float = 0.0
    kv_lora_rank: int = 0
    rope_head_dim: int = 0
    q_lora_rank: int = 0
    v_head_dim: int = 0

    def __post_init__(self) -> None:
        for field in ("layers", "hidden_size", "heads", "kv_heads", "head_dim", "vocab_size", "max_position_tokens"):
            if getattr(self, field) < 1:
                raise ModelConfigError(f"{self.name}: {field} is {getattr(self, field)}; it must be at least 1.")
        if self.bytes_per_weight <= 0:
            raise ModelConfigError(f"{self.name}: bytes_per_weight is {self.bytes_per_weight}; it must be above 0.")
        if not 0 <= self.moe_layers <= self.layers or (self.experts > 0) != (self.moe_layers > 0):
            raise ModelConfigError(
                f"{self.name}: moe_layers is {self.moe_layers} with {self.experts} experts; "
                f"it must be 1 to {self.layers} with experts, 0 without."
            )
        if not min(1, self.experts) <= self.experts_per_token <= self.experts:
            raise ModelConfigError(
                f"{self.name}: experts_per_token is {self.experts_per_token}; it must be 1 to {self.experts} experts."
            )
        needed = "expert_intermediate_size" if self.experts else "intermediate_size"
        if getattr(self, needed) < 1:
            raise ModelConfigError(f"{self.name}: {needed} is {getattr(self, needed)}; it must be at least 1.")

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any], *, name: str) -> "ModelSpec":
        """Read the contents of a Hugging Face `config.json`.

        Weights count at the config's own dtype: for an engine that serves in another one, set `torch_dtype` first.
        Raises `ModelConfigError` when a field is missing or impossible.
        """
        fields = _Fields(_text_config(config), name)
        layers = fields.positive("num_hidden_layers", "n_layer")
        hidden_size = fields.positive("hidden_size", "n_embd")
        heads = fields.positive("num_attention_heads", "n_head")
        quantised, attention, full = weight_bytes(fields.config)
        return cls(
            name=name,
            architecture=_architecture(fields.config),
            layers=layers,
            hidden_size=hidden_size,
            heads=heads,
            vocab_size=fields.positive("vocab_size"),
            max_position_tokens=_max_position_tokens(fields),
            tied_embeddings=bool(fields.config.get("tie_word_embeddings", False)),
            bytes_per_weight=quantised,
            attention_bytes_per_weight=attention,
            embedding_bytes_per_weight=full,
            **_attention_sizes(fields, hidden_size=hidden_size, heads=heads),
            **_mlp_sizes(fields, layers=layers),
        )

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    @property
    def dense_layers(self) -> int:
        """Layers whose MLP is not made of experts; the first ones of the model."""
        return self.layers - self.moe_layers

    @property
    def attention_parameters(self) -> int:
        """Of one layer, with its two norms."""
        norms = 2 * self.hidden_size
        if not self.kv_lora_rank:
            per_head = self.hidden_size * self.head_dim
            return (2 * self.heads + 2 * self.kv_heads) * per_head + norms
        query_input = self.q_lora_rank or self.hidden_size
        query = self.hidden_size * self.q_lora_rank + query_input * self.heads * self.head_dim
        compress = self.hidden_size * (self.kv_lora_rank + self.rope_head_dim)
        expand = self.kv_lora_rank * self.heads * (self.head_dim - self.rope_head_dim + self.v_head_dim)
        output = self.heads * self.v_head_dim * self.hidden_size
        return query + compress + expand + output + norms

    @property
    def dense_mlp_parameters(self) -> int:
        """Of one dense layer: gate, up and down."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert."""
        return 3 * self.hidden_size * self.expert_intermediate_size

    @property
    def shared_expert_parameters(self) -> int:
        """Of all shared experts of one MoE layer."""
        return 3 * self.hidden_size * self.shared_expert_intermediate_size

    @property
    def router_parameters(self) -> int:
        return self.hidden_size * self.experts

    @property
    def embedding_parameters(self) -> int:
        """Of the token embedding; the language-model head has as many, and is the same matrix when tied."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        return self._mlp_parameters + self.layers * self.attention_parameters + self._unquantised_parameters

    @property
    def weight_bytes(self) -> int:
        """All weights, counted once, at the precision the checkpoint stores them in."""
        return math.ceil(
            self._mlp_parameters * self.bytes_per_weight
            + self.layers * self.attention_parameters * (self.attention_bytes_per_weight or self.bytes_per_weight)
            + self._unquantised_parameters * (self.embedding_bytes_per_weight or self.bytes_per_weight)
        )

    def kv_bytes_per_token(self, bytes_per_element: float) -> int:
        """KV cache of one token over all layers and heads; `bytes_per_element` is 2 for 16-bit, 1 for fp8."""
        per_layer = self.kv_lora_rank + self.rope_head_dim if self.kv_lora_rank else 2 * self.kv_heads * self.head_dim
        return math.ceil(self.layers * per_layer * bytes_per_element)

    @property
    def _mlp_parameters(self) -> int:
        moe_layer = self.experts * self.expert_parameters + self.shared_expert_parameters
        return self.dense_layers * self.dense_mlp_parameters + self.moe_layers * moe_layer

    @property
    def _unquantised_parameters(self) -> int:
        copies = 1 if self.tied_embeddings else 2
        return copies * self.embedding_parameters + self.hidden_size + self.moe_layers * self.router_parameters


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed reading of a config that calls the same thing by several names."""

    config: Mapping[str, Any]
    model: str

    def positive(self, *names: str) -> int:
        """The first of `names` that is present; raises `ModelConfigError` when none is."""
        value = self.optional(*names)
        if value < 1:
            raise ModelConfigError(f"{self.model}: the config needs {' or '.join(names)}, 1 or more.")
        return value

    def optional(self, *names: str) -> int:
        """As `positive`, but 0 when none of `names` is present."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelConfigError(f"{self.model}: {name} is {value!r}; it must be a whole number, 0 or more.")
            return value
        return 0


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _TEXT_CONFIGS:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            inherited = {field: config[field] for field in _INHERITED if config.get(field) is not None}
            return _text_config({**inherited, **inner})
    return config


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, Sequence) and not isinstance(architectures, str) and architectures:
        return str(architectures[0])
    return str(config.get("model_type") or "unknown")


def _max_position_tokens(fields: _Fields) -> int:
    tokens = fields.positive("max_position_embeddings", "n_positions", "max_sequence_length")
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


def _attention_sizes(fields: _Fields, *, hidden_size: int, heads: int) -> dict[str, int]:
    kv_heads = fields.optional("num_key_value_heads") or heads
    kv_lora_rank = fields.optional("kv_lora_rank")
    if not kv_lora_rank:
        head_dim = fields.optional("head_dim") or hidden_size // heads
        return {"kv_heads": kv_heads, "head_dim": head_dim}
    rope_head_dim = fields.positive("qk_rope_head_dim")
    return {
        "kv_heads": kv_heads,
        "head_dim": fields.positive("qk_nope_head_dim") + rope_head_dim,
        "kv_lora_rank": kv_lora_rank,
        "rope_head_dim": rope_head_dim,
        "q_lora_rank": fields.optional("q_lora_rank"),
        "v_head_dim": fields.positive("v_head_dim"),
    }


def _mlp_sizes(fields: _Fields, *, layers: int) -> dict[str, int]:
    experts = fields.optional("num_local_experts", "num_experts", "n_routed_experts")
    if not experts:
        return {"intermediate_size": fields.positive("intermediate_size")}
    expert_size = fields.optional("moe_intermediate_size") or fields.positive("intermediate_size")
    shared = fields.optional("shared_expert_intermediate_size") or fields.optional("n_shared_experts") * expert_size
    return {
        "intermediate_size": fields.optional("intermediate_size"),
        "experts": experts,
        "experts_per_token": fields.positive("num_experts_per_tok", "experts_per_token"),
        "expert_intermediate_size": expert_size,
        "shared_expert_intermediate_size": shared,
        "moe_layers": sum(_is_moe_layer(fields, layer) for layer in range(layers)),
    }


def _is_moe_layer(fields: _Fields, layer: int) -> bool:
    dense = fields.config.get("mlp_only_layers")
    if layer < fields.optional("first_k_dense_replace") or (isinstance(dense, Sequence) and layer in dense):
        return False
    if layer % (fields.optional("moe_layer_freq") or 1):  # DeepSeek counts layers from 0, Qwen from 1
        return False
    return (layer + 1) % (fields.optional("decoder_sparse_step") or 1) == 0
