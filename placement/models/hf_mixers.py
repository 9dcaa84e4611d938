"""Head sizes, attention layers and linear mixers, from a `config.json`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from placement.models.attention import AttentionLayers, grouped_query, latent
from placement.models.config_fields import Fields, ModelConfigError
from placement.models.layer_kinds import Mixer, Mlp

Kinds = Sequence[tuple[Mixer, Mlp]]
WIDTH_MULTIPLE = 256  # of an MLP, in Llama-Nemotron's own code (modeling_decilm.py)
_CONV_BYTES = 2  # vLLM keeps the state of the short convolution in the activations' dtype


def head_sizes(fields: Fields, hidden_size: int) -> dict[str, int]:
    """Of the layers with full attention."""
    heads = fields.positive("num_attention_heads", "n_head", "n_heads")
    kv_heads = fields.optional("num_global_key_value_heads", "num_key_value_heads", "num_kv_heads", "n_head_kv")
    if fields.flag("multi_query") and not fields.flag("new_decoder_architecture"):
        kv_heads = 1
    shared = {"heads": heads, "kv_heads": kv_heads or _kv_heads_of_blocks(fields, heads) or heads}
    if not fields.optional("kv_lora_rank"):
        head_dim = fields.optional("global_head_dim", "head_dim", "attention_head_dim") or hidden_size // heads
        return shared | {"head_dim": head_dim, "v_head_dim": fields.optional("v_head_dim")}
    rope_head_dim = fields.positive("qk_rope_head_dim")
    return shared | {
        "head_dim": fields.positive("qk_nope_head_dim") + rope_head_dim,
        "kv_lora_rank": fields.positive("kv_lora_rank"),
        "rope_head_dim": rope_head_dim,
        "q_lora_rank": fields.optional("q_lora_rank"),
        "v_head_dim": fields.positive("v_head_dim"),
    }


def attention_layers(
    fields: Fields, kinds: Kinds, *, hidden_size: int, heads: Mapping[str, int]
) -> tuple[AttentionLayers, ...]:
    """The kinds of attention of a model, those that attend to everything first."""
    counts = Counter(mixer for mixer, _ in kinds)
    if ratios := fields.list("compress_ratios"):
        return _compressed(fields, ratios[: len(kinds)], hidden_size=hidden_size, heads=heads["heads"])
    found = [] if not counts[Mixer.FULL] else _full(fields, counts[Mixer.FULL], hidden_size, heads)
    if counts[Mixer.WINDOW]:
        found.append(_window(fields, counts[Mixer.WINDOW], hidden_size, heads))
    return tuple(found)


def block_width(fields: Fields, block: Any, hidden_size: int) -> int:
    """Width of the MLP of one of the `block_configs` of Llama-Nemotron, 0 where it has none."""
    ffn = Fields(block if isinstance(block, Mapping) else {}, fields.model).inner("ffn")
    if ffn.flag("no_op"):
        return 0
    multiple = ffn.config.get("ffn_mult")
    if isinstance(multiple, int | float) and not isinstance(multiple, bool) and 0 < multiple < hidden_size:
        return -(-int(2 * multiple * hidden_size / 3) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    return ffn.positive("intermediate_size")


def _kv_heads_of_blocks(fields: Fields, heads: int) -> int:
    """The most of any layer, so that memory is on the safe side; 0 without `block_configs`."""
    groups = [
        Fields(block, fields.model).inner("attention").optional("n_heads_in_group")
        for block in fields.list("block_configs")
        if isinstance(block, Mapping)
    ]
    return max((heads // group for group in groups if group), default=0)


def _full(fields: Fields, layers: int, hidden_size: int, heads: Mapping[str, int]) -> list[AttentionLayers]:
    gated = fields.flag("attn_output_gate") or fields.flag("mla_use_output_gate")
    if heads.get("kv_lora_rank"):
        sizes = {name: size for name, size in heads.items() if name != "kv_heads"}
        return _indexed(fields, latent(layers=layers, hidden_size=hidden_size, gated=gated, **sizes), hidden_size)
    values_are_keys = fields.flag("attention_k_eq_v")
    plain = grouped_query(layers=layers, hidden_size=hidden_size, gated=gated, values_are_keys=values_are_keys, **heads)
    return _block_sparse(fields, plain, hidden_size)


def _window(fields: Fields, layers: int, hidden_size: int, heads: Mapping[str, int]) -> AttentionLayers:
    if heads.get("kv_lora_rank"):
        raise ModelConfigError(f"{fields.model}: sliding_window with kv_lora_rank is not known.")
    count = fields.optional("swa_num_attention_heads") or heads["heads"]
    is_global = fields.optional("global_head_dim")  # then head_dim is that of the windows
    head_dim = fields.optional("swa_head_dim") or (fields.positive("head_dim") if is_global else heads["head_dim"])
    kv_heads = fields.optional("swa_num_key_value_heads")
    if not kv_heads:
        kv_heads = fields.optional("num_key_value_heads") if is_global else heads["kv_heads"]
    return grouped_query(
        layers=layers,
        hidden_size=hidden_size,
        heads=count,
        kv_heads=kv_heads or count,
        head_dim=head_dim,
        v_head_dim=fields.optional("swa_v_head_dim") or heads.get("v_head_dim", 0),
        gated=fields.flag("attn_output_gate"),
        window_tokens=fields.positive("sliding_window", "attention_chunk_size"),
    )


def _indexed(fields: Fields, plain: AttentionLayers, hidden_size: int) -> list[AttentionLayers]:
    """DeepSeek sparse attention: a small indexer scores every entry, and attention reads the best `index_topk`.

    GLM-5.2 lets layers share the choice of another (`indexer_types`), which then have no indexer.
    """
    top_k = fields.optional("index_topk")
    if not top_k:
        return [plain]
    index_heads, index_dim = fields.positive("index_n_heads"), fields.positive("index_head_dim")
    query = (fields.optional("q_lora_rank") or hidden_size) * index_heads * index_dim
    parameters = query + hidden_size * (index_dim + index_heads)
    shared = sum(kind == "shared" for kind in fields.list("indexer_types"))
    sparse = replace(plain, sparse_entries=top_k)
    indexed = replace(_with_indexer(sparse, index_heads, index_dim, parameters), layers=max(0, plain.layers - shared))
    return [kind for kind in (indexed, replace(sparse, layers=min(shared, plain.layers))) if kind.layers]


def _block_sparse(fields: Fields, plain: AttentionLayers, hidden_size: int) -> list[AttentionLayers]:
    """MiniMax-M3: in some layers an indexer chooses blocks of entries."""
    sparse = fields.inner("sparse_attention_config")
    if not sparse.flag("use_sparse_attention"):
        return [plain]
    layers = min(plain.layers, sum(flag == 1 for flag in sparse.list("sparse_attention_freq")))
    index_heads, index_dim = sparse.positive("sparse_num_index_heads"), sparse.positive("sparse_index_dim")
    entries = sparse.positive("sparse_topk_blocks") * sparse.positive("sparse_block_size")
    indexed = _with_indexer(plain, index_heads, index_dim, hidden_size * index_dim * (index_heads + 1))
    chosen = replace(indexed, layers=layers, sparse_entries=entries)
    return [kind for kind in (chosen, replace(plain, layers=plain.layers - layers)) if kind.layers]


def _compressed(fields: Fields, ratios: Sequence[Any], *, hidden_size: int, heads: int) -> tuple[AttentionLayers, ...]:
    """DeepSeek-V4: one head of keys that are the values too, a window of it, and an entry for each `ratio` tokens.

    Ratio 0 is a window alone; the smallest ratio has an indexer. The output is projected in groups of heads.
    """
    head_dim, q_lora_rank = fields.positive("head_dim"), fields.positive("q_lora_rank")
    output_rank, groups = fields.positive("o_lora_rank"), fields.positive("o_groups")
    plain = AttentionLayers(
        layers=1,
        kv_heads=1,
        cached_elements=head_dim,
        entry_flops=4 * heads * head_dim,
        projections=(
            ("q_a_proj", hidden_size * q_lora_rank),
            ("q_b_proj", q_lora_rank * heads * head_dim),
            ("kv_a_proj_with_mqa", hidden_size * head_dim),
            ("wo_a", heads * head_dim * output_rank),
            ("wo_b", groups * output_rank * hidden_size),
            ("norms", 2 * hidden_size),
        ),
        window_tokens=fields.positive("sliding_window"),
    )
    return tuple(_of_ratio(fields, plain, ratios, hidden_size))


def _of_ratio(
    fields: Fields, plain: AttentionLayers, ratios: Sequence[Any], hidden_size: int
) -> Iterator[AttentionLayers]:
    counts = Counter(ratio for ratio in ratios if isinstance(ratio, int) and ratio >= 0)
    with_indexer = min((ratio for ratio in counts if ratio > 1), default=0)
    for ratio, layers in sorted(counts.items(), reverse=True):
        kind = replace(plain, layers=layers, tokens_per_entry=max(1, ratio))
        if ratio == with_indexer and ratio > 1:
            index_heads, index_dim = fields.positive("index_n_heads"), fields.positive("index_head_dim")
            query = fields.positive("q_lora_rank") * index_heads * index_dim
            parameters = query + hidden_size * (index_dim + index_heads)
            sparse = replace(kind, sparse_entries=fields.positive("index_topk"))
            kind = _with_indexer(sparse, index_heads, index_dim, parameters)
        yield kind


def _with_indexer(kind: AttentionLayers, heads: int, head_dim: int, parameters: int) -> AttentionLayers:
    """`kind` with what scores its entries: one key for each of them, and queries of so many heads."""
    return replace(
        kind,
        index_elements=head_dim,
        index_entry_flops=2 * heads * head_dim,
        projections=(*kind.projections, ("indexer", parameters)),
    )


def linear_sizes(fields: Fields, kinds: Kinds, *, hidden_size: int) -> dict[str, int]:
    """Parameters and state of the linear mixers: gated delta net, KDA, Mamba-2 or lightning attention."""
    layers = sum(mixer is Mixer.LINEAR for mixer, _ in kinds)
    if not layers:
        return {}
    parameters, state, conv = _linear(fields, hidden_size)
    precision = fields.text("mamba_ssm_cache_dtype") or fields.text("mamba_ssm_dtype")
    state_bytes = 2 if precision in ("bfloat16", "float16") else 4  # float32 where nothing is said: the safe side
    return {
        "linear_layers": layers,
        "linear_parameters": parameters + 2 * hidden_size,
        "linear_state_elements": state,
        "linear_state_bytes": state * state_bytes + conv * _CONV_BYTES,
    }


def _linear(fields: Fields, hidden_size: int) -> tuple[int, int, int]:
    """Parameters, elements of the recurrent state and elements of the convolution's state, of one layer."""
    if fields.config.get("linear_attn_config") is not None:
        return _kda(fields, fields.inner("linear_attn_config"), hidden_size)
    if fields.optional("linear_num_value_heads"):
        return _gated_delta_net(fields, hidden_size)
    if fields.optional("mamba_num_heads", "mamba_n_heads"):
        return _mamba2(fields, hidden_size)
    if fields.list("attn_type_list"):  # lightning attention of MiniMax-Text-01: queries, keys, values, gate, output
        heads, head_dim = fields.positive("num_attention_heads"), fields.positive("head_dim")
        return 5 * hidden_size * heads * head_dim, heads * head_dim**2, 0
    raise ModelConfigError(
        f"{fields.model}: layer_types has linear layers, but the config has none of linear_num_value_heads, "
        "mamba_num_heads, mamba_n_heads and linear_attn_config, which say how large their state is."
    )


def _gated_delta_net(fields: Fields, hidden_size: int) -> tuple[int, int, int]:
    """Qwen3-Next and Qwen3.5: queries, keys, values and gate in, two gates a head, a short convolution."""
    key_dim, value_dim = fields.positive("linear_key_head_dim"), fields.positive("linear_value_head_dim")
    value_heads = fields.positive("linear_num_value_heads")
    keys, values = fields.positive("linear_num_key_heads") * key_dim, value_heads * value_dim
    kernel, width = fields.positive("linear_conv_kernel_dim"), 2 * keys + values
    parameters = hidden_size * (width + 2 * values + 2 * value_heads) + width * kernel
    return parameters, value_heads * key_dim * value_dim, width * (kernel - 1)


def _kda(fields: Fields, linear: Fields, hidden_size: int) -> tuple[int, int, int]:
    """Kimi delta attention (arXiv 2510.26692): gates of low rank, the output gate in full rank where it says so."""
    heads, head_dim = linear.positive("num_heads"), linear.positive("head_dim")
    kernel, width = linear.positive("short_conv_kernel_size"), heads * head_dim
    low_rank = hidden_size * head_dim + head_dim * width
    gate = hidden_size * width if linear.flag("use_full_rank_gate") else low_rank
    parameters = 4 * hidden_size * width + low_rank + gate + hidden_size * heads + 3 * width * kernel
    return parameters, heads * head_dim**2, 3 * width * (kernel - 1)


def _mamba2(fields: Fields, hidden_size: int) -> tuple[int, int, int]:
    heads = fields.positive("mamba_num_heads", "mamba_n_heads")
    inner = heads * fields.positive("mamba_head_dim", "mamba_d_head")
    state = fields.positive("ssm_state_size", "mamba_d_state")
    conv = inner + 2 * (fields.optional("n_groups", "mamba_n_groups") or 1) * state
    kernel = fields.positive("conv_kernel", "mamba_d_conv")
    parameters = hidden_size * (inner + conv + heads) + conv * kernel + inner * hidden_size
    return parameters, inner * state, conv * (kernel - 1)
