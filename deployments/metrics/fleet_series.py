"""What the controller knows of cluster and fleets, as Prometheus series. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.control.wire import ClusterView, FleetPhase, FleetView, Outcome, Overview, ReplicaPhase, Way
from deployments.metrics.islands_series import PREFIX, island_series


def exposition(overview: Overview) -> tuple[bytes, str]:
    """The series as text for Prometheus, and the text's media type."""
    return generate_latest(_Fixed(fleet_series(overview))), CONTENT_TYPE_LATEST


def fleet_series(overview: Overview) -> tuple[Metric, ...]:
    """All series of one moment."""
    return (*_of_cluster(overview.cluster), *island_series(overview), *_of_fleets(overview.fleets))


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_cluster(cluster: ClusterView) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{PREFIX}cluster_gpus", "GPUs of all nodes.", cluster.gpus)
    free_text = "GPUs that nothing sits on, without those of nodes that are about to go."
    yield GaugeMetricFamily(f"{PREFIX}cluster_free_gpus", free_text, cluster.free_gpus)


def _of_fleets(fleets: Sequence[FleetView]) -> Iterator[Metric]:
    yield from _of_targets(fleets)
    gpus = GaugeMetricFamily(f"{PREFIX}fleet_gpus", "GPUs that replicas hold, in any phase.", labels=["model"])
    replicas = GaugeMetricFamily(f"{PREFIX}fleet_replicas", "Replicas by phase.", labels=["model", "shape", "phase"])
    for fleet in fleets:
        gpus.add_metric([fleet.model], sum(len(replica.seats) for replica in fleet.replicas))
        found = Counter((replica.shape, replica.phase) for replica in fleet.replicas)
        for shape in _shapes(fleet):
            for phase in get_args(ReplicaPhase):
                replicas.add_metric([fleet.model, shape, phase], found[shape, phase])
    yield from (gpus, replicas)
    yield from _of_changes(fleets)


def _of_targets(fleets: Iterable[FleetView]) -> Iterator[Metric]:
    version = GaugeMetricFamily(f"{PREFIX}fleet_version", "Goes up with every target.", labels=["model"])
    desired = GaugeMetricFamily(f"{PREFIX}fleet_desired_replicas", "The last target.", labels=["model", "shape"])
    effective = GaugeMetricFamily(
        f"{PREFIX}fleet_effective_replicas", "What the hardware allows of the target.", labels=["model", "shape"]
    )
    for fleet in fleets:
        version.add_metric([fleet.model], fleet.version)
        for shape in _shapes(fleet):
            desired.add_metric([fleet.model, shape], fleet.desired_pools.get(shape, 0))
            effective.add_metric([fleet.model, shape], fleet.effective_pools.get(shape, 0))
    yield from (version, desired, effective)


def _of_changes(fleets: Iterable[FleetView]) -> Iterator[Metric]:
    phases = GaugeMetricFamily(
        f"{PREFIX}fleet_phase", "1 at the phase that the fleet is in.", labels=["model", "phase"]
    )
    running = GaugeMetricFamily(
        f"{PREFIX}repartition_running_seconds",
        "For how long a repartition has run; 0 while none does.",
        labels=["model"],
    )
    stall = GaugeMetricFamily(
        f"{PREFIX}repartition_announced_stall_seconds",
        "Longest stop of a stream that the repartition under way has announced; 0 while none runs.",
        labels=["model"],
    )
    start = GaugeMetricFamily(f"{PREFIX}replica_start_seconds", "The last start.", labels=["model", "shape"])
    ended = CounterMetricFamily(f"{PREFIX}transitions", "Changes that ended.", labels=["model", "way", "outcome"])
    for fleet in fleets:
        for phase in get_args(FleetPhase):
            phases.add_metric([fleet.model, phase], phase == fleet.phase)
        running.add_metric([fleet.model], fleet.repartition.running_s if fleet.repartition else 0)
        stall.add_metric([fleet.model], fleet.repartition.announced_stall_s if fleet.repartition else 0)
        for shape, start_s in fleet.start_s.items():
            start.add_metric([fleet.model, shape], start_s)
        counts = {(one.way, one.outcome): one.count for one in fleet.transitions}
        # Those that never happened too: `increase` does not see a series that begins at 1.
        for way, outcome in product(get_args(Way), get_args(Outcome)):
            ended.add_metric([fleet.model, way, outcome], counts.get((way, outcome), 0))
    yield from (phases, running, stall, start, ended)


def _shapes(fleet: FleetView) -> list[str]:
    shapes = {replica.shape for replica in fleet.replicas} | fleet.desired_pools.keys() | fleet.effective_pools.keys()
    return sorted(shapes)
