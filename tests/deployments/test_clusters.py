"""The cluster files for `ray up`: Ray takes them, and what they run on a machine is what Ray and Archipelago take."""

import copy
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

from deployments import cli
from deployments.clusters import await_machines
from deployments.config import RayCluster, load_config

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "deployments" / "clusters"
README = (CLUSTERS / "README.md").read_text()
PROVIDERS = ("local", "aws", "gcp")
every_provider = pytest.mark.parametrize("provider", PROVIDERS)


def cluster(provider: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTERS / f"{provider}.yaml").read_text())
    return document


def prepared(document: Mapping[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it asks the cloud anything."""
    config: dict[str, Any] = prepare_config(dict(document))
    validate_config(config)
    return config


@every_provider
def test_ray_accepts_the_file(provider: str) -> None:
    prepared(cluster(provider))


@pytest.mark.parametrize(
    ("provider", "break_it"),
    [
        ("local", lambda config: config.update(worker_start_commands=[])),
        ("local", lambda config: config["auth"].update(ssh_key="k")),
        ("aws", lambda config: config["available_node_types"]["island"].update(min_workers="2")),
        ("aws", lambda config: config.update(max_workers=1)),
        ("gcp", lambda config: config.update(head_node_type="heed")),
        ("gcp", lambda config: config["available_node_types"]["island"]["resources"].update(GPU=0.5)),
    ],
    ids=["key", "auth key", "type", "too few", "no such type", "half a GPU"],
)
def test_ray_refuses_a_mistake(provider: str, break_it: Callable[[dict[str, Any]], None]) -> None:
    broken = copy.deepcopy(cluster(provider))
    break_it(broken)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepared(broken)


@every_provider
def test_provider_has_no_key_that_ray_does_not_know(provider: str) -> None:
    """Ray's schema lets any key of a provider pass."""
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    assert cluster(provider)["provider"].keys() <= schema["properties"]["provider"]["properties"].keys()


@every_provider
def test_all_machines_of_the_file_are_awaited(provider: str) -> None:
    assert await_machines.wanted_machines(prepared(cluster(provider))) == 1 + 2


def test_clouds_do_not_start_or_end_machines_by_themselves() -> None:
    """Ray's autoscaler would end a machine whose GPUs wait for a repartition."""
    for provider in ("aws", "gcp"):
        config = cluster(provider)
        island = config["available_node_types"]["island"]
        assert island["min_workers"] == island["max_workers"] == config["max_workers"]


def test_files_differ_only_where_the_providers_do() -> None:
    local, aws, gcp = (cluster(provider) for provider in PROVIDERS)
    same = ("file_mounts", "setup_commands")
    assert {key: local[key] for key in same} == {key: aws[key] for key in same} == {key: gcp[key] for key in same}
    *local_start, _ = local["worker_start_ray_commands"]  # clouds end their machines whole
    assert local_start == aws["worker_start_ray_commands"] == gcp["worker_start_ray_commands"]
    assert aws["head_start_ray_commands"] == gcp["head_start_ray_commands"]
    without_trap = [command.replace("RAY_enable_autoscaler_v2=0 ", "") for command in local["head_start_ray_commands"]]
    assert without_trap == aws["head_start_ray_commands"]


@every_provider
def test_mounted_files_are_there_or_the_readme_makes_them(provider: str) -> None:
    mounts = cluster(provider)["file_mounts"]
    assert {mount for mount in mounts.values() if not (ROOT / mount).is_file()} == {
        "build/archipelago.tar.gz",
        "~/.ray/auth_token",
    }
    assert "git archive --output build/archipelago.tar.gz HEAD" in README
    assert "ray get-auth-token --generate" in README


@every_provider
def test_what_is_served_is_for_a_running_cluster(provider: str) -> None:
    config = load_config(ROOT / cluster(provider)["file_mounts"]["~/serve.yaml"])
    assert config.cluster == RayCluster(address="auto")


def readme_commands() -> list[list[str]]:
    """Commands of ours and of Ray's in the README's blocks, and those that they run on the head."""
    blocks = "".join(README.split("```")[1::2])
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith(".venv/bin/")]
    found = [line[: line.index("&&")] if "&&" in line else line for line in lines]
    found += [shlex.split(line[-1]) for line in lines if line[1] == "exec"]
    return [line for line in found if Path(line[0]).name in ("ray", "archipelago")]


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_commands_of_the_readme_exist(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, verb, *arguments = command
    monkeypatch.chdir(ROOT)
    if Path(program).name == "archipelago":
        cli.parser().parse_args([verb, *arguments])
    else:
        scripts.cli.commands[verb].make_context(verb, arguments)


# ---------------------------------------------------------------- waiting for the machines


def node(address: str, *, is_alive: bool = True) -> dict[str, Any]:
    return {"NodeManagerAddress": address, "Alive": is_alive}


def test_a_machine_is_counted_once_and_only_while_it_lives() -> None:
    nodes = [node("10.0.0.1"), node("10.0.0.2"), node("10.0.0.2"), node("10.0.0.3", is_alive=False)]
    assert await_machines.joined_machines(nodes) == {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize(("joined", "code"), [(3, 0), (2, 1)])
def test_waiting_ends_when_all_are_there_or_time_is_up(
    joined: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ray_bootstrap_config.yaml"
    config.write_text(json.dumps(prepared(cluster("local"))))
    monkeypatch.setattr(await_machines.ray, "init", lambda **_: None)
    monkeypatch.setattr(await_machines.ray, "shutdown", lambda: None)
    monkeypatch.setattr(await_machines.ray, "nodes", lambda: [node(f"10.0.0.{i}") for i in range(joined)])
    assert await_machines.main([str(config), "--timeout-s", "0"]) == code
