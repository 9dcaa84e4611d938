"""Starts the two servers that are compared, on this machine and by their command lines, and ends them.

Both get the same engine flags, the same model files and the same number of threads. Only one is up at a time: an idle
Ray cluster takes several percent of a core, and both load hundreds of megabytes.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from loadtests.closed_loop import Load, run_load
from loadtests.server_memory import processes_with, with_descendants

SERVED_NAME = "bench"
STATE_DIR_ENV = "ARCHIPELAGO_STATE_DIR"
THREADS_ENV = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")
ENGINE: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 64,
    "enable_prefix_caching": False,
    "block_size": 32,
    "kv_cache_memory_bytes": 128 * 2**20,
}
MOST_GPUS = 72  # in one island
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1
FIRST_REQUEST = Load(concurrency=1, requests=1, prompt_tokens=1, output_tokens=1, seed=0)


class ServerError(Exception):
    """A server did not start or did not answer; the message holds the end of what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers. ``launch_to_token_s`` is the time from starting its command to its first token."""

    url: str
    launch_to_token_s: float
    processes: Callable[[], list[psutil.Process]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSetup:
    """What the peer copies from our running server: the model's files and the variables that set the threads."""

    model_path: str
    threads: Mapping[str, str]


@contextlib.contextmanager
def archipelago(model: str, tensor_parallel: int, folder: Path) -> Iterator[Server]:
    """Serve with `archipelago serve` on a simulated cluster of one island; ``folder`` takes config, state and log."""
    command = Path(sys.executable).with_name("archipelago")
    config, log, state = folder / "archipelago.yaml", folder / "archipelago.log", folder / "state"
    config.write_text(yaml.safe_dump(configuration(model, tensor_parallel)))
    env = {**os.environ, STATE_DIR_ENV: str(state)}
    port = _free_port()
    with log.open("w") as output:
        started_s = time.perf_counter()
        serve = subprocess.Popen(
            [command, "serve", config, "--port", str(port)],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # else Ctrl-C reaches it too, and then our SIGTERM cuts short its taking back
        )
        try:
            first_token_s = _wait_for_first_token(f"http://127.0.0.1:{port}", serve, log)
            if serve.wait(STOP_TIMEOUT_S) != 0:  # it prints the placement and exits; the server stays
                raise ServerError(f"`archipelago serve` failed:\n{_end_of(log)}")
            yield Server(
                url=f"http://127.0.0.1:{port}",
                launch_to_token_s=first_token_s - started_s,
                # Every process of the cluster inherits our state directory, or descends from one that does.
                processes=lambda: with_descendants(processes_with(STATE_DIR_ENV, str(state))),
            )
        finally:
            with _uninterrupted():
                _end(serve)
                subprocess.run([command, "stop"], env=env, stdout=output, stderr=subprocess.STDOUT, check=True)


@contextlib.contextmanager
def vllm_server(setup: PeerSetup, tensor_parallel: int, folder: Path) -> Iterator[Server]:
    """Serve with vLLM's own API server; ``folder`` takes its log."""
    # The `vllm` command of the CPU distribution does not start; the module does.
    module = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    port, log = _free_port(), folder / "vllm.log"
    where = ("--host", "127.0.0.1", "--port", str(port))
    command = [*module, *where, *peer_flags(setup.model_path, tensor_parallel)]
    with log.open("w") as output:
        started_s = time.perf_counter()
        server = subprocess.Popen(
            command,
            env=peer_environ(os.environ, setup.threads),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            first_token_s = _wait_for_first_token(f"http://127.0.0.1:{port}", server, log)
            yield Server(
                url=f"http://127.0.0.1:{port}",
                launch_to_token_s=first_token_s - started_s,
                processes=lambda: with_descendants([psutil.Process(server.pid)]),
            )
        finally:
            with _uninterrupted():
                _end(server)
                with contextlib.suppress(ProcessLookupError):  # engine or workers that outlived their server
                    os.killpg(server.pid, signal.SIGKILL)


def peer_setup(ours: Server) -> PeerSetup:
    """Read from our running server what the peer must have too. Raises ServerError when it cannot be found."""
    model_path = httpx.get(f"{ours.url}/v1/models", trust_env=False).raise_for_status().json()["data"][0]["root"]
    for process in ours.processes():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if all(name in environ for name in THREADS_ENV):
                return PeerSetup(model_path=model_path, threads={name: environ[name] for name in THREADS_ENV})
    raise ServerError(f"no process of our server has {' and '.join(THREADS_ENV)} in its environment")


def configuration(model: str, tensor_parallel: int) -> dict[str, Any]:
    """Our configuration file.

    The cluster has a GPU for each core, since its GPUs share out the threads: each worker gets one. Workers with more
    threads, which wait for each other at barriers, would compete with the engine core that polls for their answers, and
    either server would now and then be ten times slower.
    """
    gpus = max(tensor_parallel, min(MOST_GPUS, os.cpu_count() or 1))
    memory_gib = psutil.virtual_memory().total / 2**30 / tensor_parallel
    return {
        "models": [
            {"name": SERVED_NAME, "source": model, "shape": f"tp{tensor_parallel}", "engine": dict(ENGINE)},
        ],
        "cluster": {
            "kind": "simulated",
            "islands": 1,
            "gpus_per_island": gpus,
            "gpu_memory_gib": round(memory_gib, 3),
        },
        "control": {"port": _free_port()},
    }


def peer_flags(model_path: str, tensor_parallel: int) -> list[str]:
    """The same on the command line of vLLM's server."""
    flags = [f"--model={model_path}", f"--served-model-name={SERVED_NAME}"]
    for name, value in ENGINE.items():
        flag = name.replace("_", "-")
        match value:
            case True:
                flags.append(f"--{flag}")
            case False:
                flags.append(f"--no-{flag}")
            case _:
                flags.append(f"--{flag}={value}")
    if tensor_parallel > 1:
        flags += [f"--tensor-parallel-size={tensor_parallel}", "--distributed-executor-backend=mp"]
    return flags


def peer_environ(environ: Mapping[str, str], threads: Mapping[str, str]) -> dict[str, str]:
    """The peer's environment: ours, and in what the engine reads the same as in our simulated cluster.

    With VLLM_ENABLE_V1_MULTIPROCESSING=0 the peer's only rank runs in the engine core, as ours does and as both do on
    a GPU. Else the engine core would spend a core on waiting for it (vllm/platforms/cpu.py:335), and the peer would
    be measured slower than it is.
    """
    kept = {name: value for name, value in environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    return {**kept, **threads, "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def _wait_for_first_token(url: str, server: "subprocess.Popen[bytes]", log: Path) -> float:
    """Return when the first token arrived, on the clock of ``time.perf_counter``."""
    deadline_s = time.perf_counter() + START_TIMEOUT_S
    while not _is_healthy(url):
        if server.poll() not in (None, 0):
            raise ServerError(f"the server ended with exit code {server.returncode}:\n{_end_of(log)}")
        if time.perf_counter() > deadline_s:
            raise ServerError(f"the server was not ready after {START_TIMEOUT_S:g} s:\n{_end_of(log)}")
        time.sleep(POLL_S)
    (sample,) = asyncio.run(run_load(url, SERVED_NAME, FIRST_REQUEST))
    if sample.error is not None or sample.ttft_s is None:
        raise ServerError(f"the first request failed: {sample.error}\n{_end_of(log)}")
    return sample.sent_s + sample.ttft_s


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave a server behind that the first was about to end."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
