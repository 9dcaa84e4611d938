"""`archipelago serve`, `status` and `stop`: what is started, asked and ended, in order."""

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.exceptions import RayError

from deployments import fleet, local_cluster, run_record
from deployments.check import Checked
from deployments.config import ClusterConfig, Config
from deployments.config import LocalCluster as LocalClusterConfig
from deployments.config import RayCluster as RayClusterConfig
from deployments.config import SimulatedCluster as SimulatedClusterConfig
from deployments.fleet import FleetPlan
from deployments.gpu_memory import GpuMemoryUnknownError, gpu_memory_bytes
from deployments.islands import Inventory, NoGpusError, inventory
from deployments.local_cluster import ClusterStartError, LocalCluster
from deployments.placing import place_replicas
from deployments.replica import ReplicaReport
from deployments.run_record import RunRecord
from deployments.tiny_models import cache_root, make_model

GIB = 2**30
POLL_S = 0.25
CONNECT_TIMEOUT_S = 5.0
Say = Callable[[str], None]


class LaunchError(Exception):
    """One sentence for the user: what stood in the way, and what to do."""


def serve(checked: Checked, record_path: Path, environ: Mapping[str, str], say: Say) -> RunRecord:
    """Start everything a checked configuration asks for; returns when requests are answered.

    Whatever was started is ended again when a later step fails or the user interrupts.

    Raises:
        LaunchError: a step failed.
        ConfigError: the discovered cluster cannot hold what is configured.
    """
    if checked.source.made is not None:
        say(f"making the model {checked.source.made} (kept for the next time)")
        make_model(checked.source.made, cache_root(environ))
    record = None
    cluster = _start_cluster(checked.config.cluster, environ, say)
    try:
        _connect(cluster.address if cluster else _address(checked.config))
        where = _inventory(checked.config)
        plan = fleet_plan(checked, where)
        record = _record(plan, cluster)
        run_record.write(record_path, record)
        _deploy(plan, where, say)
    except BaseException as error:
        say("taking back what was started")
        with _undisturbed():
            _take_back(cluster, record, record_path)
        if isinstance(error, fleet.FleetStartError | NoGpusError | GpuMemoryUnknownError | RayError):
            raise LaunchError(str(error)) from error
        raise
    finally:
        ray.shutdown()
    return record


def stop(record_path: Path, say: Say) -> bool:
    """End what `serve` started, and nothing else; False when nothing was running."""
    record = run_record.read(record_path)
    if record is None:
        return False
    say(f"stopping {record.model}")
    if record.cluster is not None:
        say(f"{local_cluster.stop(record.cluster)} processes have ended")
    elif not _is_reachable(record.ray_address):
        say(f"the Ray cluster at {record.ray_address} is gone, and the deployment with it")
    else:
        with _connected(record.ray_address):
            say(f"draining {len(record.replicas)} replicas, for {record.drain_timeout_s:g} s at the most")
            fleet.delete((record.ingress, *record.replicas), record.drain_timeout_s)
    record_path.unlink(missing_ok=True)
    return True


def status(record_path: Path) -> tuple[RunRecord, dict[str, ReplicaReport | str]] | None:
    """Ask every replica of the running deployment where it is; None when nothing is running."""
    record = run_record.read(record_path)
    if record is None or not run_record.is_alive(record):
        return None
    with _connected(record.ray_address):
        return record, fleet.reports(record.replicas)


def is_serving(record: RunRecord) -> bool:
    """Whether the endpoint answers requests now."""
    return run_record.health(record.url) == httpx.codes.OK


def fleet_plan(checked: Checked, where: Inventory) -> FleetPlan:
    """Seat the replicas on the cluster that is really there. Raises ConfigError where they do not fit."""
    config, model = checked.config, checked.config.model
    placed = place_replicas(model, checked.shape, checked.model, where.cluster)
    engine_args: dict[str, Any] = {**model.engine, "served_model_name": model.name}
    if model.reasoning_parser is not None:
        engine_args["reasoning_parser"] = model.reasoning_parser
    frontend_args = {
        "chat_template": model.chat_template,
        "tool_call_parser": model.tool_call_parser,
        "enable_auto_tool_choice": model.tool_call_parser is not None,
    }
    return FleetPlan(
        model=model.name,
        source=checked.source.location,
        layouts=placed.layouts,
        engine_args=engine_args,
        frontend_args=frontend_args,
        host=config.endpoint.host,
        port=config.endpoint.port,
        ingresses=config.endpoint.ingresses,
        start_timeout_s=config.limits.start_timeout_s,
        drain_timeout_s=config.limits.drain_timeout_s,
        step_timeout_s=config.limits.step_timeout_s,
    )


def _start_cluster(config: ClusterConfig, environ: Mapping[str, str], say: Say) -> LocalCluster | None:
    try:
        match config:
            case SimulatedClusterConfig(islands=islands, gpus_per_island=gpus):
                say(f"starting a Ray cluster of {islands} simulated nodes with {gpus} GPUs each")
                return local_cluster.start_simulated(islands, gpus, environ)
            case LocalClusterConfig():
                say("starting Ray on the GPUs of this machine")
                return local_cluster.start(environ)
            case RayClusterConfig():
                return None
    except ClusterStartError as error:
        raise LaunchError(str(error)) from error


def _inventory(config: Config) -> Inventory:
    ray_nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    if isinstance(config.cluster, SimulatedClusterConfig):
        memory_bytes = dict.fromkeys((node["NodeID"] for node in ray_nodes), int(config.cluster.gpu_memory_gib * GIB))
    else:
        memory_bytes = gpu_memory_bytes(ray_nodes)
    return inventory(ray_nodes, memory_bytes)


def _deploy(plan: FleetPlan, where: Inventory, say: Say) -> None:
    for name, layout in zip(plan.replica_names, plan.layouts, strict=True):
        islands = ", ".join(sorted({seat.island for seat in layout.seats}))
        say(f"starting {name}: {layout.shape.gpus} workers on {islands}")
    fleet.deploy(plan, where)
    fleet.wait_until_running(plan, lambda name, state: say(f"{name} is {state}"))
    deadline_s = time.monotonic() + plan.start_timeout_s
    while run_record.health(url_of(plan)) != httpx.codes.OK:
        if time.monotonic() > deadline_s:
            raise LaunchError(f"{url_of(plan)}/health did not turn healthy within {plan.start_timeout_s:g} s")
        time.sleep(POLL_S)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Do not let a second Ctrl-C leave half of it running."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_back(cluster: LocalCluster | None, record: RunRecord | None, record_path: Path) -> None:
    if cluster is not None:
        local_cluster.stop(cluster)
    elif record is not None:
        fleet.delete((record.ingress, *record.replicas), drain_timeout_s=0)
    record_path.unlink(missing_ok=True)


def _record(plan: FleetPlan, cluster: LocalCluster | None) -> RunRecord:
    return RunRecord(
        ray_address=ray.get_runtime_context().gcs_address,
        cluster=cluster,
        model=plan.model,
        url=url_of(plan),
        ingress=plan.ingress_name,
        replicas=plan.replica_names,
        drain_timeout_s=plan.drain_timeout_s,
    )


def url_of(plan: FleetPlan) -> str:
    """Where a client on this machine finds the endpoint."""
    host = "127.0.0.1" if plan.host == "0.0.0.0" else plan.host
    return f"http://{host}:{plan.port}"


def _address(config: Config) -> str:
    return config.cluster.address if isinstance(config.cluster, RayClusterConfig) else "auto"


def _connect(address: str) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    refusal = LaunchError(f"cluster.address: no Ray cluster answers at {address!r}; start one with `ray start --head`")
    if address != "auto" and not _is_reachable(address):  # ray.init would try for minutes
        raise refusal
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise refusal from error


def _is_reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    _connect(address)
    try:
        yield
    finally:
        ray.shutdown()
