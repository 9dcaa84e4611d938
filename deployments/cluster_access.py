"""The Ray cluster of a configuration: started on this machine or found, connected to, and what GPUs it has."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

from deployments import local_cluster
from deployments.config import ClusterConfig, Config
from deployments.config import LocalCluster as LocalClusterConfig
from deployments.config import RayCluster as RayClusterConfig
from deployments.config import SimulatedCluster as SimulatedClusterConfig
from deployments.gpu_memory import gpu_memory_bytes
from deployments.islands import Inventory, inventory
from deployments.local_cluster import ClusterStartError, LocalCluster

GIB = 2**30
CONNECT_TIMEOUT_S = 5.0
Say = Callable[[str], None]


class LaunchError(Exception):
    """One sentence for the user: what stood in the way, and what to do."""


def given_memory_bytes(cluster: ClusterConfig) -> int | None:
    """The memory of a GPU that is only simulated; None for real ones, whose driver is asked."""
    return int(cluster.gpu_memory_gib * GIB) if isinstance(cluster, SimulatedClusterConfig) else None


def start_cluster(config: ClusterConfig, environ: Mapping[str, str], say: Say) -> LocalCluster | None:
    """Start Ray on this machine, unless a running cluster is configured. Raises LaunchError."""
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


def discover(config: Config) -> Inventory:
    """What the cluster has that is connected to. Raises NoGpusError or GpuMemoryUnknownError."""
    ray_nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    given_bytes = given_memory_bytes(config.cluster)
    if given_bytes is not None:
        return inventory(ray_nodes, dict.fromkeys((node["NodeID"] for node in ray_nodes), given_bytes))
    return inventory(ray_nodes, gpu_memory_bytes(ray_nodes))


def address_of(config: Config) -> str:
    """Where the configured cluster is, for Ray."""
    return config.cluster.address if isinstance(config.cluster, RayClusterConfig) else "auto"


def connect(address: str) -> None:
    """Make this process a driver of a cluster. Raises LaunchError where none answers."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    refusal = LaunchError(f"cluster.address: no Ray cluster answers at {address!r}; start one with `ray start --head`")
    if address != "auto" and not is_reachable(address):  # ray.init would try for minutes
        raise refusal
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise refusal from error


def is_reachable(address: str) -> bool:
    """Whether anything listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def connected(address: str, started: LocalCluster | None) -> Iterator[None]:
    """Be a driver of a cluster for a while, of one that was started here or of another. Raises LaunchError."""
    if started is not None:
        local_cluster.present_token(started)
    connect(address)
    try:
        yield
    finally:
        ray.shutdown()
