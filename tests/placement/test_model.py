from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_builders import DEEPSEEK_V3, GPT_OSS_120B, LLAMA_8B, LLAMA_70B, MIXTRAL_8X7B, QWEN3_30B_A3B, spec
from planner_builders import model as known

from placement import ModelConfigError, ModelSpec
from placement.models import catalogue

QWEN2_5_0_5B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
QWEN3_32B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "max_position_embeddings": 40960,
    "num_attention_heads": 64,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
QWEN1_5_MOE_A2_7B: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 102400,
}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        pytest.param(LLAMA_8B, 8.03e9, id="llama-3.1-8b"),
        pytest.param(LLAMA_70B, 70.55e9, id="llama-3.1-70b"),
        pytest.param(QWEN2_5_0_5B, 0.494e9, id="qwen2.5-0.5b-tied"),
        pytest.param(QWEN3_32B, 32.76e9, id="qwen3-32b-head-dim"),
        pytest.param(MIXTRAL_8X7B, 46.7e9, id="mixtral-8x7b"),
        pytest.param(QWEN1_5_MOE_A2_7B, 14.3e9, id="qwen1.5-moe-shared-expert"),
        pytest.param(QWEN3_30B_A3B, 30.5e9, id="qwen3-30b-a3b"),
        pytest.param(DEEPSEEK_V2_LITE, 15.7e9, id="deepseek-v2-lite-mla-without-q-lora"),
        pytest.param(DEEPSEEK_V3, 671e9, id="deepseek-v3"),
        pytest.param(GPT_OSS_120B, 116.8e9, id="gpt-oss-120b"),
    ],
)
def test_parameters_match_the_published_count(config: dict[str, Any], published: float) -> None:
    assert spec(config).parameters == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("config", "published_bytes"),
    [
        pytest.param(LLAMA_8B, 131_072, id="llama-8b"),
        pytest.param(LLAMA_70B, 327_680, id="llama-70b"),
        pytest.param(QWEN3_30B_A3B, 98_304, id="qwen3-30b-a3b"),
        pytest.param(GPT_OSS_120B, 73_728, id="gpt-oss"),
        pytest.param(DEEPSEEK_V3, 70_272, id="deepseek-mla"),
    ],
)
def test_kv_bytes_per_token(config: dict[str, Any], published_bytes: int) -> None:
    assert spec(config).kv_bytes_per_token(2) == published_bytes
    assert spec(config).kv_bytes_per_token(1) == published_bytes // 2


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        pytest.param(LLAMA_8B, {}, {"is_moe": False, "head_dim": 128, "kv_heads": 8, "dense_layers": 32}, id="dense"),
        pytest.param(LLAMA_8B, {"num_key_value_heads": None}, {"kv_heads": 32}, id="no-kv-heads-means-all"),
        pytest.param(MIXTRAL_8X7B, {}, {"is_moe": True, "moe_layers": 32, "experts_per_token": 2}, id="mixtral"),
        pytest.param(QWEN3_30B_A3B, {"mlp_only_layers": [0, 1]}, {"moe_layers": 46}, id="some-dense-layers"),
        pytest.param(QWEN3_30B_A3B, {"decoder_sparse_step": 2}, {"moe_layers": 24}, id="every-second-layer"),
        pytest.param(DEEPSEEK_V3, {}, {"moe_layers": 58, "dense_layers": 3, "head_dim": 192}, id="deepseek"),
        pytest.param(DEEPSEEK_V2_LITE, {}, {"shared_expert_intermediate_size": 2816}, id="two-shared-experts"),
        pytest.param(GPT_OSS_120B, {}, {"experts": 128, "expert_intermediate_size": 2880}, id="gpt-oss"),
    ],
)
def test_fields(config: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]) -> None:
    model = spec(config, **changes)
    assert {field: getattr(model, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("config", "changes", "tokens"),
    [
        pytest.param(LLAMA_8B, {}, 131_072, id="llama3-scaling-is-included"),
        pytest.param(DEEPSEEK_V3, {}, 163_840, id="yarn-already-stretched"),
        pytest.param(
            QWEN3_32B,
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            131_072,
            id="yarn-stretches",
        ),
        pytest.param(QWEN3_32B, {"rope_parameters": {"rope_type": "linear", "factor": 2}}, 81_920, id="linear"),
    ],
)
def test_max_position_tokens(config: dict[str, Any], changes: dict[str, Any], tokens: int) -> None:
    assert spec(config, **changes).max_position_tokens == tokens


def test_descends_into_the_text_config() -> None:
    inner = {key: value for key, value in LLAMA_8B.items() if key not in ("architectures", "torch_dtype")}
    outer = {"architectures": ["SomeVisionModel"], "torch_dtype": "float32", "text_config": inner, "hidden_size": 7}
    model = spec(outer)
    assert (model.architecture, model.hidden_size, model.bytes_per_weight) == ("SomeVisionModel", 4096, 4.0)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        pytest.param({}, {}, "num_hidden_layers", id="empty"),
        pytest.param(LLAMA_8B, {"vocab_size": None}, "vocab_size", id="missing"),
        pytest.param(LLAMA_8B, {"hidden_size": "4096"}, "hidden_size is '4096'", id="text"),
        pytest.param(LLAMA_8B, {"num_hidden_layers": True}, "num_hidden_layers is True", id="boolean"),
        pytest.param(LLAMA_8B, {"num_attention_heads": -1}, "num_attention_heads is -1", id="negative"),
        pytest.param(LLAMA_8B, {"num_attention_heads": 5000}, "head_dim is 0", id="more-heads-than-width"),
        pytest.param(LLAMA_8B, {"intermediate_size": 0}, "intermediate_size", id="no-mlp"),
        pytest.param(MIXTRAL_8X7B, {"num_experts_per_tok": 9}, "experts_per_token is 9", id="too-many-experts-a-token"),
        pytest.param(QWEN3_30B_A3B, {"decoder_sparse_step": 99}, "moe_layers is 0", id="experts-in-no-layer"),
        pytest.param(DEEPSEEK_V3, {"v_head_dim": None}, "v_head_dim", id="mla-incomplete"),
        pytest.param(LLAMA_8B, {"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "max_position_tokens", id="yarn"),
    ],
)
def test_impossible_configs_are_refused_by_name(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        spec(config, **changes)


def test_layers_that_only_draft_are_not_counted() -> None:
    """DeepSeek-V3's report: 14B on the hub beside the 671B."""
    assert spec(DEEPSEEK_V3, num_nextn_predict_layers=1) == spec(DEEPSEEK_V3)


def test_one_all_reduce_a_layer_where_attention_and_mlp_run_in_parallel() -> None:
    assert known("google/palm-540b").parallel_mlp
    assert known("tiiuae/falcon-180B").parallel_mlp
    assert not spec(LLAMA_8B).parallel_mlp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"layer_types": ["rwkv"] * 32}, "layer_types holds 'rwkv'; known are full_attention", id="kind"),
        pytest.param({"layer_types": ["full_attention"]}, "layer_types has 1 items for 32 layers", id="length"),
        pytest.param({"layer_types": ["sliding_attention"] * 32}, "needs sliding_window", id="window-without-size"),
        pytest.param({"layer_types": ["linear_attention"] * 32}, "linear_num_value_heads", id="state-without-size"),
        pytest.param({"hybrid_override_pattern": "M*X"}, "pattern of layers holds 'X'", id="block"),
        pytest.param({"attn_layer_period": 8}, "attn_layer_period, which is not read", id="jamba"),
        pytest.param({"is_encoder_decoder": True}, "is_encoder_decoder is true", id="encoder"),
        pytest.param({"num_hidden_layers": 10**9}, "at most 10000", id="absurd"),
    ],
)
def test_layers_it_does_not_know_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        spec(LLAMA_8B, **changes)


@pytest.mark.parametrize("content", [{"a": 1}, {"pipeline": []}])
def test_another_kind_of_json_is_told_what_is_accepted(content: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigError, match=r"needs num_hidden_layers .* config.json of a decoder-only model"):
        ModelSpec.from_hf_config(content, name="m")


def test_a_list_is_no_config() -> None:
    with pytest.raises(ModelConfigError, match="the config is list, not an object"):
        ModelSpec.from_hf_config([], name="m")  # type: ignore[arg-type]


awkward = st.sampled_from(
    [
        None,
        0,
        -1,
        3,
        10**12,
        1.5,
        float("nan"),
        True,
        "",
        "x",
        "E*M-",
        [],
        [1] * 32,
        [None],
        [{}] * 80,
        {},
        {"layers": 1},
    ]
)
families = [
    catalogue.config(name) or {}
    for name in (
        "openai/gpt-oss-20b",
        "zai-org/GLM-5.2",
        "deepseek-ai/DeepSeek-V4-Pro",
        "MiniMaxAI/MiniMax-M3",
        "Qwen/Qwen3.5-397B-A17B",
        "moonshotai/Kimi-K3",
        "XiaomiMiMo/MiMo-V2-Flash",
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
    )
]


@settings(max_examples=300, derandomize=True)
@given(st.sampled_from(families), st.data())
def test_a_changed_config_is_read_or_refused_and_all_its_sizes_are_finite(
    config: dict[str, Any], data: st.DataObject
) -> None:
    names = st.sampled_from([*config, "layer_types", "moe_layer_freq", "quantization_config", "mlp_layer_types"])
    changes = data.draw(st.dictionaries(names, awkward, min_size=1, max_size=3))
    try:
        model = spec(config, **changes)
    except ModelConfigError:
        return
    assert model.parameters >= model.active_parameters > 0
    assert model.weight_bytes > 0
    assert 0 <= model.kv_bytes(1000, 1) <= model.kv_bytes(1001, 1) <= model.kv_bytes(1001, 2)
    assert 0 <= model.attention_flops(1, 1000) <= model.attention_flops(2, 1000)
