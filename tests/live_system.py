"""A whole system as a user has it, each part a process: a served fleet, Prometheus, the autoscaler, and its clients.

The model is one whose sizes the planner knows with the tokenizer of a tiny one, so that nothing is downloaded.
"""

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from running_system import until

from deployments import run_record
from deployments.control.client import ControlClient, ControlError
from deployments.tiny_models import VOCAB_SIZE, cache_root, make_model
from loadtests.stream_client import Sample, stream_completion
from placement.models import catalogue

ARCHIPELAGO = Path(sys.executable).with_name("archipelago")
SCRAPE_S = 2
START_TIMEOUT_S = 480
REQUEST_TIMEOUT_S = 180
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Requests that arrive independently of each other, for `length_s`; lengths are within a fifth of those given."""

    length_s: float
    requests_per_s: float
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request and its answer. Times are seconds since the clients began; TTFT is from when it was due."""

    due_s: float
    prompt_tokens: int
    answer_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The fleet at one moment: replicas by shape that serve, what is wanted, and GPUs held in any phase."""

    at_s: float
    serving: Mapping[str, int]
    desired: Mapping[str, int]
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Where everything is. `folder` is the working directory of all processes."""

    folder: Path
    environ: Mapping[str, str] = field(repr=False)
    model: str
    url: str
    control: ControlClient
    prometheus_url: str

    def archipelago(self, *arguments: str) -> str:
        """What a command of ours prints; fails where it does."""
        done = _run([ARCHIPELAGO, *arguments], self.folder, self.environ)
        return done.stdout


@dataclass
class Watch:
    """Looks at the fleet again and again, in a thread."""

    live: Live
    began_s: float
    has_enough: Callable[[], bool]
    looks: list[Look] = field(default_factory=list)
    is_enough: bool = False
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.is_over.wait(LOOK_EVERY_S):
            self.is_enough = self.has_enough()
            try:
                view = self.live.control.fleet(self.live.model)
            except ControlError:
                continue
            self.looks.append(
                Look(
                    at_s=time.time() - self.began_s,
                    serving=dict(Counter(one.shape for one in view.replicas if one.phase == "serving")),
                    desired=dict(view.desired_pools),
                    gpus=sum(len(one.seats) for one in view.replicas),
                )
            )


def model_directory(folder: Path, hub_id: str) -> Path:
    """A directory with the sizes of a known model, called like it, and the tokenizer of a tiny one."""
    config = catalogue.config(hub_id)
    assert config is not None
    tiny = make_model("tiny-llama", cache_root(os.environ))
    directory = folder / hub_id.rpartition("/")[2]
    shutil.copytree(tiny, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    (directory / "config.json").write_text(json.dumps(dict(config) | {"vocab_size": VOCAB_SIZE}))
    return directory


@contextmanager
def live_system(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], prometheus: str
) -> Iterator[Live]:
    """Everything started, and stopped again at the end.

    Args:
        folder: an empty one.
        config: what is served, as `archipelago serve` takes it. Ports are chosen here.
        settings: of the autoscaler. Where Prometheus is is filled in here.
        prometheus: its program.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ARCHIPELAGO_", "RAY_"))}
    ports = dict(zip(("endpoint", "control", "prometheus"), quiet_ports(), strict=False))
    served = dict(config) | {name: {"host": "127.0.0.1", "port": ports[name]} for name in ("endpoint", "control")}
    watching = dict(settings) | {
        "prometheus": {"url": f"http://127.0.0.1:{ports['prometheus']}", "scrape_interval_s": SCRAPE_S}
    }
    _write(folder / "serve.yaml", served)
    _write(folder / "autoscaler.yaml", watching)
    try:
        _run([ARCHIPELAGO, "serve", "serve.yaml"], folder, environ)
        record = run_record.read(folder / ".archipelago" / "run.json")
        assert record is not None
        token = folder / ".archipelago" / "control-token"
        _write(folder / "prometheus.yml", _scraping(ports["control"], token))
        scraper = [prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=metrics"]
        with (
            ControlClient(record.control_url, run_record.read_token(token)) as control,
            _process(
                folder, environ, "prometheus", [*scraper, f"--web.listen-address=127.0.0.1:{ports['prometheus']}"]
            ),
            _process(folder, environ, "autoscaler", [str(ARCHIPELAGO), "autoscale"]),
        ):
            until(lambda: "watching" in (folder / "autoscaler.log").read_text(), "the autoscaler watches", timeout_s=30)
            (model,) = record.models
            yield Live(
                folder=folder,
                environ=environ,
                model=model.name,
                url=model.url,
                control=control,
                prometheus_url=watching["prometheus"]["url"],
            )
    finally:
        _run([ARCHIPELAGO, "stop"], folder, environ)


def quiet_ports() -> Iterator[int]:
    """Ports that nothing listens on, in no order. Neither Ray's workers (10002 to 19999) nor the system's choice for
    whoever asks for any (from 32768 on) take them in the minute until they are listened on."""
    for port in random.sample(range(20000, 32000), 12000):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            yield port


def play(
    live: Live, phases: Sequence[Phase], seed: int, *, has_enough: Callable[[], bool]
) -> tuple[float, list[Asked], list[Look]]:
    """Send what the phases say until somebody has enough, and watch the fleet; when it began is since the epoch."""
    watch = Watch(live, time.time(), has_enough)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        asked = asyncio.run(_play(watch, phases, random.Random(seed)))
    finally:
        watch.is_over.set()
        thread.join()
    return watch.began_s, asked, watch.looks


async def _play(watch: Watch, phases: Sequence[Phase], rng: random.Random) -> list[Asked]:
    limits = httpx.Limits(max_connections=None)
    began_s = time.perf_counter()
    async with (
        httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        due_s = end_s = 0.0
        for phase in phases:
            end_s += phase.length_s
            while (due_s := due_s + rng.expovariate(phase.requests_per_s)) < end_s and not watch.is_enough:
                await asyncio.sleep(max(0.0, began_s + due_s - time.perf_counter()))
                tasks.append(group.create_task(_ask(client, watch.live, phase, began_s, due_s, rng)))
            due_s = end_s
    return [task.result() for task in tasks]


async def _ask(
    client: httpx.AsyncClient, live: Live, phase: Phase, began_s: float, due_s: float, rng: random.Random
) -> Asked:
    prompt_tokens, answer_tokens = (
        round(tokens * rng.uniform(0.8, 1.2)) for tokens in (phase.prompt_tokens, phase.answer_tokens)
    )
    prompt = rng.choices(range(3, VOCAB_SIZE), k=prompt_tokens)
    body = {"model": live.model, "prompt": prompt, "max_tokens": answer_tokens, "ignore_eos": True}
    found: Sample = await stream_completion(client, f"{live.url}/v1/completions", body)
    short = f"{found.tokens} tokens instead of {answer_tokens}" if found.tokens != answer_tokens else None
    return Asked(
        due_s=due_s,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        ttft_s=None if found.ttft_s is None else found.sent_s + found.ttft_s - began_s - due_s,
        tpot_s=found.tpot_s,
        error=found.error or short,
    )


def _scraping(control_port: int, token: Path) -> dict[str, Any]:
    """As deployments/metrics/README.md says."""
    access = {"type": "Bearer", "credentials_file": str(token)}
    control = f"127.0.0.1:{control_port}"
    found = {"url": f"http://{control}/v1/metrics-targets", "authorization": access, "refresh_interval": "5s"}
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s"},
        "scrape_configs": [
            {"job_name": "archipelago-ingress", "honor_labels": True, "http_sd_configs": [found]},
            {"job_name": "archipelago-control", "authorization": access, "static_configs": [{"targets": [control]}]},
        ],
    }


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False))


def _run(command: Sequence[Any], folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run to the end. What it prints is in the error."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


@contextmanager
def _process(folder: Path, environ: Mapping[str, str], name: str, command: Sequence[str]) -> Iterator[None]:
    """A process with its output in `name`.log, ended with SIGTERM."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=dict(environ), stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
            assert process.poll() is None, f"{name} ended: {(folder / f'{name}.log').read_text()[-4000:]}"
        finally:
            process.terminate()
            process.wait(timeout=30)
