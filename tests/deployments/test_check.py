import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from check_builders import ENVIRON, checked, checked_model, problems
from hypothesis import given
from hypothesis import strategies as st

from deployments import config as config_module
from deployments import engine_args
from deployments.check import check, port_is_free
from deployments.config import load_config, parse_config
from deployments.config_messages import ConfigError
from deployments.tiny_models import hf_config

SHIPPED = sorted((Path(config_module.__file__).parent / "configs").glob("*.yaml"))


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """A directory with a model's config.json."""
    (tmp_path / "config.json").write_text(json.dumps(hf_config("tiny-moe")))
    return tmp_path


@pytest.fixture
def hub_cache(tmp_path: Path) -> dict[str, str]:
    """An environment whose Hugging Face cache holds the config of acme/moe."""
    snapshot = tmp_path / "hub" / "models--acme--moe" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(hf_config("tiny-moe")))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    return {**ENVIRON, "HF_HOME": str(tmp_path)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_have_no_mistakes(path: Path) -> None:
    result = check(load_config(path), environ=ENVIRON, port_is_free=lambda host, port: True)
    assert result.config == load_config(path)


def test_what_is_learnt_of_a_made_model() -> None:
    assert checked(shape="tp2pp2").notes == ()
    result = checked_model(shape="tp2pp2")
    assert result.source.made == "tiny-llama"
    assert result.source.location.startswith("/home/nobody/.cache/archipelago/models/tiny-llama-")
    assert result.spec is not None
    assert result.spec.layers == 4
    assert str(result.shape) == "tp2pp2"
    assert result.layouts is not None
    assert [(seat.island, seat.node, seat.slot) for seat in result.layouts[0].seats] == [
        ("island-0", "node-0", 0),
        ("island-0", "node-0", 1),
        ("island-1", "node-1", 0),
        ("island-1", "node-1", 1),
    ]


def test_replicas_do_not_share_gpus() -> None:
    result = checked_model(shape="tp2", replicas=2)
    assert result.layouts is not None
    assert [sorted(layout.places) for layout in result.layouts] == [
        [("node-0", 0), ("node-0", 1)],
        [("node-1", 0), ("node-1", 1)],
    ]


def test_auto_says_why() -> None:
    result = checked("bench-100m", cluster={"kind": "simulated", "gpu_memory_gib": 0.6})
    assert str(result.models[0].shape) == "tp2"
    (note,) = result.notes
    assert note.startswith("models[0].shape: tp2 is the smallest shape that holds bench-100m")


def test_a_directory(saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = checked_model(str(saved_model), shape="tp2ep2")
    assert (result.source.made, result.source.location) == (None, str(saved_model))
    monkeypatch.chdir(saved_model.parent)
    relative = checked_model(f"./{saved_model.name}")
    assert relative.source.location == str(saved_model)  # workers run in another directory


def test_a_directory_without_a_config_and_a_file_are_told_apart(saved_model: Path) -> None:
    file = saved_model / "config.json"
    start = f"models[0].source: {str(file)!r} is not accepted; "
    assert problems(str(file)) == [f"{start}it is a file; give a directory with a config.json"]
    file.unlink()
    (line,) = problems(str(saved_model))
    assert line.endswith(f"{file} cannot be read (No such file or directory); give a directory with a config.json")


def test_a_hub_model_in_the_local_cache(hub_cache: dict[str, str]) -> None:
    result = checked_model("acme/moe", shape="tp2ep2", environ=hub_cache)
    assert result.source.location == "acme/moe"
    assert result.spec is not None
    assert result.spec.experts == 8
    assert problems("acme/moe", shape="ep8tp4", environ=hub_cache) == [
        "models[0].shape: 'ep8tp4' is not accepted; ep8 with tp4 and dp1 is impossible: ep is 1 or 4 (tp*dp) there."
    ]


def test_a_hub_model_that_is_not_cached_is_a_note() -> None:
    result = checked("acme/unknown", shape="tp2")
    (model,) = result.models
    assert (model.spec, str(model.shape)) == (None, "tp2")
    assert model.layouts is not None
    assert result.notes == (
        "models[0].source: acme/unknown is not in the local Hugging Face cache, so it is not checked",
        "memory: the size of acme/unknown is not known",
    )


def test_auto_waits_for_a_hub_model() -> None:
    result = checked("acme/unknown")
    assert (result.models[0].shape, result.models[0].layouts) == (None, None)
    assert result.notes[-1] == "models[0].shape: auto is decided when the model's config is known"


def test_a_ray_cluster_is_placed_later() -> None:
    result = checked(shape="tp2pp2", replicas=100, cluster={"kind": "ray"})
    assert (str(result.models[0].shape), result.models[0].layouts) == ("tp2pp2", None)
    assert result.notes == ("cluster: memory and placement are checked when the GPUs are known",)
    assert checked_model(cluster={"kind": "ray"}).shape is None


def test_a_chat_template_may_be_a_file_or_a_text(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    checked(chat_template=str(file))
    checked(chat_template="{{ messages[0].content }}")


def test_longer_than_the_model_only_when_vllm_is_told_so() -> None:
    checked(engine={"max_model_len": 4096}, environ={**ENVIRON, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})
    checked(engine={"max_model_len": 4096, "hf_overrides": {"max_position_embeddings": 4096}})


def test_dtype_decides_the_memory() -> None:
    small = {"kind": "simulated", "gpu_memory_gib": 0.5}
    checked("bench-100m", shape="tp1", cluster=small, engine={"dtype": "bfloat16"})
    assert len(problems("bench-100m", shape="tp1", cluster=small, engine={"dtype": "float32"})) == 1


def test_what_generates_without_adapters_on_whole_replicas_is_vllms_to_judge() -> None:
    offloading = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    checked(engine={"enable_lora": False, "runner": "generate", "convert": "none", "kv_transfer_config": offloading})
    checked(
        engine={
            "runner": "auto",
            "mm_processor_cache_type": "lru",
            "kv_transfer_config": {
                "kv_connector": "MultiConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {"connectors": [offloading]},
            },
        }
    )


def test_quantisation_by_the_engine_leaves_memory_unchecked() -> None:
    small = {"kind": "simulated", "gpu_memory_gib": 0.3}
    result = checked("bench-100m", shape="tp1", cluster=small, engine={"quantization": "fp8"})
    assert result.notes == ("memory: what models[0].engine.quantization saves is not known",)


def test_without_vllm_the_names_of_arguments_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_args, "find_vllm", lambda: None)
    result = checked(engine={"no_such_argument": 1}, tool_call_parser="whatever")
    assert result.notes[0] == (
        "models[0].engine: vLLM is not installed here, so the names of its arguments are not checked"
    )
    assert problems(engine={"max_num_seqs": 0}) == [
        "models[0].engine.max_num_seqs: 0 is not accepted; give an integer of at least 1"
    ]


def test_a_simulated_gpu_needs_a_size_for_its_kv_cache() -> None:
    config = parse_config("models: [{source: tiny-llama}]")
    with pytest.raises(ConfigError) as caught:
        check(config, environ=ENVIRON, port_is_free=lambda host, port: True)
    assert caught.value.problems == (
        "models[0].engine.kv_cache_memory_bytes: missing; on a simulated cluster give the bytes of KV cache for each "
        "GPU, such as 67108864",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON (Expecting property name"),
        ("[]", "must hold a JSON object"),
        ("{}", "its config.json says: model: the config needs num_hidden_layers or n_layer, 1 or more."),
        (
            json.dumps({**hf_config("tiny-llama"), "num_attention_heads": "4"}),
            "its config.json says: model: num_attention_heads is '4'; it must be a whole number, 0 or more.",
        ),
    ],
)
def test_a_directory_with_a_bad_config(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(content)
    (line,) = problems(str(tmp_path / "model"), shape="tp1")
    assert line.startswith("models[0].source: '")
    assert message in line


def test_all_mistakes_are_reported_at_once() -> None:
    assert problems(source="/nowhere", shape="tp4", tool_call_parser="x", engine={"seed": -1, "host": "h"}, busy=8000)[
        1
    ].startswith("models[0].tool_call_parser: 'x' is not accepted; give one of ")
    fields = [
        line.split(":")[0] for line in problems("/nowhere", shape="tp4", engine={"seed": -1, "port": 1}, busy=8000)
    ]
    assert fields == [
        "endpoint.port",
        "models[0].engine.seed",
        "models[0].engine.port",
        "models[0].source",
        "models[0].shape",
    ]


def test_checking_does_not_import_vllm_or_torch_or_make_the_model(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from deployments.check import *; from deployments.config import *;"
        "check(load_config(Path(sys.argv[1])), environ={'HOME': sys.argv[2]}, port_is_free=lambda h, p: True);"
        "print([name for name in ('vllm', 'torch', 'ray', 'transformers') if name in sys.modules])"
    )
    root = Path(config_module.__file__).parents[1]
    command = [sys.executable, "-c", code, str(root / "deployments" / "configs" / "local.yaml"), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
    assert port_is_free("127.0.0.1", port)
    assert not port_is_free("no such host", port)
    assert not port_is_free("192.0.2.1", port)  # reserved for documentation: no machine has it


def test_names_read_from_the_source_are_those_vllm_has() -> None:
    vllm = engine_args.find_vllm()
    assert vllm is not None
    arguments = engine_args.read_arguments(vllm)
    assert {"max_model_len", "enforce_eager", "kv_cache_memory_bytes", "enable_log_requests"} <= set(arguments)
    assert "hermes" in engine_args.read_parsers(vllm, kind="tool_parsers")
    assert "deepseek_r1" in engine_args.read_parsers(vllm, kind="reasoning")


ENGINES = st.dictionaries(
    st.sampled_from(["max_model_len", "dtype", "kv_cache_dtype", "gpu_memory_utilization", "hf_overrides", "revision"])
    | st.sampled_from(["kv_cache_memory_bytes", "quantization", "trust_remote_code", "cpu_offload_gb", "x"]),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["auto", "float32", "fp8", "", {}, {"hidden_size": 0}, {"num_attention_heads": "x"}, [1]]),
    max_size=4,
)


@given(
    source=st.sampled_from(["tiny-llama", "tiny-moe", "bench-100m", "acme/none", "/nowhere"])
    | st.text(min_size=1, max_size=9),
    shape=st.from_regex(r"((tp|pp|ep|dp)[0-9]{1,2}){0,3}", fullmatch=True) | st.just("auto") | st.text(max_size=5),
    replicas=st.integers(1, 5),
    engine=ENGINES,
    islands=st.integers(1, 4),
    gpu_memory_gib=st.floats(0.001, 4),
)
def test_any_configuration_is_checked_or_a_message(
    source: str, shape: str, replicas: int, engine: dict[str, Any], islands: int, gpu_memory_gib: float
) -> None:
    cluster = {"kind": "simulated", "islands": islands, "gpu_memory_gib": gpu_memory_gib}
    lines: tuple[str, ...] = ()
    try:
        result = checked_model(source, name="m", shape=shape, replicas=replicas, engine=engine, cluster=cluster)
        assert result.layouts is None or len(result.layouts) == replicas
    except ConfigError as error:
        lines = error.problems or ("",)
    assert all(line and "\n" not in line for line in lines)
