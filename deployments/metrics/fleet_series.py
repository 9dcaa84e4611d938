"""What the controller knows of cluster and fleets, as Prometheus series. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.control.wire import ClusterView, FleetView, Overview, ReplicaPhase

PREFIX = "archipelago_"


def exposition(overview: Overview) -> tuple[bytes, str]:
    """The series as text for Prometheus, and the text's media type."""
    return generate_latest(_Fixed(fleet_series(overview))), CONTENT_TYPE_LATEST


def fleet_series(overview: Overview) -> tuple[Metric, ...]:
    """All series of one moment."""
    return (*_of_cluster(overview.cluster), *_of_fleets(overview.fleets))


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_cluster(cluster: ClusterView) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{PREFIX}cluster_gpus", "GPUs of all nodes.", cluster.gpus)
    free_text = "GPUs that nothing sits on, without those of nodes that are about to go."
    yield GaugeMetricFamily(f"{PREFIX}cluster_free_gpus", free_text, cluster.free_gpus)
    gpus = GaugeMetricFamily(f"{PREFIX}island_gpus", "GPUs of an island.", labels=["island"])
    free = GaugeMetricFamily(f"{PREFIX}island_free_gpus", free_text, labels=["island"])
    for island in cluster.islands:
        nodes = [node for node in cluster.nodes if node.island == island]
        gpus.add_metric([island], sum(node.gpus for node in nodes))
        free.add_metric([island], sum(node.free_gpus for node in nodes if not node.draining))
    yield from (gpus, free)


def _of_fleets(fleets: Iterable[FleetView]) -> Iterator[Metric]:
    version = GaugeMetricFamily(f"{PREFIX}fleet_version", "Goes up with every target.", labels=["model"])
    gpus = GaugeMetricFamily(f"{PREFIX}fleet_gpus", "GPUs that replicas hold, in any phase.", labels=["model"])
    replicas = GaugeMetricFamily(f"{PREFIX}fleet_replicas", "Replicas by phase.", labels=["model", "shape", "phase"])
    desired = GaugeMetricFamily(f"{PREFIX}fleet_desired_replicas", "The last target.", labels=["model", "shape"])
    start = GaugeMetricFamily(f"{PREFIX}replica_start_seconds", "The last start.", labels=["model", "shape"])
    ended = CounterMetricFamily(f"{PREFIX}transitions", "Changes that ended.", labels=["model", "way", "outcome"])
    for fleet in fleets:
        version.add_metric([fleet.model], fleet.version)
        gpus.add_metric([fleet.model], sum(len(replica.seats) for replica in fleet.replicas))
        found = Counter((replica.shape, replica.phase) for replica in fleet.replicas)
        shapes = {replica.shape for replica in fleet.replicas} | fleet.desired_pools.keys()
        for shape in sorted(shapes):
            desired.add_metric([fleet.model, shape], fleet.desired_pools.get(shape, 0))
            for phase in get_args(ReplicaPhase):
                replicas.add_metric([fleet.model, shape, phase], found[shape, phase])
        for shape, start_s in fleet.start_s.items():
            start.add_metric([fleet.model, shape], start_s)
        for one in fleet.transitions:
            ended.add_metric([fleet.model, one.way, one.outcome], one.count)
    yield from (version, gpus, replicas, desired, start, ended)
