import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from planner_builders import LLAMA_70B

from placement.given import HubError, InputError, cluster, model, named, read_csv, read_json, slo, workload
from placement.models import catalogue
from placement.models.model import ModelConfigError
from placement.quantities import QuantityError
from placement.scaling.scale import ScalingError
from placement.workload import WorkloadError

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}
NVFP4 = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}


def nobody(name: str) -> None:
    """Finds no model, but tells a test that it was asked."""


def asked(**changes: Any) -> argparse.Namespace:
    usual = {"input": "1024", "output": "256", "rate": None, "concurrency": None, "spread": 0.0, "prefix_hits": "0%"}
    return argparse.Namespace(**usual | {"ttft": None, "tpot": None, "percentile": "p90"} | changes)


def saved(folder: Path, content: Mapping[str, Any], name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_is_a_file_a_directory_or_a_name(tmp_path: Path) -> None:
    file = saved(tmp_path, SMALL)
    assert model(str(file), None, nobody).hidden_size == 64
    assert model(str(tmp_path), None, nobody).layers == 2
    assert model(LLAMA_70B, None, nobody).layers == 80
    assert model("acme/small", None, lambda name: SMALL if name == "acme/small" else None).heads == 4


def test_a_known_model_needs_no_search() -> None:
    def search(name: str) -> None:
        pytest.fail(f"asked for {name}")

    assert model(catalogue.names()[0], None, search).parameters > 0


def test_a_quantisation_beside_the_config_counts(tmp_path: Path) -> None:
    saved(tmp_path, SMALL)
    full = model(str(tmp_path), None, nobody).weight_bytes
    saved(tmp_path, NVFP4, "hf_quant_config.json")
    assert model(str(tmp_path), None, nobody).weight_bytes < full
    assert model(str(tmp_path / "config.json"), None, nobody).weight_bytes < full


def test_a_precision_changes_the_weights() -> None:
    full, small = (model(LLAMA_70B, precision, nobody).weight_bytes for precision in (None, "fp8"))
    assert 0.45 * full < small < 0.6 * full


@pytest.mark.parametrize("name", ["acme/unknown", "", "/nowhere/config.json", "x" * 5000, "a b\nc", ".."])
def test_a_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(InputError) as caught:
        model(name, None, nobody)
    assert str(caught.value).startswith("model is ")
    assert str(caught.value).endswith("Give the path of its config.json.")
    assert len(str(caught.value).splitlines()) == 1


def test_a_directory_without_a_config_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        model(str(tmp_path), None, nobody)
    assert str(caught.value) == (
        f"model is {str(tmp_path)!r}; it is a directory without a config.json. Give the path of its config.json."
    )


def test_a_directory_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(InputError, match=r"The name of a file ends in \.yaml, \.yml, \.json\.$"):
        cluster(tmp_path.name)


def test_why_the_hub_gave_nothing_is_told() -> None:
    def away(name: str) -> None:
        raise HubError("it is away")

    with pytest.raises(InputError, match=r"and the hub did not give it \(it is away\)\. Give the path"):
        model("acme/unknown", None, away)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"{{", InputError, "cannot be read as JSON: Expecting property name"),
        (b"\xff\xfe", InputError, "cannot be read as JSON"),
        (b"[1]", InputError, "holds list, not a JSON object."),
        (b"{}", ModelConfigError, "the config needs num_hidden_layers"),
    ],
)
def test_a_file_that_is_no_config(content: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        model(str(tmp_path), None, nobody)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_a_field_that_is_missing_is_named(field: str, tmp_path: Path) -> None:
    saved(tmp_path, {name: value for name, value in SMALL.items() if name != field})
    with pytest.raises(ModelConfigError, match=field):
        model(str(tmp_path), None, nobody)


# --- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.yaml", "c.yml", "c.json"])
def test_a_cluster_is_a_preset_or_a_file(name: str, tmp_path: Path) -> None:
    description = {"gpu": "h100_sxm", "gpus_per_machine": 8, "machines": 2}
    assert cluster(str(saved(tmp_path, description, name))).gpus == 16
    assert cluster("2x dgx-h100").gpus == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: }", "line 2, column 2: "),
        ("gpu: h100_sxm\ngpu: a100_sxm", r"line 2, column 1: 'gpu' is given twice\."),
        ("", "cluster: missing; give a preset's name or a mapping"),
        ("- 1", "cluster: "),
        ("gpus: 8", "gpus: unknown name"),
    ],
)
def test_a_file_that_is_no_cluster(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=rf"^models\[1\]\.cluster: \S+c\.yaml: {message}") as caught:
        cluster(str(tmp_path / "c.yaml"), field="models[1].cluster")
    assert len(str(caught.value).splitlines()) == 1


def test_a_cluster_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"--cluster: /nowhere/c\.yaml cannot be read: .*No such file"):
        cluster("/nowhere/c.yaml")


# --- workloads and SLOs ----------------------------------------------------------------------------------------------


def test_quantities_as_people_write_them() -> None:
    found = workload(asked(input="8k", output="1Ki", rate="300/min", prefix_hits="25%"))
    assert (found.input_tokens.mean_tokens, found.output_tokens.mean_tokens) == (8000, 1024)
    assert found.requests_per_s == pytest.approx(5)
    assert found.computed_tokens == pytest.approx(6000)
    wanted = slo(asked(ttft="0.5s", tpot="30ms", percentile="p99"))
    assert (wanted.ttft_s, wanted.tpot_s, wanted.percentile) == (0.5, 0.03, 0.99)
    assert [slo(asked(percentile=text)).percentile for text in ("P95", "95", "95%", "99.9")] == [
        0.95,
        0.95,
        0.95,
        0.999,
    ]
    assert (slo(asked()).ttft_s, slo(asked()).tpot_s) == (None, None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": "0"}, QuantityError, "--input: '0' is not accepted"),
        ({"output": "1.5"}, QuantityError, "--output: '1.5' is not a whole number of tokens"),
        ({"input": "9G"}, WorkloadError, "--input is 9e\\+09"),
        ({"rate": "-5/s"}, QuantityError, "--rate: '-5/s' is not accepted; give a number with /s, /min or /h"),
        ({"rate": ""}, QuantityError, "--rate: '' is not a rate"),
        ({"rate": "5/s", "concurrency": 4.0}, WorkloadError, "--rate and --concurrency are both given"),
        ({"rate": "1e300/s"}, WorkloadError, "--rate is 1e\\+300; it must be from 1e-09"),
        ({"output": "9G"}, WorkloadError, "--output is 9e\\+09"),
        ({"spread": 11.0}, WorkloadError, "--spread is 11; it must be from 0 to 10"),
        ({"concurrency": float("nan")}, WorkloadError, "--concurrency is nan; it must be from 1"),
        ({"concurrency": 0.0}, WorkloadError, "--concurrency is 0; it must be from 1"),
        ({"prefix_hits": "140%"}, QuantityError, "--prefix-hits: '140%' is more than the whole"),
        ({"ttft": "500 parsecs"}, QuantityError, "--ttft: '500 parsecs' is not a time; give a number with us, ms"),
        ({"ttft": ""}, QuantityError, "--ttft: '' is not a time"),
        ({"ttft": "1"}, QuantityError, "--ttft: '1' has no unit"),  # a second, or a millisecond?
        ({"tpot": "1ns"}, WorkloadError, "--tpot, in seconds, is 1e-09; it must be from 1e-06"),
        ({"tpot": "0ms"}, QuantityError, "--tpot: '0ms' is not accepted"),
        ({"percentile": "p200"}, QuantityError, "--percentile: 'p200' is not a percentile; give p50 to"),
        ({"percentile": "p10"}, WorkloadError, "--percentile is 0.1; it must be from 0.5 to 0.999"),
        ({"percentile": "median"}, QuantityError, "--percentile: 'median' is not a percentile; give p50 to"),
    ],
)
def test_what_nobody_can_want(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    def read() -> None:
        workload(asked(**changes))
        slo(asked(**changes))

    with pytest.raises(error, match=message):
        read()


def test_only_the_fields_of_an_error_are_called_by_their_options() -> None:
    message = r"^--running and max_gpus do not suit one that is running\.$"
    with pytest.raises(ScalingError, match=message), named({"running": "--running"}):
        raise ScalingError("do not suit one that is running.", "running", "max_gpus")


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/nowhere/rows\.csv cannot be read as CSV: .*No such file"):
        read_csv(Path("/nowhere/rows.csv"))
    with pytest.raises(InputError, match=r"cannot be read as JSON: .*Is a directory"):
        read_json(tmp_path)
    (tmp_path / "rows.csv").write_bytes(b"id\n\xff\n")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_csv(tmp_path / "rows.csv")


def test_rows_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('id,isl\na,"1,024"\nb\n')
    assert read_csv(tmp_path / "rows.csv") == [{"id": "a", "isl": "1,024"}, {"id": "b", "isl": None}]
