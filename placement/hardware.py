"""The cluster as the planner sees it: nodes of equal GPUs, grouped into islands.

An island is a set of GPUs that reach each other over NVLink or an equal fabric. It may be smaller than a machine (then
it is a Ray node of its own), one node, or several nodes (NVL72). So a node belongs to exactly one island.
"""

from collections import Counter
from dataclasses import dataclass


class ClusterError(ValueError):
    """A cluster description that no cluster can match. The message names the node and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU; `memory_bytes` is what the driver reports as its total."""

    name: str
    memory_bytes: int

    def __post_init__(self) -> None:
        if self.memory_bytes < 1:
            raise ClusterError(f"GPU {self.name}: memory_bytes is {self.memory_bytes}; it must be above 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`gpus` GPUs of one kind, in slots 0 to `gpus` - 1."""

    name: str
    island: str
    gpus: int
    gpu: Gpu

    def __post_init__(self) -> None:
        if not self.name or not self.island:
            raise ClusterError(f"Node {self.name!r} in island {self.island!r}: both need a name.")
        if self.gpus < 1:
            raise ClusterError(f"Node {self.name}: gpus is {self.gpus}; it must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes with unique names, kept in the order of island and name: equal clusters compare equal."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(node.name for node in self.nodes).items() if count > 1]
        if repeated:
            raise ClusterError(f"Node names must be unique; {', '.join(sorted(repeated))} appears more than once.")
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
    def gpu_kinds(self) -> tuple[Gpu, ...]:
        """The different GPUs, smallest memory first."""
        return tuple(sorted({node.gpu for node in self.nodes}, key=lambda gpu: (gpu.memory_bytes, gpu.name)))
