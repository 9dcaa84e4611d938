import json
from pathlib import Path
from typing import Any

import pytest
from check_builders import checked_model, problems

from deployments.architectures import Architectures, read_architectures
from deployments.engine_args import find_vllm
from deployments.tiny_models import MADE_MODELS, hf_config


@pytest.fixture(scope="module")
def known() -> Architectures:
    """Those of the installed vLLM."""
    vllm = find_vllm()
    assert vllm is not None
    return read_architectures(vllm)


@pytest.mark.parametrize(
    "architecture",
    [
        "BertModel",
        "XLMRobertaModel",
        "ModernBertModel",
        "LlamaModel",  # without the layer that chooses tokens
        "BertForMaskedLM",
        "HF_ColBERT",
        "Qwen2ForRewardModel",
        "Qwen2ForProcessRewardModel",
        "JinaForRanking",
        "BertForTokenClassification",
        "GPT2ForSequenceClassification",
        "Qwen3ForSequenceClassification",  # in no table of vLLM: by its ending
        "NovelModel",
        "NovelForAudioClassification",
    ],
)
def test_what_vllm_pools_with(architecture: str, known: Architectures) -> None:
    assert known.first_pooling([architecture]) == architecture


@pytest.mark.parametrize(
    "architecture",
    [
        *(name for made in MADE_MODELS for name in hf_config(made)["architectures"]),
        "DeepseekV3ForCausalLM",
        "Qwen2ForCausalLM",  # in a table of embedding models too
        "Qwen2VLForConditionalGeneration",
        "Phi3VForCausalLM",
        "InternVLChatModel",
        "NVLM_D",
        "MiDashengLMModel",
        "Qwen2_5OmniModel",  # ends as embedding models do
        "MedusaModel",  # drafts for another model
        "NovelForCausalLM",
        "Novel",
    ],
)
def test_what_vllm_generates_with(architecture: str, known: Architectures) -> None:
    assert known.first_pooling([architecture]) is None


def test_the_first_architecture_that_vllm_can_tell_decides(known: Architectures) -> None:
    assert known.first_pooling([]) is None
    assert known.first_pooling(["Novel", "BertModel"]) == "BertModel"
    assert known.first_pooling(["NovelForCausalLM", "BertModel"]) is None


def saved(folder: Path, **fields: Any) -> str:
    (folder / "config.json").write_text(json.dumps(hf_config("tiny-llama") | fields))
    return str(folder)


def refusal(source: str, why: str) -> str:
    return (
        f"models[0].source: {source!r} is not accepted; vLLM takes it for embedding, ranking or classifying by its "
        f"{why}, and a fleet generates text, and nothing else; give a model that generates, or engine.runner generate "
        "where it can"
    )


def test_a_model_that_does_not_generate_is_refused_for_that_alone(tmp_path: Path) -> None:
    source = saved(tmp_path, architectures=["LlamaForSequenceClassification"], num_hidden_layers=1)
    assert problems(source, shape="pp2") == [refusal(source, "LlamaForSequenceClassification")]


def test_a_model_of_sentence_transformers_embeds_whatever_its_architecture_could_do(tmp_path: Path) -> None:
    source = saved(tmp_path)
    modules = [{"idx": 0, "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert checked_model(source, shape="tp1").spec is not None
    modules.append({"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert problems(source) == [refusal(source, "modules.json")]


@pytest.mark.parametrize("modules", ["", "{}", "[3]", '[{"type": 3}]'])
def test_a_modules_json_that_says_nothing(modules: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(modules)
    assert not checked_model(saved(tmp_path), shape="tp1").source.embeds


def test_who_says_that_it_generates_is_believed(tmp_path: Path) -> None:
    source = saved(tmp_path, architectures=["NovelModel"])
    assert checked_model(source, shape="tp1", engine={"runner": "generate"}).spec is not None
    architectures = {"architectures": ["NovelForCausalLM"]}
    assert checked_model(source, shape="tp1", engine={"hf_overrides": architectures}).spec is not None


@pytest.mark.parametrize("architectures", [None, "BertModel", [3]])
def test_architectures_that_are_none_are_left_to_vllm(architectures: object, tmp_path: Path) -> None:
    assert checked_model(saved(tmp_path, architectures=architectures), shape="tp1").spec is not None
