"""Starts a server on this machine by its command line, and ends it: our own here, those beside it in `peers`."""

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


@contextlib.contextmanager
def archipelago(model: str, tensor_parallel: int, folder: Path) -> Iterator[Server]:
    """Serve with `archipelago serve` on a simulated cluster of one island; ``folder`` takes config, state and log."""
    command = Path(sys.executable).with_name("archipelago")
    config, log, state = folder / "archipelago.yaml", folder / "archipelago.log", folder / "state"
    config.write_text(yaml.safe_dump(configuration(model, tensor_parallel)))
    env = {**os.environ, STATE_DIR_ENV: str(state)}
    port = free_port()
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
            first_token_s = wait_for_first_token(f"http://127.0.0.1:{port}", serve, log)
            if serve.wait(STOP_TIMEOUT_S) != 0:  # it prints the placement and exits; the server stays
                raise ServerError(f"`archipelago serve` failed:\n{end_of(log)}")
            yield Server(
                url=f"http://127.0.0.1:{port}",
                launch_to_token_s=first_token_s - started_s,
                # Every process of the cluster inherits our state directory, or descends from one that does.
                processes=lambda: with_descendants(processes_with(STATE_DIR_ENV, str(state))),
            )
        finally:
            with uninterrupted():
                end(serve)
                subprocess.run([command, "stop"], env=env, stdout=output, stderr=subprocess.STDOUT, check=True)


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
        "control": {"port": free_port()},
    }


def wait_for_first_token(url: str, server: "subprocess.Popen[bytes]", log: Path) -> float:
    """Ask for a token as soon as models are listed; return when it arrived, on the clock of ``time.perf_counter``."""
    deadline_s = time.perf_counter() + START_TIMEOUT_S
    while not _lists_models(url):
        if server.poll() not in (None, 0):
            raise ServerError(f"the server ended with exit code {server.returncode}:\n{end_of(log)}")
        if time.perf_counter() > deadline_s:
            raise ServerError(f"the server was not ready after {START_TIMEOUT_S:g} s:\n{end_of(log)}")
        time.sleep(POLL_S)
    (sample,) = asyncio.run(run_load(url, SERVED_NAME, FIRST_REQUEST))
    if sample.error is not None or sample.ttft_s is None:
        raise ServerError(f"the first request failed: {sample.error}\n{end_of(log)}")
    return sample.sent_s + sample.ttft_s


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave a server behind that the first was about to end."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to end, and see to it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lists_models(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def end_of(log: Path) -> str:
    """What it printed last."""
    return log.read_text(errors="replace")[-2000:]


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
