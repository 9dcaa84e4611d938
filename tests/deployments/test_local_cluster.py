import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from deployments import local_cluster
from deployments.islands import ISLAND_LABEL, NODE_LABEL
from deployments.local_cluster import (
    CLUSTER_ID_ENV,
    ClusterStartError,
    LocalCluster,
    free_port,
    processes,
    start,
    start_simulated,
    stop,
)
from deployments.simulated_gpus import SIMULATED_GPUS_ENV

PYTHON = sys.executable
SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP
# The name of a file in shared memory is the first argument.
MAPS = "import mmap, sys; file = open(sys.argv[1], 'r+b'); held = mmap.mmap(file.fileno(), 0);" + SLEEP
HOLDS = "import sys; file = open(sys.argv[1], 'a');" + SLEEP

Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts Python scripts that tell when they are ready; what is left of them ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def spawn_one(
        script: str, *arguments: object, cluster_id: str | None = None, has_title: bool = False
    ) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name != CLUSTER_ID_ENV}
        if has_title:  # setproctitle writes over the environment that others see
            env = {}
        if cluster_id is not None:
            env[CLUSTER_ID_ENV] = cluster_id
        command = [PYTHON, "-I", "-S", "-c", script, *map(str, arguments)]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield spawn_one
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    """A cluster of which nothing runs yet."""
    temp_dir = tmp_path / "archipelago-test"
    temp_dir.mkdir()
    return LocalCluster(cluster_id=uuid.uuid4().hex[:12], address="127.0.0.2:1", temp_dir=str(temp_dir))


@pytest.fixture
def shared_memory() -> Iterator[Callable[[], Path]]:
    """Makes files in shared memory."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path("/dev/shm") / f"archipelago-test-{uuid.uuid4().hex}")
        made[-1].write_bytes(bytes(4096))
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def is_running(process: subprocess.Popen[str]) -> bool:
    return psutil.pid_exists(process.pid) and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How one node was started: what was passed to Ray, and the environment it was started in."""

    options: list[str]
    env: dict[str, str]


@pytest.fixture
def ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Started]]:
    """Puts a script in the place of Ray that only notes how it was called; call it for the notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    script = tmp_path / "ray"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {notes}/$$.options\n/usr/bin/env -0 > {notes}/$$.env\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    temp_root = tmp_path / "tmp"
    temp_root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp_root))

    def read() -> list[Started]:
        started = []
        for path in sorted(notes.glob("*.options"), key=lambda path: path.stat().st_mtime_ns):
            lines = path.with_suffix(".env").read_text().split("\0")[:-1]
            env = dict(line.split("=", 1) for line in lines)
            started.append(Started(options=path.read_text().splitlines(), env=env))
        return started

    return read


Starts = Callable[[], list[Started]]


def test_each_simulated_node_has_an_address_and_labels_of_its_own_and_joins_the_first(ray_starts: Starts) -> None:
    cluster = start_simulated(3, 4, {})
    head, *others = ray_starts()
    assert "--head" in head.options
    assert f"--port={cluster.address.rpartition(':')[2]}" in head.options
    assert f"--temp-dir={cluster.temp_dir}" in head.options
    for node in others:
        assert "--head" not in node.options
        assert f"--address={cluster.address}" in node.options
    for index, node in enumerate([head, *others]):
        assert f"--node-ip-address=127.0.0.{index + 2}" in node.options
        assert "--num-gpus=4" in node.options
        assert f"--labels={ISLAND_LABEL}=island-{index},{NODE_LABEL}=node-{index}" in node.options


def test_real_gpus_are_found_by_ray_itself_on_one_node(ray_starts: Starts) -> None:
    start({"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "0,1"})
    (node,) = ray_starts()
    assert "--head" in node.options
    assert not any(option.startswith(("--num-gpus", "--num-cpus", "--labels")) for option in node.options)
    assert (node.env["OMP_NUM_THREADS"], node.env["CUDA_VISIBLE_DEVICES"]) == ("7", "0,1")
    assert SIMULATED_GPUS_ENV not in node.env


@pytest.mark.parametrize("starter", [start, partial(start_simulated, 2, 2)], ids=["GPUs", "simulated"])
def test_nodes_inherit_the_environment_without_what_is_meant_for_another_ray(
    starter: Callable[[dict[str, str]], LocalCluster], ray_starts: Starts
) -> None:
    environ = {"HF_HOME": "/hf", "RAY_ADDRESS": "other:1", "RAY_TMPDIR": "/x", CLUSTER_ID_ENV: "of another"}
    cluster = starter(environ)
    for node in ray_starts():
        assert node.env["HF_HOME"] == "/hf"
        assert {"RAY_ADDRESS", "RAY_TMPDIR"}.isdisjoint(node.env)
        assert node.env[CLUSTER_ID_ENV] == cluster.cluster_id
        assert (node.env["VLLM_NO_USAGE_STATS"], node.env["RAY_USAGE_STATS_ENABLED"]) == ("1", "0")
    assert environ["RAY_ADDRESS"] == "other:1"  # what was passed in stays as it was


def test_simulated_gpus_take_their_kv_cache_from_the_configuration_alone(ray_starts: Starts) -> None:
    start_simulated(1, 1, {"VLLM_CPU_KVCACHE_SPACE": "9"})
    (node,) = ray_starts()
    assert "VLLM_CPU_KVCACHE_SPACE" not in node.env
    assert node.env[SIMULATED_GPUS_ENV] == "1"


@pytest.mark.parametrize(("islands", "gpus"), [(1, 1), (1, 2), (2, 2), (2, 72)])
def test_simulated_gpus_share_the_cores(islands: int, gpus: int, ray_starts: Starts) -> None:
    start_simulated(islands, gpus, {"OMP_NUM_THREADS": "99"})
    threads = int(ray_starts()[0].env["OMP_NUM_THREADS"])
    assert threads >= 1
    assert threads == 1 or threads * islands * gpus <= (os.cpu_count() or 1)


def test_two_clusters_do_not_share_an_id_a_port_or_a_directory(ray_starts: Starts) -> None:
    one, other = start_simulated(1, 1, {}), start_simulated(1, 1, {})
    assert one.cluster_id != other.cluster_id
    assert one.address != other.address
    assert one.temp_dir != other.temp_dir


def test_stop_ends_exactly_the_processes_that_carry_the_id(spawn: Spawn, cluster: LocalCluster) -> None:
    ours = [spawn(SLEEP, cluster_id=cluster.cluster_id) for _ in range(2)]
    others = [spawn(SLEEP), spawn(SLEEP, cluster_id=f"{cluster.cluster_id}0"), spawn(SLEEP, cluster_id="")]
    assert {process.pid for process in processes(cluster)} == {process.pid for process in ours}
    assert stop(cluster) == 2
    assert not any(is_running(process) for process in ours)
    assert all(is_running(process) for process in others)


def test_stop_ends_what_lost_the_id_but_writes_the_logs_of_the_cluster(spawn: Spawn, cluster: LocalCluster) -> None:
    log = Path(cluster.temp_dir) / "worker.log"
    ours = spawn(HOLDS, log, has_title=True)
    reader = spawn(HOLDS, log)  # somebody who looks at the log
    other = spawn(HOLDS, Path(f"{cluster.temp_dir}.log"), has_title=True)  # beside the directory, not in it
    assert stop(cluster) == 1
    assert [is_running(process) for process in (ours, reader, other)] == [False, True, True]


def test_stop_ends_what_does_not_heed_sigterm(
    spawn: Spawn, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster, "TERMINATE_GRACE_S", 0.2)
    deaf = spawn(DEAF, cluster_id=cluster.cluster_id)
    assert stop(cluster) == 1
    assert not is_running(deaf)


def test_stop_removes_the_shared_memory_and_the_files_of_the_cluster_and_no_others(
    spawn: Spawn, cluster: LocalCluster, shared_memory: Callable[[], Path]
) -> None:
    ours, theirs = shared_memory(), shared_memory()
    spawn(MAPS, ours, cluster_id=cluster.cluster_id)
    spawn(MAPS, theirs)
    beside = Path(f"{cluster.temp_dir}-of-another")
    beside.mkdir()
    stop(cluster)
    assert (ours.exists(), theirs.exists()) == (False, True)
    assert (Path(cluster.temp_dir).exists(), beside.exists()) == (False, True)


def test_stopping_again_is_harmless(spawn: Spawn, cluster: LocalCluster) -> None:
    spawn(SLEEP, cluster_id=cluster.cluster_id)
    assert stop(cluster) == 1
    assert stop(cluster) == 0


def test_a_node_that_does_not_start_is_an_error_with_what_ray_said_and_leaves_nothing(
    ray_starts: Starts, tmp_path: Path
) -> None:
    (tmp_path / "ray").write_text("#!/bin/sh\necho no port is free\nexit 1\n")
    with pytest.raises(ClusterStartError, match=r"node 0 did not start: no port is free$"):
        start_simulated(2, 2, {})
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_node_that_never_answers_is_given_up(
    ray_starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster, "NODE_START_TIMEOUT_S", 0.1)
    (tmp_path / "ray").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    with pytest.raises(ClusterStartError, match=r"node 0 did not start within 0\.1 s"):
        start({})
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
