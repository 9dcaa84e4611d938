"""What `archipelago islands` writes is what the planner, Ray and the next `archipelago islands` read."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from discovery_builders import MACHINES, recorded
from ray.scripts.scripts import start

from deployments import cli
from deployments.discovery import commands
from deployments.discovery.description import as_json
from deployments.discovery.grouping import find_islands
from deployments.discovery.machine import DiscoveryError, read_machines
from deployments.islands import inventory
from placement import given

Ran = Callable[..., tuple[int, str, str]]
GIB = 2**30


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    """The command, as a user runs it: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["islands", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def file_of(name: str) -> str:
    return str(MACHINES / name)


@pytest.mark.parametrize("name", sorted(path.name for path in MACHINES.glob("*.txt")))
def test_the_planner_reads_the_cluster_with_the_same_islands(name: str, ran: Ran, tmp_path: Path) -> None:
    _, output, errors = ran(file_of(name), "--yaml")
    if "3090" in name:
        assert "needs what could not be found: islands[0].gpu.memory: missing" in errors
        return
    path = tmp_path / "cluster.yaml"
    path.write_text(output, encoding="utf-8")
    cluster = given.cluster(str(path))
    findings = find_islands([recorded(name, Path(name).stem)])
    assert {island: sum(node.gpus for node in nodes) for island, nodes in cluster.islands.items()} == {
        island.name: island.gpus for island in findings.islands
    }
    assert {node.machine_name for node in cluster.nodes} == {Path(name).stem}
    found = {island.link.bandwidth_bytes_per_s for island in findings.islands if island.link}
    if len(found) == 1:
        assert {node.links.island.bandwidth_bytes_per_s for node in cluster.nodes if node.links} == found


def test_a_rack_is_put_together_from_what_its_trays_printed(ran: Ran, tmp_path: Path) -> None:
    files = []
    for number in range(18):
        findings = find_islands([recorded("gb200-tray.nvml.json", f"tray-{number:02}")])
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(as_json(findings, {})), encoding="utf-8")
    code, output, errors = ran(*map(str, files), "--yaml")
    assert (code, errors) == (0, "")
    (tmp_path / "rack.yaml").write_text(output, encoding="utf-8")
    cluster = given.cluster(str(tmp_path / "rack.yaml"))
    assert (len(cluster.islands), cluster.widest_island_gpus, len(cluster.nodes)) == (1, 72, 18)
    assert {(node.gpu.kind, node.gpus, node.machine) for node in cluster.nodes} == {("gb200", 4, "")}


@pytest.mark.parametrize("name", sorted(path.name for path in MACHINES.iterdir()))
def test_a_reading_comes_back_from_json(name: str) -> None:
    machine = recorded(name)
    document = json.loads(json.dumps(as_json(find_islands([machine]), {})))
    assert read_machines(document["machines"], "x.json") == (machine,)


def ray_node(labels: str, gpus: int, number: int) -> dict[str, Any]:
    """A node as `ray.nodes()` shows it once it was started with these labels."""
    return {
        "Alive": True,
        "NodeID": f"{number:08x}",
        "NodeName": "10.0.0.1",
        "NodeManagerAddress": f"10.0.0.{number}",  # as pods of one machine have them
        "Resources": {"GPU": float(gpus)},
        "Labels": dict(label.split("=") for label in labels.split(",")),
    }


def test_one_island_is_labelled_and_found_again_in_ray(ran: Ran) -> None:
    code, output, _ = ran(file_of("dgx-h100.txt"), "--labels")
    assert (code, output) == (0, "archipelago.io/island=dgx-h100,archipelago.io/node=dgx-h100\n")
    found = inventory([ray_node(output.strip(), 8, 1)], {"00000001": 80 * GIB})
    assert found.selectors == {"dgx-h100": dict(label.split("=") for label in output.strip().split(","))}


@pytest.mark.parametrize("option", ["--labels", "--raylets"])
def test_each_island_inside_a_machine_gets_a_raylet_that_sees_its_gpus_alone(option: str, ran: Ran) -> None:
    _, output, _ = ran(file_of("h100-pcie-odd-pairs.txt"), option)
    commands_of = [shlex.split(line) for line in output.splitlines()]
    assert [words[1] for words in commands_of] == [
        f"CUDA_VISIBLE_DEVICES={gpus}" for gpus in ("0,5", "1,2", "3,4", "6,7")
    ]
    nodes = []
    for number, words in enumerate(commands_of):
        options = dict(word.split("=", 1) for word in words if word.startswith("--"))
        assert set(options) <= {name for parameter in start.params for name in parameter.opts}  # Ray knows them
        nodes.append(ray_node(options["--labels"], int(options["--num-gpus"]), number))
    found = inventory(nodes, {node["NodeID"]: 80 * GIB for node in nodes})
    assert [sum(node.gpus for node in nodes) for nodes in found.cluster.islands.values()] == [2, 2, 2, 2]
    ports = [word for words in commands_of for word in words if word.startswith(("--min-w", "--max-w", "--dashboard"))]
    assert len(set(ports)) == len(ports) == 12


def started(output: str) -> list[dict[str, Any]]:
    """The Ray nodes that `--labels` leads to: one whose labels it prints, or those that its commands start."""
    lines = [shlex.split(line) for line in output.splitlines()]
    found = [dict(word.split("=", 1) for word in words if word.startswith("--")) for words in lines]
    return [
        ray_node(options["--labels"], int(options["--num-gpus"]), number)
        if options
        else ray_node(words[0], 8, number)  # where it is the whole machine Ray counts the GPUs itself
        for number, (words, options) in enumerate(zip(lines, found, strict=True))
    ]


@pytest.mark.parametrize("name", sorted(path.name for path in MACHINES.glob("*.txt") if "3090" not in path.name))
def test_ray_s_labels_and_the_yaml_are_one_cluster_to_the_planner(name: str, ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(ran(file_of(name), "--yaml")[1], encoding="utf-8")
    described = given.cluster(str(path))
    nodes = started(ran(file_of(name), "--labels")[1])
    seen = inventory(nodes, {node["NodeID"]: 80 * GIB for node in nodes}).cluster
    counts_gpus_itself = len(nodes) == 1
    assert [(node.name, node.island, node.machine, counts_gpus_itself or node.gpus) for node in seen.nodes] == [
        (node.name, node.island, node.machine, counts_gpus_itself or node.gpus) for node in described.nodes
    ]


def test_the_picture_shows_islands_matrix_and_problems(ran: Ran) -> None:
    code, output, errors = ran(file_of("a100-pcie-missing-bridge.txt"))
    assert (code, errors) == (1, "")  # a bridge is missing
    for words in ("NVLink", "NV12", "NODE", "problem: a100-pcie-missing-bridge: GPU 2", "islands --raylets"):
        assert words in output
    assert ran(file_of("dgx-a100.txt"))[0] == 0


def test_problems_are_told_beside_what_programs_read(ran: Ran) -> None:
    code, output, errors = ran(file_of("b200-broken.txt"), "--json")
    assert code == 1
    assert json.loads(output)["problems"] == [errors.strip().removeprefix("archipelago: ")]
    code, output, _ = ran(file_of("b200-broken.txt"), "--yaml")
    assert output.startswith("# b200-broken: GPU 2")
    assert [island["nodes"][0]["gpus"] for island in yaml.safe_load(output)["islands"]] == [7, 1]


def test_a_machine_without_gpus_says_so_in_a_sentence(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise DiscoveryError("this machine has no GPU that can be seen: nvidia-smi is not installed.")

    monkeypatch.setattr(commands, "read_machine", nothing)
    code, output, errors = ran()
    assert (code, output) == (1, "")
    assert errors == "archipelago: this machine has no GPU that can be seen: nvidia-smi is not installed.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "nowhere.json: No such file"),
        (["--measure", "x.json"], "--measure: the machines of files are not here"),
        (["--processes", "2"], "--processes: only --measure starts processes"),
        (["--measure", "--processes", "1"], "--processes: 1 is not accepted; give 2 to 64"),
        (["--measure", "--processes", "2", "--labels"], "there is no Ray node to label"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], message: str, ran: Ran) -> None:
    code, output, errors = ran(*arguments)
    assert (code, output) == (1, "")
    assert message in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "no list of machines; give what"),
        ('{"machines": [{"host": "a"}]}', "machines.0.source: Field required"),
    ],
)
def test_a_file_that_is_no_reading_is_refused_by_name(text: str, message: str, ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "reading.json"
    path.write_text(text, encoding="utf-8")
    code, _, errors = ran(str(path))
    assert code == 1
    assert f"{path}" in errors
    assert message in errors
