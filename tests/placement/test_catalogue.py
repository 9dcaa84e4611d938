import json
import re

import pytest
from measured_data import measured
from planner_builders import model as known

from placement.models import catalogue


@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_is_a_model_of_the_size_in_its_name(name: str) -> None:
    """Within 12 % from 5B on: names round, and some leave out embeddings. The next test has exact figures."""
    model = known(name)
    assert model.notes == ()
    billions = re.search(r"-(\d+(?:\.\d+)?)b\b", name.lower())
    if billions and not re.search("vl-|8x|e-instruct|-[1-4]b", name.lower()):
        assert model.parameters == pytest.approx(float(billions[1]) * 1e9, rel=0.12)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        pytest.param("meta-llama/Llama-3.1-405B", 405.9, None, id="dense"),
        pytest.param("mistralai/Mistral-Large-2407", 123, None, id="mistral-large-2"),
        pytest.param("google/palm-540b", 540.35, None, id="one-kv-head"),
        pytest.param("tiiuae/falcon-180B", 179.5, None, id="no-gate-in-the-mlp"),
        pytest.param("facebook/opt-175b", 175, None, id="as-gpt-3"),
        pytest.param("google/gemma-3-27b-it", 27.0, None, id="windows"),
        pytest.param("google/gemma-4-31B", 30.7, None, id="other-heads-in-windows"),
        pytest.param("nvidia/Llama-3_3-Nemotron-Super-49B-v1", 49.9, None, id="layers-without-attention"),
        pytest.param("nvidia/Nemotron-H-56B-Base-8K", 56, None, id="mamba"),
        pytest.param("Qwen/Qwen3.5-27B", 27, None, id="gated-delta-net"),
        pytest.param("mistralai/Mixtral-8x22B-v0.1", 141, 39, id="experts"),
        pytest.param("openai/gpt-oss-20b", 20.9, 3.61, id="gpt-oss-20b"),
        pytest.param("openai/gpt-oss-120b", 116.8, 5.13, id="gpt-oss-120b"),
        pytest.param("Qwen/Qwen3-235B-A22B", 235, 22, id="qwen3"),
        pytest.param("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480, 35, id="qwen3-coder"),
        pytest.param("Qwen/Qwen3.5-397B-A17B", 397, 17, id="delta-net-with-experts"),
        pytest.param("MiniMaxAI/MiniMax-M2.5", 230, 10, id="minimax-m2.5"),
        pytest.param("MiniMaxAI/MiniMax-Text-01", 456, 45.9, id="lightning-attention"),
        pytest.param("deepseek-ai/DeepSeek-V2", 236, 21, id="mla"),
        pytest.param("deepseek-ai/DeepSeek-V3", 671, 37, id="leading-dense-layers"),
        pytest.param("deepseek-ai/DeepSeek-V4-Flash", 284, 13, id="compressed-cache"),
        pytest.param("deepseek-ai/DeepSeek-V4-Pro", 1600, 49, id="compressed-cache-pro"),
        pytest.param("zai-org/GLM-4.5", 355, 32, id="glm-4.5"),
        pytest.param("zai-org/GLM-4.5-Air", 106, 12, id="glm-4.5-air"),
        pytest.param("zai-org/GLM-5", 744, 40, id="sparse-mla"),
        pytest.param("moonshotai/Kimi-K2-Instruct", 1026, 32, id="kimi-k2"),
        pytest.param("moonshotai/Kimi-Linear-48B-A3B-Instruct", 49.1, 3, id="kda-with-mla"),
        pytest.param("meta-llama/Llama-4-Scout-17B-16E-Instruct", 109, 17, id="chunks"),
        pytest.param("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 400, 17, id="every-second-layer"),
        pytest.param("XiaomiMiMo/MiMo-V2-Flash", 309, 15, id="more-heads-in-windows"),
        pytest.param("google/gemma-4-26B-A4B", 25.2, 3.8, id="dense-mlp-beside-experts"),
        pytest.param("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, 3.2, id="mamba-with-experts"),
        pytest.param("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 120.6, 12.0, id="latent-experts"),
        pytest.param("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", 550, 55, id="latent-experts-ultra"),
    ],
)
def test_total_and_active_billions_match_the_model_card(name: str, total: float, active: float | None) -> None:
    """Cards differ in whether embedding and head are active: one of the three counts must be within 3 %, or 0.15B."""
    model = known(name)
    assert model.parameters == pytest.approx(total * 1e9, rel=0.03)
    if active:
        counts = [model.active_parameters + tables * model.head_parameters for tables in (0, 1, 2)]
        assert min(abs(count / 1e9 - active) for count in counts) < max(0.03 * active, 0.15)
    else:
        assert model.active_parameters + (2 - model.tied_embeddings) * model.head_parameters == pytest.approx(
            model.parameters, rel=1e-6
        )


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        pytest.param("META-LLAMA/llama-3.1-70b", "meta-llama/Llama-3.1-70B", id="case"),
        pytest.param("meta-llama/Meta-Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-70B", id="older-name"),
        pytest.param("Llama-3.1-70B", "meta-llama/Llama-3.1-70B", id="no-owner"),
        pytest.param("meta-llama/Llama-3.1-405B-Instruct", "meta-llama/Llama-3.1-405B", id="instruct"),
        pytest.param("zhipuai/GLM-5", "zai-org/GLM-5", id="another-owner"),
        pytest.param("deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-V3", id="dated"),
        pytest.param("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B", id="dated-instruct"),
        pytest.param("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1", id="version"),
        pytest.param("mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-v0.1", id="window-of-v0.1"),
        pytest.param("moonshotai/Kimi-K2-Instruct-0905", "moonshotai/Kimi-K2-Instruct", id="fp8-not-thinking"),
        pytest.param("nvidia/DeepSeek-R1-0528-NVFP4", "nvidia/DeepSeek-R1-NVFP4", id="published-quantisation"),
    ],
)
def test_other_ways_to_write_a_name(asked: str, same: str) -> None:
    assert catalogue.config(asked) == catalogue.config(same)


@pytest.mark.parametrize(
    ("name", "bytes_per_weight", "math", "attention_math"),
    [
        pytest.param("nvidia/Llama-3.1-8B-Instruct-FP8", 1, "fp8", "fp8", id="fp8"),
        pytest.param("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8-dynamic", 1, "fp8", "fp8", id="words-after-it"),
        pytest.param("nvidia/Llama-3.3-70B-Instruct-NVFP4", 0.5625, "fp4", "fp4", id="nvfp4"),
        pytest.param("someone/DeepSeek-V3-0324-NVFP4", 0.5625, "fp4", "bf16", id="mla-keeps-attention"),
        pytest.param("Qwen/Qwen2.5-72B-Instruct-AWQ", 0.5195, "bf16", "bf16", id="awq"),
        pytest.param("unsloth/gpt-oss-120b-BF16", 2, "bf16", "bf16", id="unpacked"),
        pytest.param("openai/gpt-oss-120b", 0.53125, "mxfp4", "bf16", id="as-published"),
        pytest.param("moonshotai/Kimi-K2.5", 0.5625, "bf16", "bf16", id="int4-experts"),
        pytest.param("deepseek-ai/DeepSeek-V4-Pro", 0.53125, "mxfp4", "fp8", id="two-formats"),
        pytest.param("nvidia/DeepSeek-V4-Pro-NVFP4", 0.5625, "fp4", "fp8", id="two-formats-listed"),
    ],
)
def test_the_precision_in_a_name(name: str, bytes_per_weight: float, math: str, attention_math: str) -> None:
    model = known(name)
    assert model.bytes_per_weight == pytest.approx(bytes_per_weight, rel=1e-3)
    assert (model.mlp_math, model.attention_math) == (math, attention_math)


@pytest.mark.parametrize("name", ["", "/", "nobody/knows-this-1b", "llama", "fp8", "Llama-3.1-70B-Lite", "../config"])
def test_an_unknown_model_is_none(name: str) -> None:
    assert catalogue.config(name) is None


def test_what_is_returned_can_be_changed_without_harm() -> None:
    first = dict(catalogue.config("openai/gpt-oss-20b") or {})
    first["hidden_size"] = 1
    assert known("openai/gpt-oss-20b").hidden_size == 2880


def test_one_line_for_each_model_and_no_model_twice() -> None:
    text = (catalogue.resources.files("placement.models") / "catalogue.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(catalogue.names()) + 2
    keys = [pair[0] for pair in json.loads(text, object_pairs_hook=list)]
    assert len({key.lower() for key in keys}) == len(keys)
    assert keys == sorted(keys, key=str.lower)


def test_every_measured_model_is_here() -> None:
    rows = measured("serving_silicon_dev.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("model_path")
    assert [name for name in {row.split(",")[column] for row in rows[1:]} if catalogue.config(name) is None] == []
