"""Ray on this machine, for one deployment: on its GPUs, or an archipelago in small without any.

A simulated node is a raylet with a loopback address of its own (127.0.0.2, 127.0.0.3, ...: Ray replaces 127.0.0.1 by
the machine's public address), so that Ray and vLLM tell the nodes apart as they would tell machines apart; its GPUs are
CPU slots that Ray counts as such. With real GPUs there is one node, and Ray finds them; `_simulated_node` and
`_simulated_environ` are all that differs.

`stop` finds the processes of one cluster by what they cannot lose (see `processes`), since `ray stop` would end every
Ray on the machine.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.islands import ISLAND_LABEL, NODE_LABEL
from deployments.simulated_gpus import SIMULATED_GPUS_ENV

CLUSTER_ID_ENV = "ARCHIPELAGO_CLUSTER"
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large travels through Ray's object store
# CPUs that Ray counts on a simulated node, where real cores are shared by all: none must wait for one.
SIMULATED_CPUS = 8  # for the ingresses and for Serve's own actors
SIMULATED_CPUS_PER_GPU = 2  # one for the replica and one for EngineCore, where each has a single GPU
HEAD_IP = "127.0.0.2"
NODE_START_TIMEOUT_S = 120
TOKEN_FILE = "auth_token"
TERMINATE_GRACE_S = 3  # GCS and the log monitors do not heed SIGTERM while workers end


class ClusterStartError(Exception):
    """A Ray node did not start; the message holds the end of what Ray printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A running cluster of this machine; all that is needed to find it again from another process."""

    cluster_id: str
    address: str
    temp_dir: str


def start(environ: Mapping[str, str]) -> LocalCluster:
    """Start one Ray node with the GPUs of this machine.

    Raises:
        ClusterStartError: it did not come up. Nothing is left running.
    """
    return _start(environ, [[f"--node-ip-address={HEAD_IP}"]])


def start_simulated(islands: int, gpus_per_island: int, environ: Mapping[str, str]) -> LocalCluster:
    """Start ``islands`` simulated nodes with ``gpus_per_island`` slots each; the first is also Ray's head.

    Raises:
        ClusterStartError: a node did not come up. Nothing is left running.
    """
    nodes = [_simulated_node(index, gpus_per_island) for index in range(islands)]
    return _start(_simulated_environ(environ, slots=islands * gpus_per_island), nodes)


def start_node_again(
    cluster: LocalCluster, index: int, islands: int, gpus_per_island: int, environ: Mapping[str, str]
) -> None:
    """Start a node of a simulated cluster that has gone; the arguments are those that the cluster was started with.

    Raises:
        ClusterStartError: it did not come up.
    """
    env = cluster_environ(_simulated_environ(environ, slots=islands * gpus_per_island), cluster.cluster_id)
    env |= token_environ(cluster)
    _start_node(index, _simulated_node(index, gpus_per_island), cluster, env)


def _start(environ: Mapping[str, str], nodes: Sequence[Sequence[str]]) -> LocalCluster:
    # Ray puts unix sockets below its directory, and their paths must stay under 108 characters: hence not the cwd.
    temp_dir = tempfile.mkdtemp(prefix="archipelago-")
    cluster = LocalCluster(cluster_id=uuid.uuid4().hex[:12], address=f"{HEAD_IP}:{free_port()}", temp_dir=temp_dir)
    _make_token(Path(temp_dir) / TOKEN_FILE)
    env = cluster_environ(environ, cluster.cluster_id) | token_environ(cluster)
    try:
        for index, options in enumerate(nodes):
            _start_node(index, options, cluster, env)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def cluster_environ(environ: Mapping[str, str], cluster_id: str) -> dict[str, str]:
    """The environment of every process of a cluster: the user's, without what is meant for another Ray."""
    env = {name: value for name, value in environ.items() if not name.startswith("RAY_")}
    return env | {
        CLUSTER_ID_ENV: cluster_id,
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Serve's controller looks at everything ten times a second by default, which takes several percent of a core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Ray gives its workers niceness 15, as if they were batch jobs; here they serve.
        "RAY_worker_niceness": "0",
        # Else Ray would ask for the token in the user's home directory, if there is one.
        "RAY_AUTH_MODE": "disabled",
    }


def token_environ(cluster: LocalCluster) -> dict[str, str]:
    """What makes a process of Ray show the cluster's token, and ask others for it.

    Ray's GCS and raylets listen at every address of the machine whatever --node-ip-address says (2.60, unless it is
    127.0.0.1), and who reaches them runs code. The token is in a file, since environments are easier to read.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(Path(cluster.temp_dir) / TOKEN_FILE)}


def present_token(cluster: LocalCluster) -> None:
    """Have this process show the cluster's token from now on; to be called before it connects."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    os.environ.update(token_environ(cluster))
    # Ray reads both once, when it is imported (ray/_private/authentication/authentication_token_setup.py).
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _make_token(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _simulated_environ(environ: Mapping[str, str], *, slots: int) -> dict[str, str]:
    env = dict(environ)
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the configured kv_cache_memory_bytes
    return env | {
        SIMULATED_GPUS_ENV: "1",
        # The slots share the cores; vLLM would otherwise bind every worker to all of them.
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // slots)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def _simulated_node(index: int, gpus: int) -> list[str]:
    return [
        f"--node-ip-address=127.0.0.{index + 2}",
        f"--num-cpus={SIMULATED_CPUS + SIMULATED_CPUS_PER_GPU * gpus}",
        f"--num-gpus={gpus}",
        f"--labels={ISLAND_LABEL}=island-{index},{NODE_LABEL}=node-{index}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]


def _start_node(index: int, options: Sequence[str], cluster: LocalCluster, env: Mapping[str, str]) -> None:
    port = cluster.address.rpartition(":")[2]
    as_head = (f"--port={port}", f"--temp-dir={cluster.temp_dir}", f"--ray-client-server-port={free_port()}")
    role = ("--head", "--include-dashboard=false", *as_head) if index == 0 else (f"--address={cluster.address}",)
    agent = (f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, *agent, *options]
    try:
        done = subprocess.run(
            command, env=dict(env), capture_output=True, text=True, timeout=NODE_START_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterStartError(f"Ray node {index} did not start within {NODE_START_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ClusterStartError(f"Ray node {index} did not start: {lines[-1] if lines else 'it printed nothing'}")


def stop(cluster: LocalCluster) -> int:
    """End every process of the cluster, and only those; return how many there were. Harmless when none is left."""
    ended: set[int] = set()
    # Killed workers cannot remove the queues that vLLM puts into shared memory.
    segments: set[Path] = set()
    while members := list(processes(cluster)):  # again, for what a node started while it was being ended
        ended.update(process.pid for process in members)
        segments.update(path for process in members for path in _shared_memory_of(process))
        for process in members:
            _signal(process.terminate)
        _, alive = psutil.wait_procs(members, timeout=TERMINATE_GRACE_S)
        for process in alive:
            _signal(process.kill)
        psutil.wait_procs(alive, timeout=TERMINATE_GRACE_S)
    for path in segments:
        path.unlink(missing_ok=True)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    return len(ended)


def processes(cluster: LocalCluster) -> Iterable[psutil.Process]:
    """Find the processes of a cluster: all inherit its id in their environment.

    Ray's workers and agents and vLLM's EngineCore overwrite theirs with a process title (setproctitle); those are known
    by their open log files.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ = {name: value for name, value in process.environ().items() if name}
            has_id = environ.get(CLUSTER_ID_ENV) == cluster.cluster_id
            if has_id or (not environ and _has_open(process, cluster.temp_dir)):
                yield process


def _has_open(process: psutil.Process, directory: str) -> bool:
    # psutil's open_files would leave out files that were deleted meanwhile.
    return any(str(fd.readlink()).startswith(f"{directory}/") for fd in Path(f"/proc/{process.pid}/fd").iterdir())


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shared_memory_of(process: psutil.Process) -> Iterable[Path]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        for mapping in process.memory_maps():
            if mapping.path.startswith("/dev/shm/"):
                yield Path(mapping.path)


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()
