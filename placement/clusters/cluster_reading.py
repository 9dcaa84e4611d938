"""A cluster as a user describes it, in a word or in YAML, made a `Cluster`.

A word is a preset, with a count in front or not: "dgx-h100", "4x dgx-h100". A mapping is one of three:

    machine: dgx-h100  # presets; `machines` takes a list of these, or of words, for a mixed cluster
    count: 4

    gpu: h100_sxm  # equal machines of a known GPU, or of one of your own
    gpus_per_machine: 8
    machines: 2  # default 1
    island_size: 4  # GPUs with NVLink between them; default gpus_per_machine, more spans machines
    links:
      network: {kind: roce, bandwidth: 100 Gbit/s}

    gpu: {name: X1, memory: 64 GB, memory_bandwidth: 2 TB/s, flops: {bf16: 400 TFLOPS, fp8: 800 TFLOPS}, l2: 40 MiB}
    islands:  # each node and its island by name; `gpu` in an island overrides the one above
      - name: left
        nodes: [{name: a, gpus: 4, machine: box}, {name: b, gpus: 4}]

`links` has `island`, `machine` and `network`, each with `kind`, `bandwidth` (of one GPU in one direction) and
`latency`; it goes with each of the three. What it leaves out is the preset's, or what the kind of GPU usually has; the
link's `source` says which. `gpu: {kind: h100_sxm, memory: 96 GB}` changes a known GPU. `usd_per_gpu_hour` adds a price.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from placement.clusters.hardware import Cluster, ClusterError, Gpu, Links, Node
from placement.clusters.hardware_reading import GIVEN, read_gpu, read_links, refuse_unknown, require, text, whole
from placement.clusters.machines import Machine, default_links, machine, machine_nodes

_WORD = re.compile(r"(?:([0-9]{1,9})\s*[xX*]\s*)?(\S.*)")
_FORMS = {
    "machine": ("machine", "count", "links", "usd_per_gpu_hour"),
    "islands": ("gpu", "islands", "links", "usd_per_gpu_hour"),
    "gpu": ("gpu", "gpus_per_machine", "machines", "island_size", "links", "usd_per_gpu_hour"),
    "machines": ("machines",),
}


def read_cluster(description: Mapping[str, Any] | str) -> Cluster:
    """The cluster of a description, as the module explains it. Raises `ClusterError`, which names the field."""
    if isinstance(description, Mapping) and isinstance(description.get("machines"), list):
        refuse_unknown(description, _FORMS["machines"], "")
        return Cluster(nodes=tuple(_mixed(description["machines"])))
    return Cluster(nodes=tuple(_nodes(description)))


def _nodes(description: Mapping[str, Any] | str) -> Iterator[Node]:
    if isinstance(description, str):
        preset, count = _preset(description, "")
        return machine_nodes(preset, count)
    require(isinstance(description, Mapping), "cluster", description, "a preset's name or a mapping")
    form = next((name for name in _FORMS if name in description), None)
    refuse_unknown(description, _FORMS[form] if form else tuple(dict.fromkeys(chain(*_FORMS.values()))), "")
    if form is None or form == "machines":
        raise ClusterError("cluster: nothing says what it is made of; give machine, machines (a list) or gpu.")
    if form == "islands":
        return _explicit(description)
    preset, count = _preset(description, "") if form == "machine" else _uniform(description)
    return machine_nodes(preset, count)


def _mixed(entries: list[Any]) -> Iterator[Node]:
    """Presets, equal ones joined into one count so that their nodes are numbered through."""
    counts: dict[Machine, int] = {}
    for index, entry in enumerate(entries):
        preset, count = _preset(entry, f"machines[{index}].")
        named_alike = next((other for other in counts if other.name == preset.name and other != preset), None)
        if named_alike:
            raise ClusterError(
                f"machines[{index}]: {preset.name} is given twice with different links or prices; "
                "describe one of them with gpu and islands."
            )
        counts[preset] = counts.get(preset, 0) + count
    require(bool(counts), "machines", entries, "at least one machine")
    return chain.from_iterable(machine_nodes(preset, count) for preset, count in counts.items())


def _preset(entry: Mapping[str, Any] | str, path: str) -> tuple[Machine, int]:
    """A word or a mapping with `machine`; `path` ends with a dot unless it is empty."""
    if isinstance(entry, str):
        found = _WORD.fullmatch(entry.strip())
        require(found is not None, path[:-1] or "cluster", entry, "a preset's name, such as dgx-h100 or '4x dgx-h100'")
        count, name = found.groups() if found else (None, "")
        try:
            return machine(name), int(count or 1)
        except ClusterError as error:
            raise ClusterError(f"{path[:-1]}: {error}" if path else str(error)) from error
    require(isinstance(entry, Mapping), path[:-1], entry, "a preset's name or a mapping with machine")
    refuse_unknown(entry, _FORMS["machine"], path)
    require("machine" in entry, f"{path}machine", None, "the name of a preset, such as dgx-h100")
    preset, count = _preset(text(entry["machine"], f"{path}machine"), path)
    if "count" in entry:
        require(count == 1, f"{path}machine", entry["machine"], "the name alone, since count is given too")
        count = whole(entry["count"], f"{path}count")
    links = read_links(entry.get("links"), preset.links, preset.gpu, f"{path}links")
    return replace(preset, links=links, usd_per_gpu_hour=_price(entry, path) or preset.usd_per_gpu_hour), count


def _uniform(description: Mapping[str, Any]) -> tuple[Machine, int]:
    """Equal machines, as a preset made for the occasion: as many as one island spans, or one."""
    gpu = read_gpu(description["gpu"], "gpu")
    per_machine = whole(description.get("gpus_per_machine"), "gpus_per_machine")
    machines = whole(description.get("machines", 1), "machines")
    island_size = whole(description.get("island_size", per_machine), "island_size")
    gpus = max(island_size, per_machine)
    if gpus % min(island_size, per_machine) or machines * per_machine % gpus:
        raise ClusterError(
            f"island_size: {island_size} does not cut {machines} machines of {per_machine} GPUs into equal islands; "
            f"give a number that divides {per_machine}, or a multiple of it that divides {machines * per_machine}."
        )
    preset = Machine(
        name="machine" if island_size <= per_machine else "island",
        title=gpu.name,
        gpu=gpu,
        gpus=gpus,
        gpus_per_host=per_machine,
        gpus_per_island=island_size,
        links=read_links(description.get("links"), default_links(gpu), gpu, "links"),
        source=GIVEN,
        usd_per_gpu_hour=_price(description, ""),
    )
    return preset, machines * per_machine // gpus


def _explicit(description: Mapping[str, Any]) -> Iterator[Node]:
    entries = description["islands"]
    require(isinstance(entries, list) and bool(entries), "islands", entries, "a list of islands")
    island_of: dict[str, str] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        path = f"islands[{index}]"
        require(isinstance(entry, Mapping), path, entry, "a mapping with name and nodes")
        refuse_unknown(entry, ("name", "nodes", "gpu"), f"{path}.")
        gpu_path = f"{path}.gpu" if "gpu" in entry else "gpu"
        gpu = read_gpu(entry.get("gpu", description.get("gpu")), gpu_path)
        links = read_links(description.get("links"), default_links(gpu), gpu, "links")
        island = _Island(
            name=text(entry.get("name"), f"{path}.name"),
            gpu=gpu,
            links=links,
            usd_per_gpu_hour=_price(description, ""),
        )
        if island.name in names:
            raise ClusterError(f"{path}.name: {island.name} is given twice; give all its nodes in one entry.")
        names.add(island.name)
        nodes = entry.get("nodes")
        require(isinstance(nodes, list) and bool(nodes), f"{path}.nodes", nodes, "a list of nodes")
        for position, row in enumerate(nodes):
            node = island.node(row, f"{path}.nodes[{position}]")
            if node.name in island_of:
                raise ClusterError(
                    f"{path}.nodes[{position}].name: {node.name} is already in island {island_of[node.name]}; "
                    "islands must not overlap, give each node once."
                )
            island_of[node.name] = island.name
            yield node


@dataclass(frozen=True, slots=True, kw_only=True)
class _Island:
    """What the nodes of one island have in common."""

    name: str
    gpu: Gpu
    links: Links
    usd_per_gpu_hour: float | None

    def node(self, row: Any, path: str) -> Node:
        require(isinstance(row, Mapping), path, row, "a mapping with name and gpus")
        refuse_unknown(row, ("name", "gpus", "machine"), f"{path}.")
        return Node(
            name=text(row.get("name"), f"{path}.name"),
            island=self.name,
            gpus=whole(row.get("gpus"), f"{path}.gpus"),
            gpu=self.gpu,
            machine=text(row["machine"], f"{path}.machine") if "machine" in row else "",
            links=self.links,
            usd_per_gpu_hour=self.usd_per_gpu_hour,
        )


def _price(given: Mapping[str, Any], path: str) -> float | None:
    price = given.get("usd_per_gpu_hour")
    is_number = isinstance(price, int | float) and not isinstance(price, bool) and 0 < price < float("inf")
    require(price is None or is_number, f"{path}usd_per_gpu_hour", price, "a number above 0")
    return float(price) if price is not None else None
