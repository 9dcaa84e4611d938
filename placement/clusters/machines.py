"""Presets: the GPUs, links and machines that users can name instead of describing them, from `machines.json`.

Everything is a datasheet's or a cloud provider's figure, with its source: bandwidths are line rates of one GPU in one
direction, FLOP/s are dense, memory is what the driver reports. A box without NVLink is one island whose link is PCIe,
so that tensor parallelism can be planned there and seen to cost. Prices are list prices of a date, for comparison
only; most machines have none, and their cost is then counted in GPUs.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from placement.clusters.hardware import Cluster, ClusterError, Gpu, GpuKind, Link, Links, Node, refuse_absurd

_VENDOR_WORDS = re.compile(r"^(?:(?:nvidia|amd|tesla|geforce|instinct) )+")
_SAME_GPU = 0.2  # drivers and ECC take up to a tenth of the nominal memory; the smallest slice of a GPU takes half
_UNKNOWN_LINKS = ("pcie4", "pcie4", "ethernet-25g")  # the slowest that GPUs of today have, so that no plan flatters


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one counts when buying or renting: a server, a cloud instance, or a rack that is one island.

    It has `gpus` GPUs in hosts (one operating system) of `gpus_per_host`, and in islands of `gpus_per_island`.
    `usd_per_gpu_hour` is None where no list price is known; `price_source` says where and when it was read.
    """

    name: str
    title: str
    gpu: Gpu
    gpus: int
    gpus_per_host: int
    gpus_per_island: int
    links: Links
    source: str
    usd_per_gpu_hour: float | None = None
    price_source: str = ""

    def __post_init__(self) -> None:
        sizes = (self.gpus_per_host, self.gpus_per_island)
        if min(self.gpus, *sizes) < 1 or any(self.gpus % size for size in sizes) or max(sizes) % min(sizes):
            raise ClusterError(
                f"Machine {self.name}: {self.gpus} GPUs cannot be cut into hosts of {sizes[0]} and islands of "
                f"{sizes[1]}; one must divide the other, and both must divide the GPUs."
            )


def gpu_kinds() -> Mapping[str, GpuKind]:
    """All kinds of GPU by key, such as "h100_sxm"."""
    return _presets().gpu_kinds


def gpu_kind(name: str) -> GpuKind | None:
    """The kind of GPU called `name`: a key, or what a driver or Ray calls it ("NVIDIA H100 80GB HBM3", "A100").

    Of a name that fits several the first in the table. None for an unknown GPU, and for slices of one (MIG, vGPU).
    """
    return next(iter(_kinds_named(name)), None)


def spec_of(gpu: Gpu) -> GpuKind | None:
    """The datasheet of `gpu`: the user's own, else that of its kind, else that of its name. None when unknown.

    Where the name fits several kinds (A100) the memory decides. A GPU with much less memory than its name says is a
    slice of one, whose speed no datasheet tells.
    """
    if gpu.spec is not None:
        return gpu.spec
    if gpu.kind:
        return gpu_kind(gpu.kind)
    kinds = sorted(_kinds_named(gpu.name), key=lambda kind: abs(kind.memory_bytes - gpu.memory_bytes))
    return next((kind for kind in kinds if abs(gpu.memory_bytes / kind.memory_bytes - 1) < _SAME_GPU), None)


def default_links(gpu: Gpu) -> Links:
    """Links to assume for a GPU that was found without any: those of the usual machine with its kind.

    An unknown GPU gets PCIe and Ethernet. `source` of each link says that it is assumed.
    """
    presets = _presets()
    kind = gpu_kind(gpu.kind or gpu.name)
    links = presets.links_of_kind[kind.kind] if kind else _links(presets.links, _UNKNOWN_LINKS)
    what = f"assumed for {kind.kind}" if kind else f"assumed, nothing is known of the GPU {gpu.name}"
    return Links(
        island=replace(links.island, source=f"{what}: {links.island.source}"),
        machine=replace(links.machine, source=f"{what}: {links.machine.source}") if links.machine else None,
        network=replace(links.network, source=f"{what}: {links.network.source}"),
    )


def typical_link(kind: str) -> Link | None:
    """The first link of this kind in the table; None where it has none."""
    return next((link for link in _presets().links.values() if link.kind == kind), None)


def machines() -> Mapping[str, Machine]:
    """All machines by name, such as "dgx-h100" or "p5.48xlarge"."""
    return _presets().machines


def machine(name: str) -> Machine:
    """The machine called `name`, whatever its case and with or without Azure's `Standard_`. Raises `ClusterError`."""
    presets = _presets()
    found = presets.machine_names.get(_machine_slug(name))
    if found is None:
        kinds = {kind.kind for kind in _kinds_named(name)}
        if having := [machine.name for machine in presets.machines.values() if machine.gpu.kind in kinds]:
            raise ClusterError(f"{name!r} is a GPU and no machine; machines that have it are {', '.join(having)}.")
        hint = closest(_machine_slug(name), presets.machine_names, all_names=presets.machines)
        raise ClusterError(f"machine {name!r} is not known; {hint}")
    return presets.machines[found]


def cluster_of(machine_name: str, count: int = 1) -> Cluster:
    """`count` machines of one preset. Raises `ClusterError`."""
    return Cluster(nodes=tuple(machine_nodes(machine(machine_name), count)))


def machine_nodes(preset: Machine, count: int) -> Iterator[Node]:
    """The nodes of `count` machines: one for each host, or for each island of a host that has several.

    Names are the machine's, a number and, where it has several, the host and island: "gb200-nvl72-0-host-07".
    Raises `ClusterError`.
    """
    per_node = min(preset.gpus_per_host, preset.gpus_per_island)
    nodes = preset.gpus // per_node
    if count < 1:
        raise ClusterError(f"count of {preset.name} is {count}; it must be at least 1.")
    refuse_absurd(nodes=count * nodes, gpus=count * preset.gpus)
    hosts, islands = preset.gpus // preset.gpus_per_host, preset.gpus // preset.gpus_per_island
    for index in range(count):
        unit = _numbered(preset.name, index, count)
        for position in range(nodes):
            host = _numbered(f"{unit}-host", position * per_node // preset.gpus_per_host, hosts)
            island = _numbered(f"{unit}-island", position * per_node // preset.gpus_per_island, islands)
            host, island = host if hosts > 1 else unit, island if islands > 1 else unit
            is_part = preset.gpus_per_host > per_node
            yield Node(
                name=island if is_part else host,
                island=island,
                gpus=per_node,
                gpu=preset.gpu,
                machine=host if is_part else "",
                links=preset.links,
                usd_per_gpu_hour=preset.usd_per_gpu_hour,
            )


def closest(name: str, known: Iterable[str], *, all_names: Iterable[str] = ()) -> str:
    """What to give instead of an unknown name, as the end of an error message: names like it, else all."""
    known = list(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"give one of {', '.join(all_names or known)}."


def _numbered(name: str, index: int, count: int) -> str:
    """`name-07` where `count` has two digits, so that sorting by name sorts by number."""
    return f"{name}-{index:0{len(str(count - 1))}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Presets:
    """The table, read. `kinds_named` and `machine_names` have what names and aliases are reduced to."""

    links: Mapping[str, Link]
    gpu_kinds: Mapping[str, GpuKind]
    kinds_named: Mapping[str, tuple[GpuKind, ...]]
    links_of_kind: Mapping[str, Links]
    machines: Mapping[str, Machine]
    machine_names: Mapping[str, str]


@cache
def _presets() -> _Presets:
    table = json.loads(files("placement.clusters").joinpath("machines.json").read_text(encoding="utf-8"))
    links = {name: _link(row) for name, row in table["links"].items()}
    kinds = {name: _gpu_kind(name, row) for name, row in table["gpus"].items()}
    found = {name: _machine(name, row, kinds, links) for name, row in table["machines"].items()}
    named: dict[str, tuple[GpuKind, ...]] = {}
    for name, row in table["gpus"].items():
        for alias in dict.fromkeys(_gpu_slug(alias) for alias in (name, *row["names"])):
            named[alias] = (*named.get(alias, ()), kinds[name])
    return _Presets(
        links=MappingProxyType(links),
        gpu_kinds=MappingProxyType(kinds),
        kinds_named=MappingProxyType(named),
        links_of_kind={name: _links(links, row["links"].values()) for name, row in table["gpus"].items()},
        machines=MappingProxyType(found),
        machine_names={
            _machine_slug(alias): name
            for name, row in table["machines"].items()
            for alias in (name, *row.get("aliases", ()))
        },
    )


def _kinds_named(name: str) -> tuple[GpuKind, ...]:
    return _presets().kinds_named.get(_gpu_slug(name), ())


def _gpu_slug(name: str) -> str:
    return _VENDOR_WORDS.sub("", re.sub(r"[-_\s]+", " ", name.strip().lower()))


def _machine_slug(name: str) -> str:
    return re.sub(r"[-_\s]+", "-", name.strip().lower()).removeprefix("standard-")


def _link(row: Mapping[str, Any]) -> Link:
    return Link(
        kind=row["kind"],
        bandwidth_bytes_per_s=row["gb_per_s"] * 1e9,
        latency_s=row["latency_us"] * 1e-6,
        source=row["source"],
    )


def _links(links: Mapping[str, Link], names: Iterable[Any]) -> Links:
    island, between, network = names
    return Links(island=links[island], machine=links[between] if between else None, network=links[network])


def _gpu_kind(name: str, row: Mapping[str, Any]) -> GpuKind:
    return GpuKind(
        kind=name,
        title=row["title"],
        memory_bytes=row["memory_mib"] * 2**20,
        memory_bandwidth_bytes_per_s=row["memory_bandwidth_gb_per_s"] * 1e9,
        flops={precision: tera * 1e12 for precision, tera in row["dense_tflops"].items()},
        l2_bytes=row["l2_mib"] * 2**20,
        source=row["source"],
    )


def gpu_of(kind: GpuKind) -> Gpu:
    """A GPU of this kind, with all its memory."""
    return Gpu(name=kind.title, memory_bytes=kind.memory_bytes, kind=kind.kind)


def _machine(name: str, row: Mapping[str, Any], kinds: Mapping[str, GpuKind], links: Mapping[str, Link]) -> Machine:
    price = row.get("usd_per_hour")
    return Machine(
        name=name,
        title=row["title"],
        gpu=gpu_of(kinds[row["gpu"]]),
        gpus=row["gpus"],
        gpus_per_host=row["gpus_per_host"],
        gpus_per_island=row["gpus_per_island"],
        links=_links(links, row["links"].values()),
        source=row["source"],
        usd_per_gpu_hour=price / row["gpus"] if price else None,
        price_source=row.get("price_source", ""),
    )
