import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2.sandbox
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from deployments import tiny_models
from deployments.tiny_models import MADE_MODELS, cache_root, hf_config, make_model, model_path
from placement import ModelSpec

TINY = ("tiny-llama", "tiny-moe")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which both tiny models are made."""
    folder = tmp_path_factory.mktemp("cache")
    for name in TINY:
        make_model(name, folder)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def make_elsewhere(name: str, root: Path) -> "subprocess.Popen[str]":
    """Start another process that makes a model and prints its path."""
    code = (
        "import sys, pathlib, deployments.tiny_models as t; print(t.make_model(sys.argv[1], pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, name, str(root)]
    return subprocess.Popen(command, cwd=Path(tiny_models.__file__).parents[1], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", TINY)
def test_two_makes_in_two_processes_give_equal_bytes(name: str, root: Path, tmp_path: Path) -> None:
    assert make_elsewhere(name, tmp_path).wait() == 0
    assert content(model_path(name, tmp_path)) == content(model_path(name, root))


def test_weights_are_the_same_as_on_every_other_machine(root: Path) -> None:
    """A change of these digests changes every output that somebody has written down: raise RECIPE_VERSION with it."""
    digests = {name: content(model_path(name, root))["model.safetensors"][:16] for name in TINY}
    assert digests == {"tiny-llama": "4094cb2239a535d5", "tiny-moe": "67932af5eb5dd2e3"}


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_small_and_world_readable(name: str, root: Path) -> None:
    folder = model_path(name, root)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000_000
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", MADE_MODELS)
def test_planner_reads_the_config_and_counts_the_parameters(name: str) -> None:
    spec = ModelSpec.from_hf_config(hf_config(name), name=name)
    assert spec.parameters == sum(int(np.prod(shape)) for _, shape in tiny_models.iter_weight_shapes(name))
    assert spec.bytes_per_weight == 4
    assert spec.max_position_tokens == 2048


@pytest.mark.parametrize("name", TINY)
def test_files_hold_what_the_planner_counted(name: str, root: Path) -> None:
    folder = model_path(name, root)
    assert json.loads((folder / "config.json").read_text()) == hf_config(name)
    with safe_open(folder / "model.safetensors", "np") as weights:
        sizes = [weights.get_tensor(tensor).size for tensor in weights.keys()]  # noqa: SIM118  (not a dict)
    assert sum(sizes) == ModelSpec.from_hf_config(hf_config(name), name=name).parameters


def test_bench_model_has_the_size_of_the_published_measurements() -> None:
    assert ModelSpec.from_hf_config(hf_config("bench-100m"), name="bench").parameters == 98_583_552


@pytest.mark.parametrize(
    "text",
    [
        "The harbour master wakes before the ferries do.",
        "Zażółć gęślą jaźń — 海の上に島があります。 🏝️👩‍🔬 \u200bمرحبا",  # noqa: RUF001  (Arabic, not a Latin l)
        "never seen: 𒀀𒁀 ꙮ ᚠᛇᚻ\t\r\n\n  x",
        "",
    ],
)
def test_tokenizer_gives_back_any_text(text: str, root: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_path("tiny-llama", root) / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert all(token < tokenizer.get_vocab_size() == 2048 for token in encoded.ids)


def test_special_tokens_are_single_tokens_and_never_the_likeliest(root: Path) -> None:
    folder = model_path("tiny-llama", root)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(token).ids for token in tiny_models.SPECIAL_TOKENS]
    assert ids == [[0], [1], [2]]
    with safe_open(folder / "model.safetensors", "np") as weights:
        assert not weights.get_tensor("lm_head.weight")[:3].any()


def render(root: Path, **conversation: Any) -> str:
    settings = json.loads((model_path("tiny-llama", root) / "tokenizer_config.json").read_text())
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps  # as transformers does: jinja's own sorts keys and escapes for HTML
    return environment.from_string(settings["chat_template"]).render(**conversation)


def test_chat_template_of_a_plain_conversation(root: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    assert render(root, messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_template_of_a_conversation_with_tools(root: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lisbon"}}}
    as_text = {"function": {"name": "weather", "arguments": '{"city": "Porto"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call, as_text]},
        {"role": "tool", "content": "sun"},
        {"role": "tool", "content": "rain"},
    ]
    text = render(root, messages=messages, tools=[{"type": "function", "function": {"name": "weather"}}])
    assert '<tools>\n{"type": "function", "function": {"name": "weather"}}\n</tools>' in text
    assert (
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Lisbon"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Porto"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
    ) in text


def test_processes_making_the_same_model_at_once_do_not_disturb_each_other(root: Path, tmp_path: Path) -> None:
    makers = [make_elsewhere("tiny-moe", tmp_path) for _ in range(4)]
    outputs = {maker.communicate()[0].strip() for maker in makers}
    path = model_path("tiny-moe", tmp_path)
    assert outputs == {str(path)}
    assert list(path.parent.iterdir()) == [path]  # no drafts are left behind
    assert content(path) == content(model_path("tiny-moe", root))


def test_a_made_model_is_not_made_again(root: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in model_path("tiny-llama", root).iterdir()}
    assert make_model("tiny-llama", root) == model_path("tiny-llama", root)
    assert {file: file.stat().st_mtime_ns for file in model_path("tiny-llama", root).iterdir()} == before


def test_another_recipe_is_another_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_path("tiny-llama", root)
    monkeypatch.setattr(tiny_models, "RECIPE_VERSION", -1)
    assert model_path("tiny-llama", root) != before
    assert model_path("tiny-llama", root).name.startswith("tiny-llama-")


def test_a_failed_make_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_models, "VOCAB_SIZE", 100_000)
    with pytest.raises(ValueError, match=r"corpus\.txt is too short"):
        make_model("tiny-llama", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(FileExistsError):
        make_model("tiny-llama", tmp_path)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ARCHIPELAGO_CACHE": "/srv/cache", "XDG_CACHE_HOME": "/x"}, "/srv/cache"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/home/ann"}, "/x/archipelago"),
        ({"HOME": "/home/ann"}, "/home/ann/.cache/archipelago"),
        ({"ARCHIPELAGO_CACHE": "", "HOME": "/home/ann"}, "/home/ann/.cache/archipelago"),
    ],
)
def test_cache_root(environ: dict[str, str], expected: str) -> None:
    assert cache_root(environ) == Path(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_them_and_greedy_output_is_varied(name: str, root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_path(name, root)
    tokenizer = AutoTokenizer.from_pretrained(path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values())
    for prompt in ("The harbour", "def fibonacci(", "море 🌊"):
        prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model.generate(prompt_ids, max_new_tokens=64, do_sample=False)
        generated = output[0, prompt_ids.shape[1] :].tolist()
        assert len(generated) == 64
        assert len(set(generated)) >= 48
