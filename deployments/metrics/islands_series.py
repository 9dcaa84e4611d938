"""What sits on the islands and what crosses between them, as Prometheus series. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from prometheus_client.core import GaugeMetricFamily, Metric

from deployments.control.wire import ClusterView, FleetView, Overview, ReplicaView
from placement import Shape

PREFIX = "archipelago_"
_FREE_TEXT = "GPUs that nothing sits on, without those of nodes that are about to go."


def island_series(overview: Overview) -> Iterator[Metric]:
    """GPUs by island: all, free, used by whom, and stranded; nodes that go; what crosses between islands."""
    gpus = GaugeMetricFamily(f"{PREFIX}island_gpus", "GPUs of an island.", labels=["island"])
    free = GaugeMetricFamily(f"{PREFIX}island_free_gpus", _FREE_TEXT, labels=["island"])
    stranded_text = "Free GPUs that no wanted shape can use: too few for its tensor-parallel group, or for a replica."
    stranded = GaugeMetricFamily(f"{PREFIX}island_stranded_gpus", stranded_text, labels=["island"])
    free_gpus = free_by_island(overview.cluster)
    useless = stranded_gpus(free_gpus, wanted_shapes(overview.fleets))
    for island in overview.cluster.islands:
        gpus.add_metric([island], sum(node.gpus for node in overview.cluster.nodes if node.island == island))
        free.add_metric([island], free_gpus[island])
        stranded.add_metric([island], useless[island])
    yield from (gpus, free, stranded)
    yield _draining(overview.cluster)
    yield _used(overview.fleets)
    yield _crossings(overview.fleets)


def free_by_island(cluster: ClusterView) -> dict[str, int]:
    """GPUs that a replica could be put on now."""
    free = dict.fromkeys(cluster.islands, 0)
    for node in cluster.nodes:
        free[node.island] += 0 if node.draining else node.free_gpus
    return free


def wanted_shapes(fleets: Iterable[FleetView]) -> frozenset[Shape]:
    """Those that a fleet has a target of."""
    return frozenset(Shape.parse(text) for fleet in fleets for text in fleet.desired_pools)


def stranded_gpus(free_gpus: dict[str, int], shapes: frozenset[Shape]) -> dict[str, int]:
    """Free GPUs of each island that would stay free whichever wanted shape got one more replica after another.

    A tensor-parallel group stays inside an island, so what is left of the free GPUs after whole groups is of no use to
    a shape; all of them, where the cluster has fewer groups than one replica needs. The shape that can use most counts.
    """

    def left(shape: Shape) -> dict[str, int]:
        groups = sum(free // shape.tp for free in free_gpus.values())
        fits = groups * shape.tp >= shape.gpus
        return {island: free % shape.tp if fits else free for island, free in free_gpus.items()}

    rests = [left(shape) for shape in shapes]
    return {island: min((rest[island] for rest in rests), default=0) for island in free_gpus}


def _draining(cluster: ClusterView) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}node_draining", "1 where a node will go and nothing new starts.", labels=["node", "island"]
    )
    for node in cluster.nodes:
        family.add_metric([node.name, node.island], node.draining)
    return family


def _used(fleets: Iterable[FleetView]) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}island_used_gpus",
        "GPUs of an island that replicas hold, in any phase.",
        labels=["island", "model", "shape"],
    )
    held = Counter(
        (seat.island, fleet.model, replica.shape)
        for fleet in fleets
        for replica in fleet.replicas
        for seat in replica.seats
    )
    for labels, count in sorted(held.items()):
        family.add_metric(list(labels), count)
    return family


def _crossings(fleets: Iterable[FleetView]) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}island_link_ranks",
        "Ranks on island `source` that hand what they computed to the next pipeline stage, on island `destination`.",
        labels=["source", "destination", "model", "shape"],
    )
    crossing = Counter(
        (*link, fleet.model, replica.shape)
        for fleet in fleets
        for replica in fleet.replicas
        for link in _links(replica)
    )
    for labels, count in sorted(crossing.items()):
        family.add_metric(list(labels), count)
    return family


def _links(replica: ReplicaView) -> Iterator[tuple[str, str]]:
    shape = Shape.parse(replica.shape)
    islands = [seat.island for seat in sorted(replica.seats, key=lambda seat: seat.rank)]
    for first in range(0, len(islands), shape.tp * shape.pp):  # of each data-parallel rank
        stages = _stages(islands[first : first + shape.tp * shape.pp], shape.tp)
        for stage, after in pairwise(stages):
            yield from (link for link in zip(stage, after, strict=False) if link[0] != link[1])


def _stages(islands: Sequence[str], tp: int) -> list[Sequence[str]]:
    return [islands[start : start + tp] for start in range(0, len(islands), tp)]
