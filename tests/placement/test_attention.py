"""Windows, linear layers, sparse attention: what a sequence keeps, what a step reads, and how much work it is."""

from typing import Any

import pytest
from placement_builders import DEEPSEEK_V3, LLAMA_8B, spec
from planner_builders import model as known


@pytest.mark.parametrize(
    ("name", "published_bytes"),
    [
        pytest.param("meta-llama/Llama-3.1-405B", 516_096, id="405b"),
        pytest.param("mistralai/Mistral-Large-2407", 360_448, id="mistral-large-2"),
        pytest.param("mistralai/Mixtral-8x22B-v0.1", 229_376, id="mixtral"),
        pytest.param("Qwen/Qwen3-32B", 262_144, id="qwen3"),
        pytest.param("Qwen/Qwen3-235B-A22B", 192_512, id="four-kv-heads"),
        pytest.param("moonshotai/Kimi-K2-Instruct", 70_272, id="mla"),
        pytest.param("openai/gpt-oss-120b", 73_728 // 2, id="half-the-layers-have-windows"),
        pytest.param("meta-llama/Llama-4-Maverick-17B-128E", 196_608 // 4, id="a-fourth-attends-to-everything"),
        pytest.param("google/palm-540b", 118 * 2 * 256 * 2, id="one-kv-head"),
    ],
)
def test_growth_of_the_cache_per_token(name: str, published_bytes: int) -> None:
    assert known(name).kv_bytes_per_token(2) == published_bytes


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        pytest.param("meta-llama/Llama-3.1-8B", (32, 0, 0, 0), id="full"),
        pytest.param("openai/gpt-oss-120b", (18, 18, 128, 0), id="alternating"),
        pytest.param("google/gemma-3-27b-it", (10, 52, 1024, 0), id="five-to-one"),
        pytest.param("google/gemma-2-27b", (23, 23, 4096, 0), id="gemma-2"),
        pytest.param("mistralai/Mistral-7B-v0.1", (0, 32, 4096, 0), id="windows-only"),
        pytest.param("mistralai/Mistral-7B-v0.3", (32, 0, 0, 0), id="no-window"),
        pytest.param("meta-llama/Llama-4-Scout-17B-16E-Instruct", (12, 36, 8192, 0), id="chunks"),
        pytest.param("Qwen/Qwen3.5-397B-A17B", (15, 0, 0, 45), id="delta-net"),
        pytest.param("nvidia/Nemotron-H-56B-Base-8K", (10, 0, 0, 54), id="blocks"),
        pytest.param("moonshotai/Kimi-Linear-48B-A3B-Instruct", (7, 0, 0, 20), id="kda"),
        pytest.param("MiniMaxAI/MiniMax-Text-01", (10, 0, 0, 70), id="lightning"),
        pytest.param("nvidia/Llama-3_3-Nemotron-Super-49B-v1", (49, 0, 0, 0), id="some-without-attention"),
    ],
)
def test_layers_by_kind(name: str, kinds: tuple[int, int, int, int]) -> None:
    model = known(name)
    growing = sum(kind.layers for kind in model.attention_kinds if kind.grows)
    windows = [kind for kind in model.attention_kinds if not kind.grows]
    window_layers, window_tokens = sum(kind.layers for kind in windows), sum(kind.window_tokens for kind in windows)
    assert (growing, window_layers, window_tokens, model.linear_layers) == kinds
    assert growing + window_layers + model.linear_layers + model.attention_free_layers == model.layers


LAYER_TYPES = ["sliding_attention", "full_attention"] * 16


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        pytest.param({"sliding_window": 512, "layer_types": LAYER_TYPES}, 16, id="named"),
        pytest.param({"sliding_window": 512, "layer_types": ["full_attention"] * 32}, 0, id="named-full"),
        pytest.param({"sliding_window": 512}, 32, id="every-layer"),
        pytest.param({"sliding_window": 512, "use_sliding_window": False}, 0, id="switched-off"),
        pytest.param({"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 28}, 4, id="qwen2"),
        pytest.param({"sliding_window": 512, "sliding_window_pattern": 4}, 24, id="three-to-one"),
        pytest.param({"sliding_window": None}, 0, id="none"),
    ],
)
def test_windows(changes: dict[str, Any], windows: int) -> None:
    kinds = spec(LLAMA_8B, **changes).attention_kinds
    assert sum(kind.layers for kind in kinds if not kind.grows) == windows


def test_a_window_keeps_its_last_tokens_and_the_other_layers_all() -> None:
    model = spec(LLAMA_8B, sliding_window=512, layer_types=LAYER_TYPES)
    per_layer = 2 * 8 * 128 * 2
    assert model.kv_bytes_per_token(2) == 16 * per_layer
    assert model.kv_bytes(100, 2) == 32 * 100 * per_layer
    assert model.kv_bytes(10_000, 2) == model.kv_read_bytes(10_000, 2) == 16 * (10_000 + 512) * per_layer


def test_a_linear_layer_keeps_a_state_of_one_size() -> None:
    """Qwen3.5-397B: 64 heads of 128 x 128 in 32 bits and 3 x 12288 of convolution in 16, over 45 layers."""
    model = known("Qwen/Qwen3.5-397B-A17B")
    state = 45 * (64 * 128 * 128 * 4 + 3 * 12288 * 2)
    assert model.kv_bytes(0, 2) == state
    assert model.kv_bytes(1000, 2) == state + 1000 * 15 * 2 * 2 * 256 * 2
    assert model.kv_read_bytes(1000, 2) - model.kv_bytes(1000, 2) == state  # written back


def test_sparse_attention_keeps_every_token_and_reads_the_chosen() -> None:
    """DeepSeek-V3.2: 576 elements a token, an indexer key of 128 bytes and a scale of 4, at most 2048 tokens read."""
    model = known("deepseek-ai/DeepSeek-V3.2")
    assert model.kv_bytes_per_token(2) == 61 * (1152 + 132)
    assert model.kv_read_bytes(1000, 2) == model.kv_bytes(1000, 2) == 61 * 1000 * 1284
    assert model.kv_read_bytes(100_000, 2) == 61 * (2048 * 1152 + 100_000 * 132)


def test_layers_that_share_an_index_keep_none() -> None:
    assert known("zai-org/GLM-5").kv_bytes_per_token(2) == 78 * (1152 + 132)
    assert known("zai-org/GLM-5.2").kv_bytes_per_token(2) == 78 * 1152 + 21 * 132


def test_a_compressed_cache_has_a_window_and_an_entry_for_many_tokens() -> None:
    """DeepSeek-V4-Flash: 21 layers keep a fourth of the tokens with an index, 20 a 128th, 2 only the window of 128."""
    model = known("deepseek-ai/DeepSeek-V4-Flash")
    entries = 21 * 2560 + 20 * 80
    assert model.kv_bytes(10_240, 2) == (entries + 43 * 128) * 512 * 2 + 21 * 2560 * 132


def brute_pairs(new: int, cached: int, limit: int) -> int:
    return sum(min(limit, cached + position) for position in range(1, new + 1))


@pytest.mark.parametrize(("new", "cached"), [(1, 0), (1, 999), (700, 0), (300, 400), (5, 5000)])
def test_attention_work_is_causal_and_windows_cap_it(new: int, cached: int) -> None:
    per_pair = 2 * 32 * (128 + 128)
    everything = cached + new
    assert spec(LLAMA_8B).attention_flops(new, cached) == 32 * per_pair * brute_pairs(new, cached, everything)
    windowed = spec(LLAMA_8B, sliding_window=512, layer_types=LAYER_TYPES)
    pairs = brute_pairs(new, cached, everything) + brute_pairs(new, cached, 512)
    assert windowed.attention_flops(new, cached) == 16 * per_pair * pairs


def test_mla_decodes_absorbed_and_prefills_expanded() -> None:
    model = spec(DEEPSEEK_V3)
    assert model.attention_flops(1, 4095) == 61 * 4096 * 2 * 128 * (512 + 64 + 512)
    assert model.attention_flops(4096, 0) == 61 * (4096 * 4097 // 2) * 2 * 128 * (192 + 128)


def test_sparse_attention_works_on_the_chosen_and_its_indexer_on_all() -> None:
    model = known("deepseek-ai/DeepSeek-V3.2")
    chosen, index = 2048 * 2 * 128 * (512 + 64 + 512), 100_000 * 2 * 64 * 128
    assert model.attention_flops(1, 99_999) == 61 * (chosen + index)
