"""How fast a GPU's links should be, from what was read of them; what could not be read comes from the presets. Pure."""

from collections.abc import Sequence
from itertools import combinations

from deployments.discovery.machine import FoundGpu, Machine
from placement import Gpu, Link
from placement.clusters.machines import default_links, gpu_kind, spec_of, typical_link

# One link in one direction: V100 to H200 have 25 GB/s, Blackwell 50. Drivers tell the rate on the wire (26.6 and 53.1
# GB/s on H100 and B200), of which the line code takes a part; the small bridges of the A6000 are slower (14.1).
_NVLINK_BYTES_PER_S = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 50e9, 6: 50e9}
_NVLINK_KINDS = {1: "nvlink3", 2: "nvlink3", 3: "nvlink3", 4: "nvlink4", 5: "nvlink5", 6: "nvlink5"}
_MOST_NVLINKS = 18  # of one GPU, since Hopper
_PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
SOURCE = "as found on the machine"


def planners_gpu(gpu: FoundGpu) -> Gpu:
    """The GPU as the planner names it; `kind` is empty where the planner does not know it."""
    known = gpu_kind(gpu.name)
    memory_bytes = gpu.memory_bytes or (known.memory_bytes if known else 1)
    kind = spec_of(Gpu(name=gpu.name, memory_bytes=memory_bytes)) if known else None
    return Gpu(name=gpu.name or "GPU", memory_bytes=memory_bytes, kind=kind.kind if kind else "")


def nvlink_between(machine: Machine, group: Sequence[FoundGpu]) -> Link | None:
    """What the slowest GPU of an island has over NVLink in one direction."""
    lit = [link for gpu in group for link in gpu.nvlinks or () if link.is_active]
    kind = default_links(planners_gpu(group[0])).island.kind
    of_kind = next((generation for generation, name in _NVLINK_KINDS.items() if generation > 2 and name == kind), 3)
    generation = min((link.generation for link in lit if link.generation), default=of_kind)
    told = min((link.bytes_per_s for link in lit if link.bytes_per_s), default=_NVLINK_BYTES_PER_S[generation])
    links = _links_per_gpu(machine, group)
    usual = typical_link(_NVLINK_KINDS[generation])
    return Link(
        kind=_NVLINK_KINDS[generation],
        bandwidth_bytes_per_s=links * min(told, _NVLINK_BYTES_PER_S[generation]),
        latency_s=usual.latency_s if usual else 0.0,
        source=f"{links} NVLinks for each GPU, {SOURCE}",
    )


def _links_per_gpu(machine: Machine, group: Sequence[FoundGpu]) -> int:
    """Links that a GPU has towards the others. Behind a switch all of them lead to each; in a mesh each has some.

    The matrix does not say which it is, but no GPU has more than 18 links. A GPU that is alone on its machine, in an
    island of many, has only its own word.
    """
    if len(group) == 1:
        return max(group[0].active_nvlinks or 0, 1)
    rows: dict[int, list[int]] = {gpu.index: [] for gpu in group}
    for a, b in combinations(rows, 2):
        count = machine.connection(a, b).nvlinks
        rows[a].append(count)
        rows[b].append(count)
    sums = [sum(row) for row in rows.values()]
    return min(min(row) for row in rows.values()) if max(sums) > _MOST_NVLINKS else min(sums)


def pcie_kind(generation: int | None) -> str:
    """The planner's kind of link; it knows generations 4 to 6, and one that is not known counts as the first."""
    return f"pcie{min(max(generation or 4, 4), 6)}"


def pcie_between(group: Sequence[FoundGpu]) -> Link | None:
    """What the slowest GPU has over PCIe in one direction; None where its generation or width is not known."""
    rates = [
        (_PCIE_LANE_BYTES_PER_S[gpu.pcie_generation] * gpu.pcie_lanes, gpu)
        for gpu in group
        if gpu.pcie_generation in _PCIE_LANE_BYTES_PER_S and gpu.pcie_lanes
    ]
    if len(rates) < len(group):
        return None
    rate, slowest = min(rates, key=lambda each: each[0])
    generation = slowest.pcie_generation
    kind = pcie_kind(generation)
    usual = typical_link(kind)
    return Link(
        kind=kind,
        bandwidth_bytes_per_s=rate,
        latency_s=usual.latency_s if usual else 0.0,
        source=f"PCIe {generation} with {slowest.pcie_lanes} lanes, {SOURCE}",
    )
