"""The cluster as the planner sees it: nodes of equal GPUs, grouped into islands, and the links between them.

An island is a set of GPUs that reach each other over NVLink or an equal fabric. It may be smaller than a machine (then
it is a Ray node of its own), one node, or several nodes (NVL72). So a node belongs to exactly one island.

Three links connect two GPUs: that of their island, else that between islands of one machine, else the network. A `Link`
holds the line rate of a datasheet; what a collective gets out of it is for the cost model to say.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

LINK_KINDS = (
    "nvlink3",  # A100: 12 links of 25 GB/s in each direction; V100's NVLink 2 (6 of 25) counts here too
    "nvlink4",  # H100, H200: 18 links of 25 GB/s
    "nvlink5",  # B200, GB200: 18 links of 50 GB/s
    "xgmi",  # AMD Infinity Fabric: a full mesh, a share of the rate to each peer
    "pcie4",
    "pcie5",
    "pcie6",
    "infiniband",
    "roce",
    "efa",  # AWS's RDMA
    "ethernet",  # TCP, no RDMA
    "shared-memory",  # between processes of one host: simulated clusters
)
FLOP_KINDS = ("bf16", "fp8", "int8", "fp4")
# Ten times the largest training clusters. Beyond it the description is a mistake, and planning would run out of memory.
MAX_NODES = 100_000
MAX_GPUS = 1_000_000


class ClusterError(ValueError):
    """A cluster description that no cluster can match. The message names the field and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What one GPU gets in one direction, at line rate, and the one-way time of a tiny message from GPU to GPU.

    `latency_s` includes the software on both ends (NCCL send and receive), so it is above what the wire takes.
    `kind` is one of `LINK_KINDS`; `source` says where the numbers come from.
    """

    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float
    source: str

    def __post_init__(self) -> None:
        if self.kind not in LINK_KINDS:
            raise ClusterError(f"Link: kind is {self.kind!r}; it must be one of {', '.join(LINK_KINDS)}.")
        _require_positive(f"Link {self.kind}: bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ClusterError(f"Link {self.kind}: latency_s is {self.latency_s}; it must be finite and at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The links of a GPU: inside its island, to other islands of its machine, and to other machines.

    `machine` may be None where a machine is one island, or part of one. `network` is one GPU's share of the NICs.
    """

    island: Link
    machine: Link | None = None
    network: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKind:
    """The datasheet of one kind of GPU.

    `flops` is dense FLOP/s by precision (`FLOP_KINDS`; integer operations for int8, and fp16 counts as bf16 where there
    is no bf16); one that is absent is not supported in hardware. `l2_bytes` is the last-level cache, 0 where it is not
    known. `source` names the datasheet.
    """

    kind: str
    title: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    flops: Mapping[str, float] = field(hash=False)
    l2_bytes: int
    source: str

    def __post_init__(self) -> None:
        where = f"GPU kind {self.kind!r}:"
        if not self.kind:
            raise ClusterError("GPU kind '': it needs a name.")
        _require_positive(f"{where} memory_bytes", self.memory_bytes)
        _require_positive(f"{where} memory_bandwidth_bytes_per_s", self.memory_bandwidth_bytes_per_s)
        if self.l2_bytes < 0:
            raise ClusterError(f"{where} l2_bytes is {self.l2_bytes}; it must be at least 0.")
        for precision, flops in self.flops.items():
            if precision not in FLOP_KINDS:
                raise ClusterError(f"{where} flops has {precision!r}; it must be one of {', '.join(FLOP_KINDS)}.")
            _require_positive(f"{where} flops[{precision!r}]", flops)
        object.__setattr__(self, "flops", dict(self.flops))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU; `memory_bytes` is what the driver reports as its total.

    `kind` is a key of `machines.gpu_kinds()`, empty when it must be told from the name. `spec` is a datasheet that the
    user gave; `machines.spec_of` prefers it.
    """

    name: str
    memory_bytes: int
    kind: str = ""
    spec: GpuKind | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes < 1:
            raise ClusterError(f"GPU {self.name}: memory_bytes is {self.memory_bytes}; it must be above 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`gpus` GPUs of one kind, in slots 0 to `gpus` - 1.

    Nodes with the same `machine` are islands, or parts of islands, of one machine; empty means the node is a machine
    of its own. `links` is None where nothing is known of them: see `machines.default_links`. `usd_per_gpu_hour` is None
    where the price is not known.
    """

    name: str
    island: str
    gpus: int
    gpu: Gpu
    machine: str = ""
    links: Links | None = None
    usd_per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.island:
            raise ClusterError(f"Node {self.name!r} in island {self.island!r}: both need a name.")
        if self.gpus < 1:
            raise ClusterError(f"Node {self.name}: gpus is {self.gpus}; it must be at least 1.")
        if self.usd_per_gpu_hour is not None:
            _require_positive(f"Node {self.name}: usd_per_gpu_hour", self.usd_per_gpu_hour)

    @property
    def machine_name(self) -> str:
        """The machine, which is the node itself when none is named."""
        return self.machine or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes with unique names, kept in the order of island and name: equal clusters compare equal."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        refuse_absurd(nodes=len(self.nodes), gpus=self.gpus)
        _check_names(self.nodes)
        _check_links(self.nodes)
        object.__setattr__(self, "nodes", tuple(sorted(self.nodes, key=lambda node: (node.island, node.name))))

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def islands(self) -> dict[str, tuple[Node, ...]]:
        """Island name to its nodes, both sorted by name."""
        grouped: dict[str, list[Node]] = {}
        for node in self.nodes:
            grouped.setdefault(node.island, []).append(node)
        return {name: tuple(nodes) for name, nodes in grouped.items()}

    @property
    def widest_island_gpus(self) -> int:
        """GPUs of the largest island; 0 without nodes."""
        return max((sum(node.gpus for node in nodes) for nodes in self.islands.values()), default=0)

    @property
    def gpu_kinds(self) -> tuple[Gpu, ...]:
        """The different GPUs, smallest memory first."""
        return tuple(sorted({node.gpu for node in self.nodes}, key=lambda gpu: (gpu.memory_bytes, gpu.name)))


def refuse_absurd(*, nodes: int, gpus: int) -> None:
    """Raise `ClusterError` for a size no cluster has; call it before building that many nodes."""
    if nodes > MAX_NODES or gpus > MAX_GPUS:
        raise ClusterError(
            f"A cluster of {nodes} nodes and {gpus} GPUs is too large; "
            f"at most {MAX_NODES} nodes and {MAX_GPUS} GPUs are accepted."
        )


def _check_names(nodes: tuple[Node, ...]) -> None:
    repeated = sorted(name for name, count in Counter(node.name for node in nodes).items() if count > 1)
    if not repeated:
        return
    islands = sorted({node.island for node in nodes if node.name == repeated[0]})
    if len(islands) > 1:
        raise ClusterError(
            f"Node {repeated[0]} is in islands {' and '.join(islands)}: islands must not overlap, give it one of them."
        )
    raise ClusterError(f"Node names must be unique; {', '.join(repeated)} appears more than once.")


def _check_links(nodes: tuple[Node, ...]) -> None:
    """All nodes of an island, and all of a machine, have the same links, which say how islands of a machine connect."""
    first_of: dict[tuple[str, str], Node] = {}
    for node in nodes:
        for scope, name in (("island", node.island), ("machine", node.machine_name)):
            first = first_of.setdefault((scope, name), node)
            # `is` first: comparing 100,000 equal values by their fields would take a second.
            if first.links is not node.links and first.links != node.links:
                raise ClusterError(
                    f"Nodes {first.name} and {node.name} are in {scope} {name} but have different links; "
                    f"all nodes of one {scope} need the same, or none."
                )
            if first.island != node.island and node.links and not node.links.machine:
                raise ClusterError(
                    f"Machine {name} has islands {first.island} and {node.island}, but its links have no machine link, "
                    "which is the one between them."
                )


def _require_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ClusterError(f"{what} is {value}; it must be finite and above 0.")
