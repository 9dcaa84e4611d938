"""What is not as it should be on a machine, one sentence each. Pure.

Nothing says how many links a GPU should have: the count differs by board and by what a virtual machine was given. So
each GPU is held against the others of its kind in the same machine.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

from deployments.discovery.machine import FoundGpu, Machine

_SLOWER = 0.9  # of its like: the rates that drivers tell are rounded


def problems_of(machine: Machine) -> Iterable[str]:
    """Sentences, each naming the machine, the GPU, what was found, what was expected, and where to look."""
    for gpu in machine.gpus:
        yield from _of_one(machine, gpu)
    kinds: dict[str, list[FoundGpu]] = {}
    for gpu in machine.gpus:
        if not gpu.has_mig:  # MIG turns NVLink off
            kinds.setdefault(gpu.name, []).append(gpu)
    for like in kinds.values():
        yield from _fewer_links(machine, like)
        yield from _slower_links(machine, like)
    for pair in machine.connections:
        if pair.refused:
            yield (
                f"{machine.host}: GPU {pair.a} and GPU {pair.b} may not use the NVLinks between them ({pair.refused}); "
                "they are not counted as one island. See `nvidia-smi topo -p2p n`."
            )


def _of_one(machine: Machine, gpu: FoundGpu) -> Iterable[str]:
    who = _who(machine, gpu)
    if gpu.has_mig:
        yield (
            f"{who} has MIG on: it is cut into slices and is not counted as a GPU of an island. "
            f"To use it whole: `nvidia-smi -i {gpu.index} -mig 0`."
        )
    if gpu.fabric is not None:
        if not gpu.fabric.is_ready:
            yield (
                f"{who}: its registration with the NVLink fabric is {gpu.fabric.state}, with status "
                f"{gpu.fabric.status}; until it has completed, its NVLinks carry nothing and are not counted. "
                "See the fabric manager, and `nvidia-smi -q`, section Fabric."
            )
        for trouble in gpu.fabric.troubles:
            yield f"{who}: the NVLink fabric says that {trouble}. See `nvidia-smi -q`, section Fabric."
    if gpu.pcie_lanes and gpu.pcie_max_lanes and gpu.pcie_lanes < gpu.pcie_max_lanes:
        yield (
            f"{who} uses {gpu.pcie_lanes} of its {gpu.pcie_max_lanes} PCIe lanes: the slot is narrower, or the card "
            "does not sit well in it."
        )


def _fewer_links(machine: Machine, like: Sequence[FoundGpu]) -> Iterable[str]:
    counts = {gpu.index: gpu.active_nvlinks for gpu in like}
    if None in counts.values():
        yield from _thinner_rows(machine, like)
        return
    most = max(counts[gpu.index] or 0 for gpu in like)
    for gpu in like:
        down = [number for number, link in enumerate(gpu.nvlinks or ()) if not link.is_active]
        if (counts[gpu.index] or 0) < most:
            which = f" (down: {', '.join(map(str, down))})" if down else ""
            yield (
                f"{_who(machine, gpu)} has {counts[gpu.index]} active NVLinks{which}, others of its kind {most}: a "
                f"link is down or a bridge is missing. See `nvidia-smi nvlink -s -i {gpu.index}`."
            )


def _thinner_rows(machine: Machine, like: Sequence[FoundGpu]) -> Iterable[str]:
    """The same from the matrix alone, where only the sum over all pairs tells a mesh from a fault."""
    sums = {gpu.index: 0 for gpu in like}
    for a, b in combinations(sums, 2):
        links = machine.connection(a, b).nvlinks
        sums[a] += links
        sums[b] += links
    most = max(sums.values())
    for gpu in like:
        if sums[gpu.index] < most:
            yield (
                f"{_who(machine, gpu)} has {sums[gpu.index]} NVLinks over all its pairs, others of its kind {most}: a "
                f"link is down or a bridge is missing. See `nvidia-smi nvlink -s -i {gpu.index}`."
            )


def _slower_links(machine: Machine, like: Sequence[FoundGpu]) -> Iterable[str]:
    lit = [link for gpu in like for link in gpu.nvlinks or () if link.is_active]
    newest = max((link.generation for link in lit if link.generation), default=0)
    fastest = max((link.bytes_per_s for link in lit if link.bytes_per_s), default=0.0)
    for gpu in like:
        for number, link in enumerate(gpu.nvlinks or ()):
            if not link.is_active:
                continue
            if link.generation and link.generation < newest:
                yield (
                    f"{_who(machine, gpu)}: its NVLink {number} runs as NVLink {link.generation}, others of its kind "
                    f"as NVLink {newest}."
                )
            elif link.bytes_per_s and link.bytes_per_s < _SLOWER * fastest:
                yield (
                    f"{_who(machine, gpu)}: its NVLink {number} runs at {link.bytes_per_s / 1e9:.4g} GB/s, others of "
                    f"its kind at {fastest / 1e9:.4g} GB/s."
                )


def _who(machine: Machine, gpu: FoundGpu) -> str:
    return f"{machine.host}: GPU {gpu.index}" + (f" ({gpu.name})" if gpu.name else "")
