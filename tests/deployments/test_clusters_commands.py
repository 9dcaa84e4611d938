"""What the cluster files run on a machine, in a shell with stand-ins for programs; Ray's own parser reads its part."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray._private.label_utils import parse_node_labels_string, validate_node_label_syntax
from ray.autoscaler._private.command_runner import _with_interactive
from ray.scripts import scripts
from running_system import until

from deployments.clusters import await_machines
from deployments.islands import ISLAND_LABEL, MACHINE_LABEL, NODE_LABEL
from deployments.run_record import record_path, token_path

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "deployments" / "clusters"
README = (CLUSTERS / "README.md").read_text()
PROVIDERS = ("local", "aws", "gcp")
HEAD_IP = "10.0.0.1"
# What the commands call, but for ray, which keeps its arguments and environment for us to read.
ELSEWHERE = ("make", "sudo", "uv", "python", "archipelago", "prometheus", "setsid")
every_provider = pytest.mark.parametrize("provider", PROVIDERS)


def cluster(provider: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTERS / f"{provider}.yaml").read_text())
    return document


@dataclass(frozen=True, slots=True)
class Called:
    """One call of a program by a command of the file."""

    program: str
    arguments: list[str]
    environ: dict[str, str]


@dataclass(frozen=True, slots=True)
class Machine:
    """A home directory in which the commands of a file run, with stand-ins for the programs that they call."""

    home: Path

    def run(self, command: str) -> list[Called]:
        """As Ray does over ssh; what was called, in order."""
        bash, login, flag, interactive, quoted = _with_interactive(f"export RAY_HEAD_IP={HEAD_IP}; {command}")
        environ = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "CALLS": str(self.home / "calls")}
        (self.home / "calls").write_text("")
        shell = " ".join((bash, login, flag, interactive, quoted))
        done = subprocess.run(shell, shell=True, env=environ, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return [Called(**json.loads(line)) for line in (self.home / "calls").read_text().splitlines()]

    def ray(self, command: str) -> Called:
        (called,) = (one for one in self.run(command) if one.program == "ray")
        return called


STAND_IN = """#!{python}
import json, os, sys
call = {{"program": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:], "environ": dict(os.environ)}}
open(os.environ["CALLS"], "a").write(json.dumps(call) + "\\n")
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which the setup commands have run: Archipelago unpacked, its environment in ~/.bashrc."""
    program = tmp_path / "stand-in"
    program.write_text(STAND_IN.format(python=shutil.which("python3")))
    program.chmod(0o755)
    (tmp_path / "bin").mkdir()
    for name in ("ray", *ELSEWHERE):
        (tmp_path / "bin" / name).symlink_to(program)
    (tmp_path / ".bashrc").write_text(f"PATH={tmp_path}/bin:$PATH\n")  # a login shell starts from the system's PATH
    subprocess.run(
        ["tar", "-czf", tmp_path / "archipelago.tar.gz", "-C", ROOT, "deployments/clusters", "Makefile"], check=True
    )
    installed = tmp_path / "archipelago" / ".venv" / "bin"
    installed.mkdir(parents=True)
    (installed / "uv").symlink_to(program)
    done = Machine(tmp_path)
    for command in cluster("local")["setup_commands"]:
        done.run(command)
    return done


def started(called: Called) -> dict[str, Any]:
    """The options of `ray start`, read by Ray itself, which refuses those it does not know."""
    verb, *arguments = called.arguments
    assert verb == "start"
    return dict(scripts.start.make_context("start", arguments).params)


@every_provider
@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_starts_with_the_labels_that_islands_are_read_from(machine: Machine, provider: str, role: str) -> None:
    stop, start, *_ = cluster(provider)[f"{role}_start_ray_commands"]
    assert machine.ray(stop).arguments == ["stop"]
    called = machine.ray(start)
    options = started(called)
    labels = parse_node_labels_string(options["labels"])
    validate_node_label_syntax(labels)
    name = subprocess.run("hostname", capture_output=True, text=True, check=True).stdout.strip()
    assert labels == {ISLAND_LABEL: name, NODE_LABEL: name}
    assert options["head"] is (role == "head")
    assert options["address"] == (None if role == "head" else f"{HEAD_IP}:{options['port'] or 6379}")
    assert options["num_gpus"] is None  # Ray counts them: a head without any is no island
    assert called.environ["RAY_AUTH_MODE"] == "token"


def test_an_island_of_several_machines_is_named_on_them(machine: Machine) -> None:
    """By a file; here another one stands in for it, since /etc is not the test's."""
    name = machine.home / "island"
    name.write_text("rack-7\n")
    start = cluster("local")["worker_start_ray_commands"][1]
    assert "/etc/archipelago/island" in README
    options = started(machine.ray(start.replace("/etc/archipelago/island", str(name))))
    assert parse_node_labels_string(options["labels"])[ISLAND_LABEL] == "rack-7"


def test_the_readmes_halves_of_a_machine_are_two_islands(machine: Machine) -> None:
    """Two `ray start` on a machine, as the README has them."""
    block = README[README.index("worker_start_ray_commands:") :].partition("```")[0]
    commands = yaml.safe_load(block)["worker_start_ray_commands"]
    stop, *starts = (command for command in commands if "ray st" in command)
    assert machine.ray(stop).arguments == ["stop"]
    called = [machine.ray(start) for start in starts]
    labels = [parse_node_labels_string(started(one)["labels"]) for one in called]
    assert [one.environ["CUDA_VISIBLE_DEVICES"] for one in called] == ["0,1,2,3", "4,5,6,7"]
    assert len({one[ISLAND_LABEL] for one in labels}) == len({one[NODE_LABEL] for one in labels}) == len(starts)
    assert len({one[MACHINE_LABEL] for one in labels}) == 1
    assert len({started(one)["dashboard_agent_listen_port"] for one in called}) == len(starts)


def test_only_the_local_head_avoids_version_two_of_the_autoscaler(machine: Machine) -> None:
    """`ray up` exports 1 in front of every command of the head; version 2 leaves a local worker out."""
    seen = {}
    for provider in PROVIDERS:
        start = cluster(provider)["head_start_ray_commands"][1]
        called = machine.ray(f"export RAY_enable_autoscaler_v2=1; {start}")
        seen[provider] = called.environ["RAY_enable_autoscaler_v2"]
        assert started(called)["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert seen == {"local": "0", "aws": "1", "gcp": "1"}


@every_provider
def test_prometheus_and_the_deployment_outlive_the_ssh_session(machine: Machine, provider: str) -> None:
    prometheus, serving = cluster(provider)["head_start_ray_commands"][2:]
    (called,) = machine.run(prometheus)
    assert called.program == "setsid"
    assert Path(called.arguments[-1]).is_file()
    (called,) = machine.run(serving)
    assert called.arguments[:3] == ["--fork", "bash", "-c"]
    waiting, serve = machine.run(called.arguments[3])
    assert waiting.arguments == ["-m", await_machines.__name__, f"{machine.home}/ray_bootstrap_config.yaml"]
    assert (serve.program, serve.arguments) == ("archipelago", ["serve", f"{machine.home}/serve.yaml"])
    assert record_path(serve.environ, Path("/")) == machine.home / ".archipelago" / "run.json"


@every_provider
def test_setup_may_run_again(machine: Machine, provider: str) -> None:
    config = cluster(provider)
    (machine.home / "archipelago" / "deployments" / "clusters" / "removed.py").touch()
    for command in [*config["setup_commands"], *config["head_setup_commands"]]:
        machine.run(command)
    assert (machine.home / ".bashrc").read_text().count("environment.sh") == 1
    assert not (
        machine.home / "archipelago" / "deployments" / "clusters" / "removed.py"
    ).exists()  # a module that is no more
    assert (machine.home / "archipelago" / ".venv").is_dir()  # installed once


def test_prometheus_finds_the_token_that_serve_writes(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    config = tmp_path / "prometheus.yml"
    shutil.copyfile(CLUSTERS / "prometheus.yml", config)
    check = ["promtool", "check", "config", str(config)]
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0  # nothing is served yet
    token = token_path(record_path({}, tmp_path))
    token.parent.mkdir()
    token.write_text("t")
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["prometheus.sh", "end_with_raylet.sh"])
def test_what_ray_does_not_end_ends_with_it(script: str, tmp_path: Path) -> None:
    """`ray stop` leaves what it did not start, and a worker's raylet its log monitor."""
    with subprocess.Popen(["sleep", "60"]) as watched, subprocess.Popen(["sleep", "60"]) as monitor:
        found = f"case $* in *log_monitor*) echo {monitor.pid};; *) echo {watched.pid};; esac"
        for name, text in {"pgrep": found, "prometheus": "exec sleep 60"}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        environ = dict(os.environ) | {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        with subprocess.Popen(["bash", CLUSTERS / script], env=environ) as running:
            by_name = {}

            def both() -> bool:
                by_name.update({child.name(): child for child in psutil.Process(running.pid).children()})
                return "tail" in by_name and (script != "prometheus.sh" or "sleep" in by_name)

            until(both, "it watches", timeout_s=10)
            watched.kill()
            watched.wait()
            running.wait(timeout=10)
        ends_with_it = by_name.get("sleep", psutil.Process(monitor.pid))
        until(lambda: not ends_with_it.is_running() or ends_with_it.status() == psutil.STATUS_ZOMBIE, "it ends", 10)
        monitor.kill()
