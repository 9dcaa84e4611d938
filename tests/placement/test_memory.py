from typing import Any

import pytest
from placement_builders import DEEPSEEK_V3, GIB, GPT_OSS_120B, H100, LLAMA_8B, LLAMA_70B, MIXTRAL_8X7B, spec
from planner_builders import model as known

from placement import MemoryUse, ModelSpec, Shape, memory_use
from placement.models.memory import KvRoom, kv_room, stage_layers


def use(
    config: dict[str, Any],
    shape: str,
    *,
    context_tokens: int = 8192,
    **arguments: Any,
) -> MemoryUse:
    return memory_use(spec(config), Shape.parse(shape), H100, context_tokens=context_tokens, **arguments)


@pytest.mark.parametrize(
    ("layers", "pp", "expected"),
    [
        pytest.param(32, 1, (32,), id="one-stage"),
        pytest.param(32, 4, (8, 8, 8, 8), id="even"),
        pytest.param(61, 2, (31, 30), id="the-last-stage-is-spared"),
        pytest.param(34, 4, (8, 9, 9, 8), id="the-middle-takes-the-rest"),
        pytest.param(35, 4, (9, 9, 9, 8), id="all-but-the-last"),
        pytest.param(3, 3, (1, 1, 1), id="one-each"),
    ],
)
def test_stages_are_split_as_vllm_splits_them(layers: int, pp: int, expected: tuple[int, ...]) -> None:
    assert stage_layers(layers, pp) == expected


@pytest.mark.parametrize(
    ("config", "shape", "gpus"),
    [
        pytest.param(LLAMA_8B, "tp1", 1, id="one"),
        pytest.param(LLAMA_8B, "tp4", 4, id="tp"),
        pytest.param(MIXTRAL_8X7B, "tp4ep4", 4, id="whole-experts"),
        pytest.param(GPT_OSS_120B, "tp4", 4, id="three-precisions"),
    ],
)
def test_tensor_parallel_ranks_divide_the_weights(config: dict[str, Any], shape: str, gpus: int) -> None:
    """All but the router, which is whole on each."""
    weights = use(config, shape).weights_bytes
    assert weights * gpus == pytest.approx(spec(config).weight_bytes, rel=2e-3)


def test_llama_8b_by_hand() -> None:
    """16.06 GB of weights; 8192 tokens of 131,072 bytes; 8192 tokens through 4*4096 + 3*14336, and 256 logit rows."""
    single = use(LLAMA_8B, "tp1")
    assert single.weights_bytes == pytest.approx(16.06e9, rel=1e-3)
    assert single.kv_bytes == 8192 * 131_072
    assert single.activation_bytes == 8192 * (4 * 4096 + 3 * 14336) * 2 + 256 * 128256 * 4
    assert single.available_bytes == pytest.approx(0.86 * 80 * GIB)
    assert single.total_bytes == single.weights_bytes + single.kv_bytes + single.activation_bytes
    assert single.fits


def test_the_first_stage_holds_the_embedding_and_the_last_the_head() -> None:
    layer_bytes = 2 * (spec(LLAMA_8B).attention_kinds[0].parameters + spec(LLAMA_8B).dense_mlp_parameters)
    table_bytes = 2 * 128256 * 4096
    assert use(LLAMA_8B, "pp2").weights_bytes == 16 * layer_bytes + table_bytes
    assert use(LLAMA_8B, "tp2pp2").weights_bytes == (16 * layer_bytes + table_bytes) // 2
    assert use(LLAMA_8B, "tp1").weights_bytes == 32 * layer_bytes + 2 * table_bytes


def test_tied_embeddings_count_once_on_one_stage_and_on_both_ends_of_a_pipeline() -> None:
    tied = LLAMA_8B | {"tie_word_embeddings": True}
    table_bytes = 2 * 128256 * 4096
    assert use(LLAMA_8B, "tp1").weights_bytes - use(tied, "tp1").weights_bytes == table_bytes
    assert use(tied, "pp2").weights_bytes == use(LLAMA_8B, "pp2").weights_bytes


@pytest.mark.parametrize(
    ("config", "shape", "shards"),
    [
        pytest.param(LLAMA_8B, "tp8", 8, id="one-head-each"),
        pytest.param(LLAMA_8B, "tp16", 8, id="more-ranks-than-kv-heads-hold-copies"),
        pytest.param(LLAMA_8B, "pp4", 4, id="stages"),
        pytest.param(DEEPSEEK_V3, "tp8", 1, id="mla-is-not-sharded"),
        pytest.param(MIXTRAL_8X7B, "tp2ep4dp2", 2, id="data-parallel-ranks-have-requests-of-their-own"),
    ],
)
def test_kv_shards(config: dict[str, Any], shape: str, shards: int) -> None:
    assert use(config, shape).kv_bytes == 8192 * spec(config).kv_bytes_per_token(2) // shards


def test_experts_are_divided_over_data_parallel_ranks_and_attention_is_not() -> None:
    model = spec(MIXTRAL_8X7B)
    expert_bytes = 2 * model.layers * model.experts * model.expert_parameters
    others = model.weight_bytes - expert_bytes
    whole, sliced = use(MIXTRAL_8X7B, "ep4dp4"), use(MIXTRAL_8X7B, "dp4")
    assert whole.weights_bytes == sliced.weights_bytes == pytest.approx(others + expert_bytes // 4, rel=1e-6)


def test_the_stage_of_dense_layers_is_lighter() -> None:
    """DeepSeek's three dense layers are in the first of 61 stages' worth: the busiest stage has experts only."""
    model = spec(DEEPSEEK_V3)
    attention = model.attention_kinds[0].parameters * 1.0
    moe = model.experts * model.expert_parameters + model.shared_expert_parameters + 2 * model.router_parameters
    dense_first = 31 * attention + 3 * model.dense_mlp_parameters + 28 * moe + 2 * model.embedding_parameters
    experts_last = 30 * (attention + moe) + 2 * model.embedding_parameters
    assert use(DEEPSEEK_V3, "pp2").weights_bytes == max(dense_first, experts_last)


@pytest.mark.parametrize(
    ("config", "shape", "fits"),
    [
        pytest.param(LLAMA_70B, "tp1", False, id="70b-on-one"),
        pytest.param(LLAMA_70B, "tp2", True, id="70b-on-two"),
        pytest.param(DEEPSEEK_V3, "tp8ep8", False, id="deepseek-on-one-node"),
        pytest.param(DEEPSEEK_V3, "tp8pp2ep8", True, id="deepseek-on-two-nodes"),
    ],
)
def test_fits_an_h100(config: dict[str, Any], shape: str, fits: bool) -> None:
    assert use(config, shape).fits == fits


def test_fp8_kv_takes_half() -> None:
    assert use(LLAMA_8B, "tp1", kv_bytes_per_element=1).kv_bytes == use(LLAMA_8B, "tp1").kv_bytes // 2


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        pytest.param("tp1", {"context_tokens": -1}, id="negative-context"),
        pytest.param("tp1", {"utilisation": 0.04}, id="nothing-usable"),
        pytest.param("tp1", {"utilisation": 1.1}, id="more-than-all"),
        pytest.param("pp33", {}, id="more-stages-than-layers"),
        pytest.param("tp1", {"requests": 0}, id="no-request"),
        pytest.param("tp1", {"step_tokens": 0}, id="no-step"),
    ],
)
def test_impossible_arguments_are_refused(shape: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="memory_use"):
        use(LLAMA_8B, shape, **arguments)


def room(model: ModelSpec, shape: str, context_tokens: int, **arguments: Any) -> KvRoom:
    return kv_room(model, Shape.parse(shape), H100, context_tokens=context_tokens, **arguments)


def test_mla_compressions_and_the_indexer_are_whole_on_every_rank() -> None:
    """DeepSeek-V3: 1536 for queries and 576 for keys and values, of a hidden size of 7168, in each of 61 layers."""
    single, eight = use(DEEPSEEK_V3, "tp1").weights_bytes, use(DEEPSEEK_V3, "tp8").weights_bytes
    model = spec(DEEPSEEK_V3)
    whole = 61 * 7168 * (1536 + 576) + 58 * model.router_parameters * 2
    assert eight == pytest.approx(whole + (single - whole) / 8, abs=8)


def test_ranks_beyond_the_kv_heads_hold_copies_of_the_key_and_value_projections() -> None:
    one, sixteen = use(LLAMA_8B, "tp1").weights_bytes, use(LLAMA_8B, "tp16").weights_bytes
    copies = 2 * 32 * 4096 * 1024 * 2
    assert sixteen == pytest.approx((one - copies) / 16 + copies / 8, abs=8)


def test_a_window_holds_its_tokens_and_those_of_the_running_step() -> None:
    windowed = LLAMA_8B | {"sliding_window": 1024}
    per_token = spec(LLAMA_8B).kv_bytes_per_token(2)
    assert use(windowed, "tp1", context_tokens=512).kv_bytes == 512 * per_token
    assert use(windowed, "tp1", context_tokens=4096).kv_bytes == 4096 * per_token  # a step of 8192 takes it whole
    assert use(windowed, "tp1", context_tokens=100_000).kv_bytes == (1024 + 8192) * per_token


def test_many_requests_hold_a_window_each() -> None:
    model, shape = spec(LLAMA_8B | {"sliding_window": 1024}), Shape()
    many = memory_use(model, shape, H100, context_tokens=80_000, requests=8, step_tokens=256)
    assert many.kv_bytes == (8 * 1024 + 256) * spec(LLAMA_8B).kv_bytes_per_token(2)


def test_a_linear_state_is_divided_over_the_ranks_whatever_the_kv_heads() -> None:
    model = known("Qwen/Qwen3.5-397B-A17B")
    state = model.linear_layers * model.linear_state_bytes
    empty = [memory_use(model, Shape(tp=tp), H100, context_tokens=0).kv_bytes for tp in (1, 8)]
    assert empty == [state, state // 8]


def test_a_smaller_step_and_fewer_requests_take_fewer_activations() -> None:
    model, shape = spec(LLAMA_8B), Shape()
    small = memory_use(model, shape, H100, context_tokens=0, step_tokens=2048, running_requests=16)
    assert small.activation_bytes == 2048 * (4 * 4096 + 3 * 14336) * 2 + 16 * 128256 * 4


def test_alternating_dense_layers_are_spread_over_the_stages() -> None:
    """Llama 4 Maverick has experts in every second of 48 layers: two stages differ by embedding and head alone."""
    model = known("meta-llama/Llama-4-Maverick-17B-128E-Instruct")
    half = memory_use(model, Shape(pp=2), H100, context_tokens=0).weights_bytes
    assert half == pytest.approx(model.weight_bytes / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "shape", "context_tokens"),
    [
        pytest.param("meta-llama/Llama-3.1-8B", "tp1", 4096, id="dense"),
        pytest.param("meta-llama/Llama-3.1-70B", "tp4", 10_000, id="tp"),
        pytest.param("meta-llama/Llama-3.1-70B", "tp2pp2", 10_000, id="stages"),
        pytest.param("deepseek-ai/DeepSeek-V3", "tp8pp2ep8", 5000, id="mla"),
        pytest.param("openai/gpt-oss-120b", "tp2", 131_072, id="windows"),
        pytest.param("Qwen/Qwen3.5-27B", "tp1", 8192, id="linear"),
    ],
)
def test_the_room_is_what_memory_use_fits_and_one_request_more_is_too_much(
    model: str, shape: str, context_tokens: int
) -> None:
    requests = room(known(model), shape, context_tokens).requests
    assert requests > 0
    for count, fits in ((requests, True), (requests + 1, False)):
        found = memory_use(
            known(model),
            Shape.parse(shape),
            H100,
            context_tokens=count * context_tokens,
            requests=count,
        )
        assert found.fits == fits


def test_tokens_of_a_dense_model_by_hand() -> None:
    """Llama-3.1-8B on 80 GiB at 0.9: what weights and activations leave, at 131,072 bytes a token."""
    found = room(spec(LLAMA_8B), "tp1", 1)
    alone = use(LLAMA_8B, "tp1", context_tokens=0)
    assert found.free_bytes == alone.available_bytes - alone.weights_bytes - alone.activation_bytes
    assert found.tokens == found.free_bytes // 131_072 == found.requests
    assert 400_000 < found.tokens < 450_000


def test_more_ranks_than_kv_heads_add_room_only_by_lighter_weights() -> None:
    """Qwen3-235B has 4 KV heads: from tp4 to tp8 a token takes the same bytes on every rank."""
    model = known("Qwen/Qwen3-235B-A22B-FP8")
    four, eight = room(model, "tp4", 1000), room(model, "tp8", 1000)
    assert four.free_bytes / four.tokens == pytest.approx(eight.free_bytes / eight.tokens, rel=1e-3)


def test_no_room_where_the_weights_do_not_fit() -> None:
    assert room(spec(LLAMA_70B), "tp1", 1000) == KvRoom(free_bytes=0, requests=0, tokens=0)


def test_a_context_of_nothing_has_no_room_to_ask_for() -> None:
    with pytest.raises(ValueError, match="kv_room: context_tokens is 0"):
        room(spec(LLAMA_8B), "tp1", 0)
