"""A real Prometheus, and exporters whose traffic is known, for the tests of `autoscaling`."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import yaml
from prometheus_answers import SECONDS_BOUNDS, TOKENS_BOUNDS
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request: what it was and how it was answered."""

    replica: str
    shape: str
    input_tokens: int
    output_tokens: int
    hit_tokens: int
    ttft_s: float
    tpot_s: float
    queue_s: float = 0.0


@dataclass
class Traffic:
    """Requests that come evenly, the same ones in turn, since `since_s`; a restart counts from 0 again.

    `gauges` are running, waiting and KV usage of each replica.
    """

    model: str
    rate: float
    requests: tuple[Sent, ...] = ()
    gauges: Mapping[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict)
    refused_per_s: float = 0.0
    since_s: float = field(default_factory=time.time)

    def restart(self) -> None:
        """What a process does that starts anew."""
        self.since_s = time.time()

    def collect(self) -> Iterator[Metric]:
        elapsed_s = time.time() - self.since_s
        done = int(self.rate * elapsed_s)
        refused = int(self.refused_per_s * elapsed_s)
        ours, labels = ("model", "replica", "shape"), [self.model]
        yield _counter("archipelago_arrivals", ["model"], {(self.model,): done + refused})
        if refused:
            yield _counter("archipelago_refused", ["model", "code"], {(self.model, "429"): refused})
        for name, place in (("running_requests", 0), ("waiting_requests", 1), ("kv_cache_usage_ratio", 2)):
            gauge = GaugeMetricFamily(f"archipelago_replica_{name}", "", labels=ours)
            for replica, values in self.gauges.items():
                gauge.add_metric([*labels, *replica], values[place])
            yield gauge
        yield from self._of_replicas(done)
        yield from self._of_vllm(done)

    def _of_replicas(self, done: int) -> Iterator[Metric]:
        ours = ["model", "replica", "shape"]
        sums: dict[str, Callable[[Sent], float]] = {
            "requests": lambda sent: 1,
            "prompt_tokens": lambda sent: sent.input_tokens - sent.hit_tokens,
            "prefix_hit_tokens": lambda sent: sent.hit_tokens,
            "preemptions": lambda sent: 0,
        }
        on = {
            key: [sent if (sent.replica, sent.shape) == key else None for sent in self.requests] for key in self.gauges
        }
        for name, value in sums.items():
            totals: dict[tuple[str, ...], float] = {
                (self.model, *key): _sum([value(sent) if sent else 0.0 for sent in sents], done)
                for key, sents in on.items()
            }
            yield _counter(f"archipelago_replica_{name}", ours, totals)
        for name, duration in (("time_to_first_token", "ttft_s"), ("time_per_output_token", "tpot_s")):
            family = HistogramMetricFamily(f"archipelago_replica_{name}_seconds", "", labels=ours)
            for key, sents in on.items():
                values = [getattr(sent, duration) if sent else None for sent in sents]
                family.add_metric([self.model, *key], *_histogram(values, SECONDS_BOUNDS, done))
            yield family

    def _of_vllm(self, done: int) -> Iterator[Metric]:
        histograms = {
            "vllm:time_to_first_token_seconds": ("ttft_s", SECONDS_BOUNDS),
            "vllm:request_time_per_output_token_seconds": ("tpot_s", SECONDS_BOUNDS),
            "vllm:request_queue_time_seconds": ("queue_s", SECONDS_BOUNDS),
            "vllm:request_prompt_tokens": ("input_tokens", TOKENS_BOUNDS),
            "vllm:request_generation_tokens": ("output_tokens", TOKENS_BOUNDS),
        }
        for name, (attribute, bounds) in histograms.items():
            family = HistogramMetricFamily(name, "", labels=["model_name", "engine"])
            values = [getattr(sent, attribute) for sent in self.requests]
            family.add_metric([self.model, "0"], *_histogram(values, bounds, done))
            yield family
        for name, attribute in (("vllm:prompt_tokens", "input_tokens"), ("vllm:generation_tokens", "output_tokens")):
            total = _sum([getattr(sent, attribute) for sent in self.requests], done)
            yield _counter(name, ["model_name", "engine"], {(self.model, "0"): total})


@dataclass(frozen=True, slots=True, eq=False)
class _Exported(Collector):
    traffics: tuple[Traffic, ...]

    def collect(self) -> Iterator[Metric]:
        """One family of each name, as an exposition must have it."""
        families: dict[str, Metric] = {}
        for traffic in self.traffics:
            for family in traffic.collect():
                families.setdefault(family.name, family).samples.extend(
                    () if families.get(family.name) is family else family.samples
                )
        yield from families.values()


def _counter(name: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(name, "", labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _sum(cycle: list[float], done: int) -> float:
    """Of the first `done` values when the cycle repeats."""
    turns, rest = divmod(done, len(cycle)) if cycle else (0, 0)
    return turns * sum(cycle) + sum(cycle[:rest])


def _histogram(
    cycle: list[float | None], bounds: tuple[float, ...], done: int
) -> tuple[list[tuple[str, float]], float]:
    buckets = {
        f"{bound:g}": _sum([float(value is not None and value <= bound) for value in cycle], done) for bound in bounds
    }
    buckets["+Inf"] = _sum([float(value is not None) for value in cycle], done)
    return list(buckets.items()), _sum([value or 0.0 for value in cycle], done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """A Prometheus, the traffic of each model that it sees, and what takes the ingress of `doomed` away.

    `shared` is exported by that ingress and by the other one.
    """

    url: str
    traffic: dict[str, Traffic]
    stop_doomed: Callable[[], None]


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def exporter(*traffics: Traffic) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server of the traffics' series; gives its address, and what stops it before the end.

    It speaks the plain text format whatever it is asked for: prometheus_client 0.26 writes `vllm_` for `vllm:` in
    OpenMetrics (openmetrics/exposition.py:152), which Prometheus prefers.
    """
    registry = CollectorRegistry()
    registry.register(_Exported(traffics))
    metrics = make_wsgi_app(registry)
    server = make_server(
        "127.0.0.1",
        0,
        lambda environ, respond: metrics(environ | {"HTTP_ACCEPT": "text/plain"}, respond),
        handler_class=_Quiet,
    )
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    try:
        yield f"127.0.0.1:{server.server_port}", stop
    finally:
        if thread.is_alive():
            stop()


@contextmanager
def prometheus(
    binary: str, folder: Path, targets: Iterable[str] = (), *, deadline_s: float = 20.0
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Prometheus on a free port, that scrapes the targets every second; gives its URL and the process."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "ingress", "static_configs": [{"targets": list(targets)}]}],
    }
    folder.mkdir(exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        binary,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--storage.tsdb.retention.time=100y",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until(lambda: _is_ready(f"http://{address}"), "Prometheus is ready", deadline_s)
            yield f"http://{address}", process
        finally:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(holds: Callable[[], Any], what: str, deadline_s: float = 30.0) -> Any:
    """What `holds` gives once that is true."""
    end_s = time.monotonic() + deadline_s
    while not (found := holds()):
        assert time.monotonic() < end_s, f"after {deadline_s:g} s still not: {what}"
        time.sleep(0.1)
    return found
