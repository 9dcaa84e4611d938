from typing import Any

import pytest
from placement_builders import DEEPSEEK_V3, GPT_OSS_120B, LLAMA_8B, LLAMA_70B, MIXTRAL_8X7B, QWEN3_30B_A3B

from placement import ModelConfigError, ModelSpec

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


def spec(config: dict[str, Any], **changes: object) -> ModelSpec:
    return ModelSpec.from_hf_config(config | changes, name="m")


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


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


@pytest.mark.parametrize(
    ("config", "changes", "published_gb"),
    [
        pytest.param(LLAMA_70B, {}, 141.1, id="bf16"),
        pytest.param(LLAMA_8B, {"torch_dtype": "float32"}, 32.1, id="float32"),
        pytest.param(LLAMA_8B, {"torch_dtype": None, "dtype": "float16"}, 16.06, id="dtype-by-its-new-name"),
        pytest.param(LLAMA_70B, {"quantization_config": {"quant_method": "fp8"}}, 72.7, id="fp8"),
        pytest.param(LLAMA_8B, {"quantization_config": {"quant_method": "fbgemm_fp8"}}, 9.08, id="fbgemm-fp8"),
        pytest.param(LLAMA_8B, {"quantization_config": AWQ}, 5.73, id="awq-embeddings-stay-16-bit"),
        pytest.param(
            LLAMA_8B,
            {"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": -1}},
            9.08,
            id="gptq-8-bit-per-channel",
        ),
        pytest.param(
            LLAMA_70B,
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "type": "int"}}},
                    "ignore": ["lm_head"],
                }
            },
            39.8,
            id="compressed-tensors-w4a16",
        ),
        pytest.param(
            LLAMA_70B,
            {
                "quantization_config": {
                    "quant_method": "modelopt",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16, "type": "float"}}},
                }
            },
            42.5,
            id="nvfp4",
        ),
        pytest.param(LLAMA_8B, {"quantization_config": {"quant_method": "new"}}, 16.06, id="unknown-counts-in-full"),
        pytest.param(GPT_OSS_120B, {}, 65.2, id="mxfp4-experts-only"),
        pytest.param(DEEPSEEK_V3, {}, 675.0, id="fp8-blocks"),
    ],
)
def test_weight_bytes_match_the_checkpoint(
    config: dict[str, Any], changes: dict[str, Any], published_gb: float
) -> None:
    assert spec(config, **changes).weight_bytes == pytest.approx(published_gb * 1e9, rel=0.02)


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
