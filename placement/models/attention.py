"""What attention costs: the cache it keeps, what one step reads of it, and the work of scores and values.

A model is a few kinds of layers that attend alike. With n query heads of d, v value elements a head and one cached
entry, scores and values take 2*n*(d + v) FLOPs per query token. Multi-head latent attention (MLA) has two forms with
the same result: expanded, at d and v of the heads, or absorbed, at the latent sizes (DeepSeek-V2, arXiv 2405.04434);
the cheaper one counts. A chunk of local attention counts as a window of its size, which is its memory but up to twice
its work.
"""

from dataclasses import dataclass

# vLLM keeps the keys of a sparse-attention indexer in 8 bits with a 32-bit scale per 128, whatever the cache's dtype.
_INDEX_BYTES = 1 + 4 / 128
_ON_EVERY_RANK = ("q_a_proj", "kv_a_proj_with_mqa", "indexer")  # compressions that tensor parallelism does not cut
_PER_KV_HEAD = ("k_proj", "v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayers:
    """`layers` layers of a model that attend alike. Sizes are those of one layer.

    `projections` names each matrix with its number of parameters. `kv_heads` is how many ranks of a tensor-parallel
    group can share the cache, 1 with MLA. `cached_elements` is one cache entry over all heads; an entry stands for
    `tokens_per_entry` tokens. A window keeps the last `window_tokens` tokens (0: all), and sparse attention reads at
    most `sparse_entries` entries (0: all) that an indexer with `index_elements` per entry chooses. Where the entries
    are compressed, the window is kept beside them.
    """

    layers: int
    kv_heads: int
    cached_elements: int
    entry_flops: int
    projections: tuple[tuple[str, int], ...]
    expanded_entry_flops: int = 0
    expand_flops: int = 0
    window_tokens: int = 0
    tokens_per_entry: int = 1
    sparse_entries: int = 0
    index_elements: int = 0
    index_entry_flops: int = 0

    @property
    def parameters(self) -> int:
        return sum(parameters for _, parameters in self.projections)

    @property
    def grows(self) -> bool:
        """Whether each further token takes more cache."""
        return not self.window_tokens or self.tokens_per_entry > 1

    def parameters_per_rank(self, tp: int) -> float:
        """Of one layer on one of `tp` tensor-parallel ranks, with what every rank holds a copy of."""
        shards = dict.fromkeys(_ON_EVERY_RANK, 1) | {name: min(tp, self.kv_heads) for name in _PER_KV_HEAD}
        return sum(parameters / shards.get(name, tp) for name, parameters in self.projections)

    def kv_shards(self, tp: int) -> int:
        """How many ways `tp` ranks divide the cache; ranks beyond it hold copies."""
        return min(tp, self.kv_heads)

    def entry_bytes(self, bytes_per_element: float) -> float:
        """One entry of one layer, with its index key."""
        return self.cached_elements * bytes_per_element + self.index_elements * _INDEX_BYTES

    def kv_bytes(self, context_tokens: int, bytes_per_element: float) -> float:
        """The cache of one sequence of `context_tokens` tokens over all these layers."""
        index_entries = self._entries(context_tokens) if self.index_elements else 0.0
        kept = (self._entries(context_tokens) + self._window(context_tokens)) * self.cached_elements * bytes_per_element
        return self.layers * (kept + index_entries * self.index_elements * _INDEX_BYTES)

    def read_bytes(self, context_tokens: int, bytes_per_element: float) -> float:
        """What one decode step of one such sequence reads: the entries attended to, and every index key."""
        entries = self._entries(context_tokens)
        read = (min(entries, self.sparse_entries or entries) + self._window(context_tokens)) * self.cached_elements
        return self.layers * (read * bytes_per_element + entries * self.index_elements * _INDEX_BYTES)

    def flops(self, new_tokens: int, context_tokens: int) -> float:
        """Scores and values of `new_tokens` tokens, each attending to those before it and to `context_tokens` cached.

        Sparse attention has the absorbed form only, because every token chooses entries of its own.
        """
        everything = context_tokens + new_tokens
        per_entry = self.tokens_per_entry
        entries = _pairs(new_tokens, context_tokens, everything) / per_entry if self.grows else 0.0
        read = entries
        if self.sparse_entries:
            read = _pairs(new_tokens, context_tokens, self.sparse_entries * per_entry) / per_entry
        if self.window_tokens:
            read += _pairs(new_tokens, context_tokens, self.window_tokens)
        attend = read * self.entry_flops
        if self.expanded_entry_flops and not self.sparse_entries:
            attend = min(attend, read * self.expanded_entry_flops + context_tokens * self.expand_flops)
        return self.layers * (attend + entries * self.index_entry_flops)

    def _entries(self, context_tokens: int) -> float:
        return context_tokens / self.tokens_per_entry if self.grows else 0.0

    def _window(self, context_tokens: int) -> int:
        return min(context_tokens, self.window_tokens)


def grouped_query(
    *,
    layers: int,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_head_dim: int = 0,
    gated: bool = False,
    values_are_keys: bool = False,
    window_tokens: int = 0,
) -> AttentionLayers:
    """Multi-head, grouped-query and multi-query attention. `gated`: the output is multiplied by a gate of its size."""
    value_dim = v_head_dim or head_dim
    return AttentionLayers(
        layers=layers,
        kv_heads=kv_heads,
        cached_elements=kv_heads * (head_dim + value_dim),
        entry_flops=2 * heads * (head_dim + value_dim),
        projections=(
            ("q_proj", hidden_size * heads * (head_dim + gated * value_dim)),
            ("k_proj", hidden_size * kv_heads * head_dim),
            ("v_proj", 0 if values_are_keys else hidden_size * kv_heads * value_dim),
            ("o_proj", heads * value_dim * hidden_size),
            ("norms", 2 * hidden_size),
        ),
        window_tokens=window_tokens,
    )


def latent(
    *,
    layers: int,
    hidden_size: int,
    heads: int,
    head_dim: int,
    rope_head_dim: int,
    v_head_dim: int,
    kv_lora_rank: int,
    q_lora_rank: int = 0,
    gated: bool = False,
) -> AttentionLayers:
    """MLA: one compressed entry of `kv_lora_rank` + `rope_head_dim` elements serves all heads."""
    cached = kv_lora_rank + rope_head_dim
    expand = kv_lora_rank * heads * (head_dim - rope_head_dim + v_head_dim)
    query = heads * head_dim
    return AttentionLayers(
        layers=layers,
        kv_heads=1,
        cached_elements=cached,
        entry_flops=2 * heads * (cached + kv_lora_rank),
        expanded_entry_flops=2 * heads * (head_dim + v_head_dim),
        expand_flops=2 * expand,
        projections=(
            ("q_a_proj", hidden_size * q_lora_rank),
            ("q_b_proj" if q_lora_rank else "q_proj", (q_lora_rank or hidden_size) * query),
            ("kv_a_proj_with_mqa", hidden_size * cached),
            ("kv_b_proj", expand),
            ("o_proj", heads * v_head_dim * hidden_size),
            ("g_proj", gated * hidden_size * heads * v_head_dim),
            ("norms", 2 * hidden_size),
        ),
    )


def _pairs(new_tokens: int, context_tokens: int, limit: int) -> int:
    """Sum over the new tokens of how many tokens each attends to, itself included, at most `limit`."""
    below = max(0, min(new_tokens, limit - context_tokens))
    return below * context_tokens + below * (below + 1) // 2 + (new_tokens - below) * limit
