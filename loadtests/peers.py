"""Starts the servers that ours is compared with: vLLM's own, and Ray's `ray.serve.llm`.

They get the same engine flags, the same model files and the same number of threads as ours. Only one server is up at a
time: an idle Ray cluster takes several percent of a core, and each loads hundreds of megabytes.
"""

import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
import yaml

from loadtests.server_memory import with_descendants
from loadtests.servers import (
    ENGINE,
    SERVED_NAME,
    Server,
    ServerError,
    end,
    free_port,
    uninterrupted,
    wait_for_first_token,
)

THREADS_ENV = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")
# What Ray is to count: each deployment of ray.serve.llm asks for a core of its own.
RAY_CORES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSetup:
    """What the peer copies from our running server: the model's files and the variables that set the threads."""

    model_path: str
    threads: Mapping[str, str]


Peer = Callable[[PeerSetup, int, Path], AbstractContextManager[Server]]


def peer_setup(ours: Server) -> PeerSetup:
    """Read from our running server what the peer must have too. Raises ServerError when it cannot be found."""
    model_path = httpx.get(f"{ours.url}/v1/models", trust_env=False).raise_for_status().json()["data"][0]["root"]
    for process in ours.processes():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if all(name in environ for name in THREADS_ENV):
                return PeerSetup(model_path=model_path, threads={name: environ[name] for name in THREADS_ENV})
    raise ServerError(f"no process of our server has {' and '.join(THREADS_ENV)} in its environment")


def vllm_server(setup: PeerSetup, tensor_parallel: int, folder: Path) -> AbstractContextManager[Server]:
    """Serve with vLLM's own API server; ``folder`` takes its log."""
    # The `vllm` command of the CPU distribution does not start; the module does.
    module = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    port = free_port()
    where = ("--host", "127.0.0.1", "--port", str(port))
    command = [*module, *where, *peer_flags(setup.model_path, tensor_parallel)]
    return _running(command, peer_environ(os.environ, setup.threads), port, folder / "vllm.log")


def ray_serve_llm(
    setup: PeerSetup, tensor_parallel: int, folder: Path, *, switches: Sequence[str] = ()
) -> AbstractContextManager[Server]:
    """Serve with `ray.serve.llm` on a Ray of its own; ``folder`` takes configuration and log.

    ``switches``: variables of Ray Serve that are set; it comes without any.

    Raises:
        ServerError: for more than one GPU, which it would have to find; or a package that it needs is missing.
    """
    if tensor_parallel > 1:
        raise ServerError(
            f"ray.serve.llm is compared with tp1 only, not with tp{tensor_parallel}: here are no GPUs for it"
        )
    if importlib.util.find_spec("pyarrow") is None:
        raise ServerError("ray.serve.llm needs pyarrow: .venv/bin/uv pip install --python .venv/bin/python pyarrow")
    port, config = free_port(), folder / "ray_serve_llm.yaml"
    config.write_text(yaml.safe_dump(llm_application(setup.model_path, port)))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
    counted = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": RAY_CORES}), "RAY_USAGE_STATS_ENABLED": "0"}
    env = peer_environ(os.environ, setup.threads) | counted | dict.fromkeys(switches, "1")
    return _running(command, env, port, folder / "ray_serve_llm.log")


# ray/serve/_private/constants.py and ray/llm/_internal/serve/constants.py: HAProxy in the place of Serve's own proxy, a
# replica that answers it itself, and what Ray recommends for throughput.
FASTEST = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "vLLM": vllm_server,
        "ray.serve.llm": ray_serve_llm,
        "serve-haproxy": functools.partial(ray_serve_llm, switches=FASTEST),
    }
)


@contextlib.contextmanager
def _running(command: Sequence[str], env: Mapping[str, str], port: int, log: Path) -> Iterator[Server]:
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        started_s = time.perf_counter()
        server = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            first_token_s = wait_for_first_token(url, server, log)
            yield Server(
                url=url,
                launch_to_token_s=first_token_s - started_s,
                processes=lambda: with_descendants([psutil.Process(server.pid)]),
            )
        finally:
            with uninterrupted():
                end(server)
                with contextlib.suppress(ProcessLookupError):  # engine or workers that outlived their server
                    os.killpg(server.pid, signal.SIGKILL)


def llm_application(model_path: str, port: int) -> dict[str, Any]:
    """The configuration of `serve run`. It is asked to run the only rank in the engine core, as ours does."""
    llm = {
        "model_loading_config": {"model_id": SERVED_NAME, "model_source": model_path},
        "engine_kwargs": {**ENGINE, "distributed_executor_backend": "uni"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
    }
    application = {
        "name": SERVED_NAME,
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [llm]},
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}


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
