"""What the planner needs to know of a model: sizes that decide memory, divisibility, traffic and work.

A `ModelSpec` is read once from a Hugging Face `config.json`. Everything counted here is the language model: the vision
tower of a multimodal model, biases, and multi-token-prediction layers, which only draft, are left out. Three
approximations, all on the safe side for memory: an unknown quantisation counts as none, embeddings whose tying the
config does not mention count twice, and layers that reuse the cache of another (Gemma 3n) count as if they kept their
own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from placement.models import hf_config
from placement.models.attention import AttentionLayers, grouped_query, latent
from placement.models.config_fields import ModelConfigError
from placement.models.matrices import Matrices

__all__ = ["Matrices", "ModelConfigError", "ModelSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The sizes of one decoder-only language model.

    `experts` is 0 for a dense model, `kv_lora_rank` 0 for a model without multi-head latent attention (MLA), and
    `q_lora_rank` 0 where queries are not compressed. With MLA, `head_dim` is the whole query head (nope + rope) and
    `v_head_dim` the value head; elsewhere `v_head_dim` 0 means as `head_dim`. These are the heads of the layers with
    full attention; `attention` has every kind of attention layer, and is worked out from the heads when empty.
    `linear_*` are the sizes of one layer with linear attention or a state-space model, its state that of one sequence.
    Layers without attention or MLP (Nemotron-H, Llama-Nemotron) are counted in `attention_free_layers` and
    `mlp_free_layers`. `shared_expert_intermediate_size` is the width of all shared experts together, and
    `expert_hidden_size` that of the routed experts' input where it is not `hidden_size`.
    `bytes_per_weight` and `mlp_math` are those of the routed experts, or of the MLPs without experts. The other bytes
    per weight differ from it in quantised checkpoints; 0 means the same. Arithmetic is bf16, fp8, fp4, int8 or mxfp4;
    "" means as for the MLP (`shared_math`: dense MLPs and shared experts of a model with experts).
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
    expert_hidden_size: int = 0
    shared_expert_intermediate_size: int = 0
    moe_layers: int = 0
    leading_dense_layers: int = 0
    mlp_matrices: int = 3
    mlp_free_layers: int = 0
    parallel_mlp: bool = False
    tied_embeddings: bool = False
    per_layer_embedding_size: int = 0
    bytes_per_weight: float = 2.0
    attention_bytes_per_weight: float = 0.0
    linear_bytes_per_weight: float = 0.0
    dense_bytes_per_weight: float = 0.0
    shared_bytes_per_weight: float = 0.0
    embedding_bytes_per_weight: float = 0.0
    mlp_math: str = "bf16"
    attention_math: str = ""
    linear_math: str = ""
    shared_math: str = ""
    kv_lora_rank: int = 0
    rope_head_dim: int = 0
    q_lora_rank: int = 0
    v_head_dim: int = 0
    attention: tuple[AttentionLayers, ...] = ()
    attention_free_layers: int = 0
    linear_layers: int = 0
    linear_parameters: int = 0
    linear_state_bytes: int = 0
    linear_state_elements: int = 0
    notes: tuple[str, ...] = ()

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
        if self.dense_layers and self.intermediate_size < 1:
            raise ModelConfigError(
                f"{self.name}: intermediate_size is {self.intermediate_size}; it must be at least 1."
            )

    @classmethod
    def from_hf_config(
        cls, config: Mapping[str, Any], *, name: str, hf_quant_config: Mapping[str, Any] | None = None
    ) -> "ModelSpec":
        """Read the contents of a Hugging Face `config.json`, and of the `hf_quant_config.json` beside it if any.

        Weights count at the config's own dtype: for an engine that serves in another one, set `torch_dtype` first.
        Raises `ModelConfigError` when a field is missing or impossible, or a kind of layer is not known.
        """
        return cls(name=name, **hf_config.read(config, name=name, hf_quant_config=hf_quant_config))

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    @property
    def dense_layers(self) -> int:
        """Layers whose MLP is not made of experts; they come first where `leading_dense_layers` is not 0."""
        return self.layers - self.moe_layers - self.mlp_free_layers

    @property
    def attention_kinds(self) -> tuple[AttentionLayers, ...]:
        """Every kind of attention layer, those that attend to everything first."""
        return self.attention or (self._uniform_attention,)

    @property
    def dense_mlp_parameters(self) -> int:
        """Of one dense layer: gate, up and down, or the last two where there is no gate."""
        return self.mlp_matrices * self.hidden_size * self.intermediate_size

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert."""
        return self.mlp_matrices * (self.expert_hidden_size or self.hidden_size) * self.expert_intermediate_size

    @property
    def shared_expert_parameters(self) -> int:
        """Of all shared experts of one MoE layer, with the two projections around routed experts of another width."""
        latent_size = 2 * self.hidden_size * self.expert_hidden_size
        return self.mlp_matrices * self.hidden_size * self.shared_expert_intermediate_size + latent_size

    @property
    def router_parameters(self) -> int:
        return self.hidden_size * self.experts

    @property
    def embedding_parameters(self) -> int:
        """Of the token embedding; the language-model head has as many, and is the same matrix when tied."""
        return self.vocab_size * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """Of the language-model head, which every sampled token goes through."""
        return self.embedding_parameters

    @property
    def matrices(self) -> tuple[Matrices, ...]:
        """Everything in the layers, by kind; embedding and head are apart."""
        full = self.embedding_bytes_per_weight or self.bytes_per_weight
        attention = (self.attention_bytes_per_weight or self.bytes_per_weight, self.attention_math or self.mlp_math)
        linear = (self.linear_bytes_per_weight or attention[0], self.linear_math or attention[1])
        shared_math = self.shared_math or self.mlp_math
        dense = (self.dense_bytes_per_weight or self.bytes_per_weight, shared_math)
        shared = (self.shared_bytes_per_weight or self.bytes_per_weight, shared_math)
        experts = (self.bytes_per_weight, self.mlp_math)
        every, used = self.experts * self.expert_parameters, self.experts_per_token * self.expert_parameters
        parts = (
            *(
                Matrices("attention", kind.layers, kind.parameters, *attention, attention=kind)
                for kind in self.attention_kinds
            ),
            Matrices("linear", self.linear_layers, self.linear_parameters, *linear),
            Matrices("dense", self.dense_layers, self.dense_mlp_parameters, *dense),
            Matrices("experts", self.moe_layers, every, *experts, used_parameters=used),
            Matrices("shared", self.moe_layers, self.shared_expert_parameters, *shared),
            Matrices("router", self.moe_layers, self.router_parameters, full, "bf16"),
        )
        return tuple(part for part in parts if part.layers * part.parameters)

    @property
    def parameters(self) -> int:
        return sum(part.layers * part.parameters for part in self.matrices) + self._outer_parameters

    @property
    def active_parameters(self) -> int:
        """Weights that one token is multiplied with, without embedding and head."""
        return sum(part.layers * part.used for part in self.matrices)

    @property
    def weight_bytes(self) -> int:
        """All weights, counted once, at the precision the checkpoint stores them in."""
        outer = self._outer_parameters * (self.embedding_bytes_per_weight or self.bytes_per_weight)
        return math.ceil(sum(part.layers * part.parameters * part.bytes_per_weight for part in self.matrices) + outer)

    def kv_bytes_per_token(self, bytes_per_element: float) -> int:
        """What one more token adds to the cache of a long sequence; `bytes_per_element` is 2 for 16-bit, 1 for fp8.

        Layers with a window or a linear state add nothing; `kv_bytes` counts theirs.
        """
        growing = (kind for kind in self.attention_kinds if kind.grows)
        return math.ceil(sum(k.layers * k.entry_bytes(bytes_per_element) / k.tokens_per_entry for k in growing))

    def kv_bytes(self, context_tokens: int, bytes_per_element: float) -> int:
        """The whole cache of one sequence of `context_tokens` tokens: windows capped, linear states added."""
        cache = sum(kind.kv_bytes(context_tokens, bytes_per_element) for kind in self.attention_kinds)
        return math.ceil(cache + self.linear_layers * self.linear_state_bytes)

    def kv_read_bytes(self, context_tokens: int, bytes_per_element: float) -> int:
        """What one decode step reads of that cache; linear states are written too, and count twice."""
        cache = sum(kind.read_bytes(context_tokens, bytes_per_element) for kind in self.attention_kinds)
        return math.ceil(cache + 2 * self.linear_layers * self.linear_state_bytes)

    def attention_flops(self, new_tokens: int, context_tokens: int) -> float:
        """FLOPs of scores and values of `new_tokens` tokens of one sequence after `context_tokens` cached ones.

        Causal within the new tokens, so a prefill is `attention_flops(n, 0)` and a decode step `attention_flops(1, n)`.
        A linear layer reads, decays and updates its state: 6 FLOPs an element and token.
        """
        attention = sum(kind.flops(new_tokens, context_tokens) for kind in self.attention_kinds)
        return attention + 6.0 * new_tokens * self.linear_layers * self.linear_state_elements

    @property
    def _uniform_attention(self) -> AttentionLayers:
        layers = self.layers - self.linear_layers - self.attention_free_layers
        if not self.kv_lora_rank:
            return grouped_query(
                layers=layers,
                hidden_size=self.hidden_size,
                heads=self.heads,
                kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                v_head_dim=self.v_head_dim,
            )
        return latent(
            layers=layers,
            hidden_size=self.hidden_size,
            heads=self.heads,
            head_dim=self.head_dim,
            rope_head_dim=self.rope_head_dim,
            v_head_dim=self.v_head_dim,
            kv_lora_rank=self.kv_lora_rank,
            q_lora_rank=self.q_lora_rank,
        )

    @property
    def _outer_parameters(self) -> int:
        """Embedding, head, embeddings of each layer (Gemma 3n) and the last norm; never quantised."""
        copies = 1 if self.tied_embeddings else 2
        per_layer = self.vocab_size * self.per_layer_embedding_size
        return copies * self.embedding_parameters + per_layer + self.hidden_size
