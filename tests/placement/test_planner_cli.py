"""The planner's commands as a shell runs them: what they print, what they write, and how they end."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_builders import Ran, no_network, ran, refused, strictly, written
from planner_builders import DEEPSEEK_V3, LLAMA_70B

from deployments.config import parse_config
from deployments.telemetry.fields import SloConfig
from placement.clusters.cluster_reading import read_cluster

__all__ = ["no_network", "ran"]  # fixtures

FOUR_MACHINES = ("--cluster", "4x dgx-h100")
PLAN = ("plan", LLAMA_70B, *FOUR_MACHINES, "--rate", "8/s", "--tpot", "30ms")


# --- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_answers_both_questions_and_says_where_its_numbers_come_from(ran: Ran) -> None:
    code, output, errors = ran(*PLAN)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{LLAMA_70B}: 70.6B parameters, 131 GiB of weights\n")
    assert "SLO: TPOT 30 ms at p90" in output
    assert re.search(r"How to cut it: +\S+ is the smallest that meets the SLO \(\d+ GPUs each, \d+% chance\)\.", output)
    assert re.search(r"What to run: +\d+ x \S+ = \d+ GPUs, \S+ chance\.", output)
    assert "chance: that TPOT will be kept, from how far off such predictions were where it was measured." in output
    assert re.search(r"chances: this model was measured on h100_sxm .* half are within \d+% for TPOT", output)
    assert re.search(r"replica 1: dgx-h100-\d \(dgx-h100-\d\) GPUs \d", output)
    assert "where the numbers come from:" in output
    assert "NVIDIA H100 datasheet" in output


def test_what_is_small_is_told_as_what_it_is(ran: Ran) -> None:
    output = ran("plan", "tiny-llama", *FOUR_MACHINES, "--rate", "1/s")[1]
    assert re.match(r"tiny-llama: [\d.]+M parameters, \d+ MiB of weights\n", output)
    assert "1,024 tokens in, 256 out, 1 request/s\n" in output
    assert re.search(r"replica 1: dgx-h100-\d \(dgx-h100-\d\) GPU \d\n", output)


@pytest.mark.parametrize("top", [1, 3])
def test_only_the_first_options_are_shown(ran: Ran, top: int) -> None:
    output = ran(*PLAN, "--top", top)[1]
    assert len(re.findall(r"^(?:tp|pp)\S+ +\d+ +\d+ ", output, re.MULTILINE)) == top
    assert re.search(r"\.\.\. and \d+ more that meet the SLO", output)


OPTION_KEYS = {
    "shape",
    "gpu",
    "replicas",
    "gpus",
    "usd_per_hour",
    "meets_slo",
    "chance",
    "ttft_ms",
    "tpot_ms",
    "requests_per_s",
    "output_tokens_per_s_per_gpu",
    "running_requests",
    "memory",
    "step_ms",
    "queue_ms",
    "communication_share",
    "layouts",
    "reason",
}


def test_a_plan_as_json(ran: Ran) -> None:
    code, output, _ = ran(*PLAN, "--json")
    found = strictly(output)
    assert (code, found["feasible"], found["constraint"], found["closest"]) == (0, True, None, None)
    assert {"model", "engine", "slo", "partition", "options", "do_not_fit", "sources"} <= set(found)
    assert found["slo"] == {"ttft_ms": None, "tpot_ms": 30, "percentile": 0.9}
    assert found["partition"] in found["options"]
    assert "tp1" in found["do_not_fit"]
    for option in found["options"]:
        assert set(option) >= OPTION_KEYS
        # The parts are those of the formulas; TPOT is what measured points make of them.
        assert sum(option["step_ms"].values()) * option["measured_factor"] <= option["tpot_ms"] * 1.001 <= 30 * 1.001
        assert isinstance(option["chance"], float)
        assert 0.25 < option["chance"] <= 1
        assert option["gpus"] == sum(len(layout) for layout in option["layouts"])


def test_a_plan_that_does_not_exist_says_what_binds_and_ends_with_2(ran: Ran) -> None:
    code, output, errors = ran("plan", LLAMA_70B, *FOUR_MACHINES, "--tpot", "0.1ms")
    assert (code, errors) == (2, "")
    assert re.search(r"^No: no shape .* comes closest with TPOT [\d.]+ ms against 0\.1 ms, of which ", output, re.M)
    assert re.search(r"^Nearest: an SLO with TPOT of [\d.]+ ms", output, re.MULTILINE)
    code, output, _ = ran("plan", LLAMA_70B, *FOUR_MACHINES, "--tpot", "0.1ms", "--json")
    found = strictly(output)
    assert (code, found["feasible"], found["options"], found["partition"]) == (2, False, [], None)
    assert found["constraint"]
    assert found["closest"]["meets_slo"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((LLAMA_70B, "--cluster", "dgx-h100", "--rate", "900/s"), "900 requests/s need "),
        ((DEEPSEEK_V3, "--cluster", "dgx-a100"), f"{DEEPSEEK_V3} does not fit"),
    ],
)
def test_too_small_a_cluster_ends_with_2(ran: Ran, arguments: Sequence[str], words: str) -> None:
    code, output, errors = ran("plan", *arguments)
    assert (code, errors) == (2, "")
    assert f"No: {words}" in output
    assert "Nearest: " in output


def test_why_not_another_shape(ran: Ran) -> None:
    code, output, _ = ran(*PLAN, "--explain", "tp16")
    assert code == 0
    assert "cross 2 machines over infiniband" in output
    assert "all-reduces" in output
    assert strictly(ran(*PLAN, "--explain", "tp16", "--json")[1])["explanation"] == output.splitlines()


@pytest.mark.parametrize(
    ("extra", "engine"),
    [
        ((), {}),
        (("--kv-cache", "fp8"), {"kv_cache_dtype": "fp8"}),
        (("--precision", "fp8"), {"quantization": "fp8"}),
    ],
)
def test_a_plan_becomes_a_configuration_that_serve_takes(
    ran: Ran, tmp_path: Path, extra: Sequence[str], engine: dict[str, Any]
) -> None:
    file = tmp_path / "serve.yaml"
    found = strictly(ran(*PLAN, *extra, "--emit", file, "--json")[1])["options"][0]
    config = parse_config(file.read_text())
    assert (config.model.source, config.model.shape, config.model.replicas) == (
        LLAMA_70B,
        found["shape"],
        found["replicas"],
    )
    assert config.cluster.kind == "ray"
    assert config.model.engine.items() >= engine.items()
    assert config.model.engine["gpu_memory_utilization"] == 0.9
    assert config.model.slo == SloConfig(tpot="30ms", percentile="p90")


def test_a_configuration_says_what_it_was_planned_for(ran: Ran, tmp_path: Path) -> None:
    file, question = tmp_path / "serve.yaml", ("plan", LLAMA_70B, *FOUR_MACHINES, "--emit", tmp_path / "serve.yaml")
    ran(*question, "--concurrency", 64, "--ttft", "1.5s", "--percentile", "p99.9")
    assert file.read_text().startswith("# Planned for 64 concurrent requests, 1,024 tokens in and 256 out: ")
    assert parse_config(file.read_text()).model.slo == SloConfig(ttft="1.5s", percentile="p99.9")
    ran(*question)
    assert parse_config(file.read_text()).model.slo is None


def test_a_plan_says_where_its_configuration_is(ran: Ran, tmp_path: Path) -> None:
    assert str(tmp_path / "serve.yaml") in ran(*PLAN, "--emit", tmp_path / "serve.yaml")[2]


def test_a_row_of_the_table_fits_into_80_columns(ran: Ran) -> None:
    rows = re.findall(r"^(?:shape|tp|pp).*", ran(*PLAN)[1], re.MULTILINE)
    assert len(rows) > 5
    assert max(map(len, rows)) <= 80


def test_where_gpus_are_mixed_a_row_says_of_which_kind_it_is(ran: Ran, tmp_path: Path) -> None:
    mixed = written(tmp_path / "c.yaml", "machines: [dgx-h100, dgx-a100]")
    output = ran("plan", LLAMA_70B, "--cluster", mixed, "--rate", "2/s", "--top", "99")[1]
    assert {"h100_sxm", "a100_sxm"} <= set(re.findall(r"^(?:tp|pp)\S+ (\S+) +\d", output, re.MULTILINE))


def test_where_the_cache_is_small_the_configuration_limits_the_length(ran: Ran, tmp_path: Path) -> None:
    """vLLM does not start where one request of the model's full length finds no room."""
    machine = written(tmp_path / "c.yaml", "{gpu: h100_sxm, gpus_per_machine: 2}")
    output = ran("plan", LLAMA_70B, "--cluster", machine, "--json", "--emit", tmp_path / "serve.yaml")[1]
    room = strictly(output)["options"][0]["memory"]["kv_room_tokens"]
    length = parse_config((tmp_path / "serve.yaml").read_text()).model.engine["max_model_len"]
    assert 1280 < length <= room < 131072


def test_a_plan_without_options_writes_no_configuration(ran: Ran, tmp_path: Path) -> None:
    assert ran(*PLAN[:4], "--tpot", "1us", "--emit", tmp_path / "serve.yaml")[0] == 2
    assert not (tmp_path / "serve.yaml").exists()


# --- what is refused -------------------------------------------------------------------------------------------------

LINKS = "{gpu: h100_sxm, gpus_per_machine: 8, links: {network: {kind: roce, bandwidth: %s}}}"
BAD_FILES = {
    "zero-bandwidth.yaml": (LINKS % "0 Gbit/s", "links.network.bandwidth: '0 Gbit/s' is not accepted"),
    "negative-bandwidth.yaml": (LINKS % "-25 GB/s", "links.network.bandwidth: '-25 GB/s' is not accepted"),
    "no-unit.yaml": (LINKS % "25 G", "links.network.bandwidth: '25 G' is not a bandwidth; give a number with GB/s"),
    "overlap.yaml": (
        "{gpu: h100_sxm, islands: [{name: l, nodes: [{name: a, gpus: 4}]}, {name: r, nodes: [{name: a, gpus: 4}]}]}",
        "a is already in island l; islands must not overlap",
    ),
    "not-yaml.yaml": ("a: [1\nb: }", "not-yaml.yaml: line 2, column 2: "),
    "huge.yaml": (
        "{gpu: h100_sxm, gpus_per_machine: 1, machines: 1000001}",
        "1000001 GPUs is too large; at most 100000 nodes and 1000000 GPUs are accepted",
    ),
    "unknown-gpu.yaml": ("{gpu: h1000, gpus_per_machine: 8}", "GPU 'h1000' is not known; did you mean"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["plan", "scaling"])
def test_a_cluster_file_that_cannot_be(ran: Ran, tmp_path: Path, command: str, name: str) -> None:
    content, message = BAD_FILES[name]
    assert message in refused(ran(command, LLAMA_70B, "--cluster", written(tmp_path / name, content)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ttft", "500 parsecs"), "--ttft: '500 parsecs' is not a time; give a number with us, ms, s or min"),
        (("--rate", "-5/s"), "--rate: '-5/s' is not accepted; give a number with /s, /min or /h, such as '10/s'"),
        (("--prefix-hits", "140%"), "--prefix-hits: '140%' is more than the whole; give a number from 0 to 1"),
        (("--percentile", "p200"), "--percentile: 'p200' is not a percentile; give p50 to p99.9"),
        (("--input", "0"), "--input: '0' is not accepted"),
        (("--concurrency", "nan"), "--concurrency is nan; it must be from 1"),
        (("--rate", "5/s", "--concurrency", "3"), "--rate and --concurrency are both given"),
        (("--cluster", "4x dgx-h1000"), "--cluster: machine 'dgx-h1000' is not known; did you mean dgx-h100"),
        (("--cluster", ""), "archipelago: --cluster: '' is not accepted; give a preset's name, such as dgx-h100"),
        (("--cluster", "c.txt"), "The name of a file ends in .yaml, .yml, .json."),
        (("--emit", "serve.yaml", "--engine", "sglang"), "--emit: `archipelago serve` runs vllm, not sglang"),
        (("--cluster", "125001x dgx-h100"), "125001 nodes and 1000008 GPUs is too large"),
        (("--cluster", "/nowhere/c.yaml"), "--cluster: /nowhere/c.yaml cannot be read: "),
        (("--explain", "banana"), "--explain: 'banana' is not a shape"),
        (("--top", "0"), "--top: 0 is not accepted; give a number of options of at least 1."),
        (("--calibration", "/nowhere"), "--calibration: /nowhere has none of constants.json"),
        (("--emit", "/dev/null/serve.yaml"), "/dev/null/serve.yaml cannot be written: "),
    ],
)
def test_an_argument_that_cannot_be(ran: Ran, arguments: Sequence[str], message: str) -> None:
    given = [argument.replace("=", " ") for argument in arguments]
    # "--rate=-5/s": argparse takes a value that begins with a dash only so.
    joined = [f"{name}={value}" for name, value in zip(given[::2], given[1::2], strict=True)]
    code, _, errors = ran("plan", LLAMA_70B, *FOUR_MACHINES, *joined)
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith("archipelago: ")
    assert message in errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hello": 1}', "the config needs num_hidden_layers or n_layer"),
        ('{"num_hidden_layers": 4}', "the config needs hidden_size"),
        ("[1, 2]", "holds list, not a JSON object."),
        ("{{", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_no_hugging_face_config(ran: Ran, tmp_path: Path, content: str, message: str) -> None:
    file = written(tmp_path / "config.json", content)
    assert message in refused(ran("plan", file, *FOUR_MACHINES))
    assert message in refused(ran("plan", tmp_path, *FOUR_MACHINES))


@pytest.mark.parametrize("name", ["acme/unknown", "no-such.json", "", "x" * 5000, "a b\nc"])
def test_a_model_that_nobody_knows(ran: Ran, name: str) -> None:
    message = refused(ran("plan", name, *FOUR_MACHINES))
    assert f"model is {name[:200]!r}; it is no file" in message
    assert re.search(r"(Give|Or give) the path of its config\.json\.$", message)


def test_a_model_whose_name_is_nearly_right_is_suggested(ran: Ran) -> None:
    assert f"Did you mean {LLAMA_70B}?" in refused(ran("plan", LLAMA_70B[:-1], *FOUR_MACHINES))


# --- scaling ---------------------------------------------------------------------------------------------------------

SCALING = ("scaling", LLAMA_70B, "--cluster", "2x dgx-h100")


def test_scaling_prints_curves_and_writes_a_page(ran: Ran, tmp_path: Path) -> None:
    code, output, errors = ran(*SCALING, "--html", tmp_path / "page.html")
    assert (code, errors) == (0, "")
    assert "GPUs" in output
    assert "<html" in (tmp_path / "page.html").read_text()
    found = strictly(ran(*SCALING, "--json")[1])
    assert found["max_gpus"] == 16
    assert {point["gpus"] for curve in found["curves"] for point in curve["points"]} >= {2, 4, 8, 16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-gpus", "0"), "--max-gpus is 0; it must be from 1 to 16"),
        (("--max-gpus", "17"), "--max-gpus is 17; it must be from 1 to 16"),
        (("--running", "0.5"), "--running is 0.5; it must be at least 1"),
        (("--running", "nan"), "--running is nan"),
        (("--threshold", "120%"), "--threshold: '120%' is more than the whole"),
        (("--threshold", "0"), "--threshold is 0"),
    ],
)
def test_a_sweep_that_cannot_be_made(ran: Ran, arguments: Sequence[str], message: str) -> None:
    assert message in refused(ran(*SCALING, *arguments))


def test_the_yaml_of_the_help_is_a_cluster() -> None:
    assert read_cluster(yaml.safe_load(LINKS % "100 Gbit/s")).gpus == 8
