"""Where a shape could stand: the parts of a cluster that are alike, and which links its groups would cross there."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from placement.clusters.hardware import Cluster, ClusterError, Gpu, GpuKind, Links, Node
from placement.clusters.machines import default_links, gpu_kinds, spec_of
from placement.collectives import Calibration, Group
from placement.cost.work import Groups
from placement.shape import Shape

AS_BUILT = Calibration()  # no factors: what the links' datasheets and public timings say


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Nodes with the same GPUs, links and island size.

    `island_gpus` share the island link; `machine_gpus` reach each other without the network. `kind` is the datasheet.
    """

    nodes: tuple[Node, ...]
    gpu: Gpu
    kind: GpuKind
    links: Links
    island_gpus: int
    machine_gpus: int
    usd_per_gpu_hour: float | None

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def cluster(self) -> Cluster:
        return Cluster(nodes=self.nodes)


def regions(cluster: Cluster) -> tuple[Region, ...]:
    """The parts of `cluster` that are alike, largest first. Raises `ClusterError` for a GPU nothing is known of."""
    alike: dict[tuple[Gpu, Links, int, float | None], list[Node]] = {}
    machines: dict[str, int] = {}
    for island in cluster.islands.values():
        size = sum(node.gpus for node in island)
        for node in island:
            links = node.links or default_links(node.gpu)
            alike.setdefault((node.gpu, links, size, node.usd_per_gpu_hour), []).append(node)
            machines[node.machine_name] = machines.get(node.machine_name, 0) + node.gpus
    found = [
        Region(
            nodes=tuple(nodes),
            gpu=gpu,
            kind=_datasheet(gpu),
            links=links,
            island_gpus=size,
            machine_gpus=max(machines[node.machine_name] for node in nodes),
            usd_per_gpu_hour=usd,
        )
        for (gpu, links, size, usd), nodes in alike.items()
    ]
    return tuple(sorted(found, key=lambda region: (-region.gpus, region.gpu.name)))


def groups(shape: Shape, region: Region, calibration: Calibration = AS_BUILT) -> Groups:
    """Who talks to whom when ranks fill islands in order, tensor-parallel groups first."""

    def group(ranks: int, span_gpus: int) -> Group:
        return filled_group(ranks, span_gpus, region, calibration)

    rank_gpus = shape.tp * shape.pp
    return Groups(
        tensor=group(shape.tp, shape.tp),
        experts=group(shape.tp * shape.dp, rank_gpus * shape.dp if shape.dp > 1 else shape.tp),
        boundaries=tuple(_boundaries(shape, region, group(2, 1), group(2, min(rank_gpus, 2 * region.island_gpus)))),
    )


def filled_group(ranks: int, span_gpus: int, region: Region, calibration: Calibration = AS_BUILT) -> Group:
    """`ranks` GPUs spread over `span_gpus` that fill the islands of `region` in order."""
    domain = max(region.island_gpus, region.machine_gpus)
    machines = min(ranks, math.ceil(span_gpus / domain))
    return Group(
        ranks=ranks,
        islands=max(machines, min(ranks, math.ceil(span_gpus / region.island_gpus))),
        machines=machines,
        links=region.links,
        gpu=region.kind.kind,
        calibration=calibration,
    )


def _boundaries(shape: Shape, region: Region, near: Group, far: Group) -> Iterable[tuple[Group, int]]:
    """Stage boundaries inside an island, and those that leave one."""
    leaving = min(shape.pp - 1, math.ceil(shape.tp * shape.pp / region.island_gpus) - 1)
    return [(near, shape.pp - 1 - leaving), (far, leaving)]


def _datasheet(gpu: Gpu) -> GpuKind:
    kind = spec_of(gpu)
    if kind is None:
        raise ClusterError(
            f"GPU {gpu.name!r} is not known; give one of {', '.join(sorted(gpu_kinds()))}, or its datasheet "
            "(memory, memory_bandwidth, flops)."
        )
    return kind
