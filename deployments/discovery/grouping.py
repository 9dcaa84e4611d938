"""Which GPUs are an island: every two of them have NVLink between them. Pure.

Being connected is not enough. In a machine with four pairs all GPUs reach each other over PCIe; in the cube of eight
V100 each GPU has NVLink to four others only. So islands are full meshes: the largest first, then among the GPUs left.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from deployments.discovery.health import problems_of
from deployments.discovery.machine import DiscoveryError, FoundGpu, Machine
from deployments.discovery.speed import nvlink_between, pcie_between
from placement import Link

NVLINK, PCIE, ALONE = "NVLink", "PCIe", "alone"
MAX_LABEL = 63  # Ray's and Kubernetes' limit of a label's value


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The GPUs of an island on one machine. Each part is a Ray node of its own, called `node`."""

    node: str
    host: str
    gpus: tuple[FoundGpu, ...]
    is_whole_host: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Island:
    """GPUs that reach each other over `medium`; `link` is one GPU's share of it, None where its speed is not known."""

    name: str
    medium: str
    parts: tuple[Part, ...]
    link: Link | None

    @property
    def gpus(self) -> int:
        return sum(len(part.gpus) for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The islands of some machines, and a sentence for each thing that is not as it should be."""

    machines: tuple[Machine, ...]
    islands: tuple[Island, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All Ray nodes, in the order of machines."""
        return tuple(sorted((part for each in self.islands for part in each.parts), key=lambda part: part.node))


def find_islands(machines: Sequence[Machine]) -> Findings:
    """The islands of these machines. Raises `DiscoveryError` where two have the same name."""
    hosts = [machine.host for machine in machines]
    twice = next((host for host in hosts if hosts.count(host) > 1), None)
    if twice:
        raise DiscoveryError(f"{twice} is given twice; give the reading of each machine once, under its own name.")
    parts: dict[str, list[Island]] = {}
    for machine in machines:
        for island in _islands_of(machine):
            parts.setdefault(island.name, []).append(island)
    return Findings(
        machines=tuple(machines),
        islands=tuple(_joined(parts[name]) for name in sorted(parts)),
        problems=tuple(sentence for machine in machines for sentence in problems_of(machine)),
        notes=tuple(f"{machine.host}: {note}" for machine in machines for note in (*machine.notes, *_far(machine))),
    )


def _joined(same: Sequence[Island]) -> Island:
    """The parts of one fabric on several machines; as fast as the slowest."""
    links = [island.link for island in same if island.link]
    slowest = min(links, key=lambda link: link.bandwidth_bytes_per_s, default=None)
    medium = NVLINK if len(same) > 1 else same[0].medium
    return Island(
        name=same[0].name, medium=medium, parts=tuple(part for each in same for part in each.parts), link=slowest
    )


def _islands_of(machine: Machine) -> Iterable[Island]:
    usable = [gpu for gpu in machine.gpus if not gpu.has_mig]
    groups = _groups(machine, usable)
    host = label_value(machine.host)
    used_domains: set[str] = set()
    for number, group in enumerate(groups):
        is_whole = len(group) == len(usable)
        node = host if is_whole else label_value(f"{host[: MAX_LABEL - 4]}-{number}")
        domain = _domain(machine, group)
        if domain in used_domains:
            domain = None  # two groups of one fabric that do not reach each other: something is broken between them
        used_domains |= {domain} if domain else set()
        medium = _medium(machine, group, domain)
        link = nvlink_between(machine, group) if medium == NVLINK else pcie_between(group)
        yield Island(
            name=label_value(domain or node),
            medium=medium,
            parts=(Part(node=node, host=machine.host, gpus=tuple(group), is_whole_host=is_whole),),
            link=None if medium == ALONE else link,
        )


def _groups(machine: Machine, usable: Sequence[FoundGpu]) -> list[list[FoundGpu]]:
    by_index = {gpu.index: gpu for gpu in usable}
    near = {gpu.index: {other.index for other in usable if _is_near(machine, gpu, other)} for gpu in usable}
    if not any(near.values()):  # without any NVLink, the whole machine can still share PCIe
        near = {gpu.index: {other.index for other in usable if _alike(gpu, other)} for gpu in usable}
    groups = []
    left = set(by_index)
    while left:
        largest = min(_meshes(set(), set(left), set(), near), key=lambda mesh: (-len(mesh), sorted(mesh)))
        groups.append([by_index[index] for index in sorted(largest)])
        left -= largest
    return sorted(groups, key=lambda group: group[0].index)


def _meshes(chosen: set[int], open_: set[int], done: set[int], near: dict[int, set[int]]) -> Iterable[set[int]]:
    """All full meshes that cannot grow (Bron and Kerbosch, with a pivot)."""
    if not open_ and not done:
        yield set(chosen)
        return
    pivot = max(open_ | done, key=lambda index: len(near[index] & open_))
    for index in sorted(open_ - near[pivot]):
        yield from _meshes(chosen | {index}, open_ & near[index], done & near[index], near)
        open_ = open_ - {index}
        done = done | {index}


def _is_near(machine: Machine, gpu: FoundGpu, other: FoundGpu) -> bool:
    """NVLink between two GPUs of one kind, whose fabric is up and is the same."""
    fabrics = [each.fabric for each in (gpu, other) if each.fabric is not None]
    return (
        _alike(gpu, other)
        and machine.connection(gpu.index, other.index).nvlinks > 0
        and all(fabric.is_ready for fabric in fabrics)
        and len({fabric.domain for fabric in fabrics}) <= 1
    )


def _alike(gpu: FoundGpu, other: FoundGpu) -> bool:
    return gpu.index != other.index and (gpu.name, gpu.memory_bytes) == (other.name, other.memory_bytes)


def _domain(machine: Machine, group: Sequence[FoundGpu]) -> str | None:
    """The fabric that reaches beyond the machine; GPUs whose links are down, or lead nowhere, are not on it."""
    is_on = all(gpu.active_nvlinks != 0 for gpu in group)
    pairs = combinations([gpu.index for gpu in group], 2)
    is_joined = all(machine.connection(a, b).nvlinks for a, b in pairs)
    return group[0].fabric.domain if group[0].fabric and is_on and is_joined else None


def _medium(machine: Machine, group: Sequence[FoundGpu], domain: str | None) -> str:
    if domain:
        return NVLINK
    if len(group) == 1:
        return ALONE
    return NVLINK if machine.connection(group[0].index, group[1].index).nvlinks else PCIE


def _far(machine: Machine) -> Iterable[str]:
    """What to know about an island over PCIe that spans sockets."""
    pairs = combinations([gpu.index for gpu in machine.gpus], 2)
    connections = [machine.connection(a, b) for a, b in pairs]
    if any(each.nvlinks for each in connections) or not any(each.pcie in ("SYS", "SOC") for each in connections):
        return
    first = machine.gpus[0].index
    near = [gpu.index for gpu in machine.gpus if machine.connection(first, gpu.index).pcie not in ("SYS", "SOC")]
    yield (
        f"its GPUs hang on several sockets; GPU {first} shares one with {len(near) - 1} of {len(machine.gpus) - 1} "
        "others, and PCIe between sockets is slower"
    )


def label_value(text: str) -> str:
    """`text` as a label's value can be: letters, digits, dots, dashes, underscores, and no more than 63."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:MAX_LABEL].strip("._-") or "node"
