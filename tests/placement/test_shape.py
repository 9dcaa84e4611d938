from typing import Any

import pytest
from placement_builders import DEEPSEEK_V3, LLAMA_8B, MIXTRAL_8X7B, QWEN3_30B_A3B

from placement import ModelSpec, Shape, ShapeError, misfits


@pytest.mark.parametrize(
    ("text", "shape", "canonical"),
    [
        pytest.param("tp1", Shape(), "tp1", id="single"),
        pytest.param("tp2pp2", Shape(tp=2, pp=2), "tp2pp2", id="both"),
        pytest.param("pp2tp2", Shape(tp=2, pp=2), "tp2pp2", id="order-is-free"),
        pytest.param("dp2tp1", Shape(dp=2), "dp2", id="ones-left-out"),
        pytest.param("tp2ep4dp2", Shape(tp=2, ep=4, dp=2), "tp2ep4dp2", id="experts"),
        pytest.param("tp16", Shape(tp=16), "tp16", id="two-digits"),
    ],
)
def test_parse(text: str, shape: Shape, canonical: str) -> None:
    assert Shape.parse(text) == shape
    assert str(shape) == canonical


@pytest.mark.parametrize(
    "text",
    ["", "2", "tp", "tp0", "tp-1", "tp02", "TP2", "tp2 pp2", "tp2tp2", "tp2pp2tp2", "tp2xp2", "tp2x", "xtp2", "tp2\n"],
)
def test_parse_refuses_and_says_what_is_accepted(text: str) -> None:
    with pytest.raises(ShapeError, match="parts tp, pp, ep and dp") as error:
        Shape.parse(text)
    assert repr(text) in str(error.value)


def test_degrees_are_at_least_one() -> None:
    with pytest.raises(ShapeError, match="pp is 0; it must be at least 1"):
        Shape(pp=0)


def test_experts_add_no_gpus() -> None:
    assert Shape(tp=2, pp=3, ep=8, dp=4).gpus == 24


@pytest.mark.parametrize(
    ("config", "shape", "parts"),
    [
        pytest.param(LLAMA_8B, "tp8", [], id="fits"),
        pytest.param(LLAMA_8B, "tp16", [], id="tp-a-multiple-of-kv-heads"),
        pytest.param(LLAMA_8B, "tp2pp3", [], id="uneven-stages"),
        pytest.param(
            LLAMA_8B,
            "tp3",
            [
                "tp3 does not divide the 32 attention heads",
                "tp3 neither divides the 8 key-value heads",
                "size 14336",
            ],
            id="tp3",
        ),
        pytest.param(LLAMA_8B | {"num_attention_heads": 12, "num_key_value_heads": 4}, "tp6", ["4 key-"], id="kv"),
        pytest.param(LLAMA_8B | {"intermediate_size": 14337}, "tp2", ["intermediate size 14337"], id="mlp"),
        pytest.param(LLAMA_8B, "pp33", ["pp33 is more stages than the 32 layers"], id="too-many-stages"),
        pytest.param(LLAMA_8B, "tp2ep2", ["ep2 needs a mixture of experts"], id="ep-on-dense"),
        pytest.param(LLAMA_8B, "dp2", ["use 2 replicas"], id="dp-on-dense"),
        pytest.param(MIXTRAL_8X7B, "tp2ep2", [], id="ep-is-tp"),
        pytest.param(MIXTRAL_8X7B, "tp2ep4dp2", [], id="ep-is-tp-times-dp"),
        pytest.param(MIXTRAL_8X7B, "dp2", [], id="moe-dp"),
        pytest.param(MIXTRAL_8X7B, "tp4ep2", ["ep is 1 or 4"], id="ep-is-neither"),
        pytest.param(MIXTRAL_8X7B, "ep2", ["ep is 1 (tp*dp)"], id="ep-on-one-gpu"),
        pytest.param(MIXTRAL_8X7B, "tp16ep16", ["ep16 does not divide the 8 experts"], id="more-ranks-than-experts"),
        pytest.param(QWEN3_30B_A3B, "tp4dp256", ["does not divide the expert size 768", "ep1024"], id="slices"),
        pytest.param(QWEN3_30B_A3B | {"intermediate_size": 7}, "tp2", [], id="unused-dense-size-is-not-checked"),
        pytest.param(DEEPSEEK_V3, "tp16", [], id="mla-has-no-kv-heads-to-divide"),
        pytest.param(DEEPSEEK_V3 | {"moe_intermediate_size": 2049}, "tp2ep2", ["shared expert size 2049"], id="shared"),
    ],
)
def test_misfits(config: dict[str, Any], shape: str, parts: list[str]) -> None:
    found = " ".join(misfits(Shape.parse(shape), ModelSpec.from_hf_config(config, name="m")))
    assert all(part in found for part in parts)
    assert bool(found) == bool(parts)


def test_each_misfit_is_one_sentence() -> None:
    sentences = misfits(Shape(tp=3, pp=99, ep=2, dp=2), ModelSpec.from_hf_config(LLAMA_8B, name="m"))
    assert len(sentences) == 6
    assert all(sentence.endswith(".") for sentence in sentences)
