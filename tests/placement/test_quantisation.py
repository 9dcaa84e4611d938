from typing import Any

import pytest
from placement_builders import DEEPSEEK_V3, GPT_OSS_120B, LLAMA_8B, LLAMA_70B, MIXTRAL_8X7B, QWEN3_30B_A3B
from planner_builders import model as known

from placement import ModelSpec
from placement.models import catalogue
from placement.models.precision import with_precision

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


def spec(config: dict[str, Any], quantisation: dict[str, Any] | None = None, **changes: object) -> ModelSpec:
    changed = config | changes | ({"quantization_config": quantisation} if quantisation is not None else {})
    return ModelSpec.from_hf_config(changed, name="m")


def group(bits: int, size: int | None, kind: str, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": size, "type": kind}
    groups = {"group_0": {"weights": weights, "input_activations": inputs, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


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
        pytest.param(LLAMA_70B, {"quantization_config": group(4, 128, "int")}, 39.8, id="compressed-tensors-w4a16"),
        pytest.param(LLAMA_70B, {"quantization_config": group(4, 16, "float")}, 42.5, id="nvfp4"),
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
    ("name", "gb"),
    [
        pytest.param("meta-llama/Llama-3.1-405B", 812, id="405b"),
        pytest.param("meta-llama/Llama-3.1-405B-Instruct-FP8", 410, id="405b-fp8"),
        pytest.param("deepseek-ai/DeepSeek-R1", 675, id="deepseek-without-mtp"),
        pytest.param("nvidia/DeepSeek-R1-NVFP4", 395, id="deepseek-nvfp4"),
        pytest.param("Qwen/Qwen3-235B-A22B-FP8", 237, id="qwen3-fp8"),
        pytest.param("moonshotai/Kimi-K2-Instruct", 1030, id="kimi-k2"),
        pytest.param("moonshotai/Kimi-K2.5", 595, id="int4-experts"),
        pytest.param("openai/gpt-oss-20b", 13.8, id="gpt-oss-20b"),
    ],
)
def test_published_checkpoints(name: str, gb: float) -> None:
    assert known(name).weight_bytes == pytest.approx(gb * 1e9, rel=0.02)


@pytest.mark.parametrize(
    ("quantisation", "bytes_per_weight", "math"),
    [
        pytest.param({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1, "fp8", id="fp8-blocks"),
        pytest.param({"quant_algo": "FP8"}, 1, "fp8", id="modelopt-fp8"),
        pytest.param({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}, 0.5625, "fp4", id="hf-quant-config"),
        pytest.param({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, 0.5195, "fp8", id="w4a8"),
        pytest.param({"quant_algo": "W4A16_NVFP4"}, 0.5625, "bf16", id="weight-only-nvfp4"),
        pytest.param(group(8, None, "float", {"num_bits": 8, "type": "float"}), 1, "fp8", id="fp8-dynamic"),
        pytest.param(group(8, None, "int", {"num_bits": 8, "type": "int"}), 1, "int8", id="w8a8"),
        pytest.param(group(8, None, "int"), 1, "bf16", id="w8a16"),
        pytest.param(group(4, 32, "int"), 0.5625, "bf16", id="w4a16-groups-of-32"),
        pytest.param(group(4, 16, "float", {"num_bits": 4, "type": "float"}), 0.5625, "fp4", id="nvfp4"),
        pytest.param(group(4, 32, "float"), 0.53125, "mxfp4", id="mxfp4"),
        pytest.param({"quant_method": "awq", "w_bit": 4, "group_size": 64}, 0.539, "bf16", id="awq-groups-of-64"),
        pytest.param({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5625, "bf16", id="nf4"),
        pytest.param({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1, "int8", id="llm-int8"),
        pytest.param(
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}, "input_tensors": {"dtype": "fp8_e4m3"}},
            },
            1,
            "fp8",
            id="quark-fp8",
        ),
        pytest.param(
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
            0.53125,
            "mxfp4",
            id="quark-mxfp4",
        ),
    ],
)
def test_formats(quantisation: dict[str, Any], bytes_per_weight: float, math: str) -> None:
    model = spec(LLAMA_8B, quantisation)
    assert model.bytes_per_weight == pytest.approx(bytes_per_weight, rel=1e-3)
    assert model.attention_bytes_per_weight == model.bytes_per_weight
    assert (model.mlp_math, model.attention_math) == (math, math)
    assert model.notes == ()


@pytest.mark.parametrize("method", ["gguf", "new", ""])
def test_a_method_it_does_not_know_counts_in_full_and_is_noted(method: str) -> None:
    model = spec(LLAMA_8B, {"quant_method": method, "a": 1})
    assert model.bytes_per_weight == 2
    assert len(model.notes) == 1
    assert "is not known: its weights count in full" in model.notes[0]


@pytest.mark.parametrize(
    ("ignore", "attention", "experts"),
    [
        pytest.param(["model.layers.*.self_attn", "lm_head"], 2, 1, id="glob"),
        pytest.param(["self_attn"], 2, 1, id="part"),
        pytest.param([f"model.layers.{layer}.self_attn*" for layer in range(48)], 2, 1, id="each-layer"),
        pytest.param([f"model.layers.{layer}.self_attn*" for layer in range(24)], 1.5, 1, id="half-the-layers"),
        pytest.param(["re:.*self_attn.*", "re:.*lm_head"], 2, 1, id="regex"),
        pytest.param(["model.layers.0.self_attn.q_norm", "model.layers.0.mlp.gate"], 1, 1, id="norms-and-routers"),
        pytest.param(["gate", "lm_head", "re:.*mlp\\.gate$"], 1, 1, id="gate-is-not-gate-proj"),
        pytest.param(["re:("], 1, 1, id="broken-regex"),
        pytest.param(["model.layers.1*"], 1 + 1 / 48, 1 + 1 / 48, id="layer-1-is-not-layer-10"),
        pytest.param(["mtp.layers.0*"], 1, 1, id="mtp-is-not-layer-0"),
    ],
)
def test_modules_left_out(ignore: list[str], attention: float, experts: float) -> None:
    model = spec(QWEN3_30B_A3B, {"quant_method": "fp8", "ignore": ignore})
    assert model.attention_bytes_per_weight == pytest.approx(attention)
    assert model.bytes_per_weight == pytest.approx(experts)


def test_the_projections_left_out_count_by_their_size() -> None:
    """Llama-8B: queries and output are 16 of the 20 parts of attention."""
    model = spec(LLAMA_8B, {"quant_method": "fp8", "ignore": ["q_proj", "o_proj"]})
    assert model.attention_bytes_per_weight == pytest.approx(2 * 0.8 + 0.2)
    assert (model.attention_math, model.mlp_math) == ("bf16", "fp8")


def test_int4_experts_beside_16_bit_shared_experts_and_dense_layers() -> None:
    kimi = catalogue.config("moonshotai/Kimi-K2.5")
    assert kimi is not None
    ignored = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
    model = spec(dict(kimi), group(4, 32, "int") | {"ignore": ignored})
    assert (model.bytes_per_weight, model.shared_bytes_per_weight, model.dense_bytes_per_weight) == (0.5625, 2, 2)
    assert model == spec(dict(kimi))


def test_a_mixed_checkpoint_names_what_it_quantised() -> None:
    layers = {
        f"model.layers.{layer}.{module}": {"quant_algo": algorithm}
        for layer in range(32)
        for module, algorithm in (("self_attn.q_proj", "FP8"), ("mlp.down_proj", "W4A16_NVFP4"))
    }
    model = spec(LLAMA_8B, {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers})
    assert model.bytes_per_weight == 0.5625
    assert model.attention_bytes_per_weight == pytest.approx(2 - 0.4)  # queries are 8 of 20 parts
    assert (model.mlp_math, model.attention_math) == ("bf16", "bf16")


def test_the_file_beside_the_config_holds_where_the_config_says_nothing() -> None:
    beside = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    assert ModelSpec.from_hf_config(LLAMA_8B, name="m", hf_quant_config=beside).mlp_math == "fp4"
    assert ModelSpec.from_hf_config(DEEPSEEK_V3, name="m", hf_quant_config=beside).mlp_math == "fp8"


@pytest.mark.parametrize(
    ("config", "precision", "gb", "maths"),
    [
        pytest.param(LLAMA_70B, "fp8", 72.7, ("fp8", "fp8"), id="fp8"),
        pytest.param(LLAMA_70B, "fp4", 42.5, ("fp4", "fp4"), id="nvfp4"),
        pytest.param(LLAMA_70B, "int4", 39.8, ("bf16", "bf16"), id="w4a16"),
        pytest.param(DEEPSEEK_V3, "bf16", 1342, ("bf16", "bf16"), id="unpacked"),
        pytest.param(DEEPSEEK_V3, "fp4", 395, ("fp4", "bf16"), id="mla-keeps-attention"),
        pytest.param(QWEN3_30B_A3B, "fp4", 18.1, ("fp4", "fp4"), id="experts-without-mla"),
        pytest.param(GPT_OSS_120B, "fp4", 65.2, ("mxfp4", "bf16"), id="its-own-4-bits"),
        pytest.param(GPT_OSS_120B, "fp8", 118, ("fp8", "fp8"), id="from-4-bits-to-8"),
        pytest.param(MIXTRAL_8X7B, "mxfp4", 27.0, ("mxfp4", "bf16"), id="mxfp4-experts-only"),
    ],
)
def test_served_in_another_precision(config: dict[str, Any], precision: str, gb: float, maths: tuple[str, str]) -> None:
    model = with_precision(spec(config), precision)
    assert model.weight_bytes == pytest.approx(gb * 1e9, rel=0.02)
    assert (model.mlp_math, model.attention_math) == maths
    assert model.parameters == spec(config).parameters


def test_a_linear_mixer_stays_in_16_bits_when_the_rest_has_4() -> None:
    four = {part.kind: part for part in known("Qwen/Qwen3.5-397B-A17B", "fp4").matrices}
    assert (four["linear"].math, four["linear"].bytes_per_weight, four["experts"].math) == ("bf16", 2, "fp4")


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'fp6'; it must be bf16, fp8, int8, fp4"):
        with_precision(spec(LLAMA_8B), "fp6")
