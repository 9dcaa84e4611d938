"""What the running Ray cluster has: its GPUs by island and node, as the planner's Cluster.

A Ray node is one island, part of an island (its nodes then carry the same ``archipelago.io/island`` label), or the
whole of a machine when nobody labelled it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from placement import Cluster, Gpu, Node

ISLAND_LABEL = "archipelago.io/island"
NODE_LABEL = "archipelago.io/node"
RAY_NODE_ID_LABEL = "ray.io/node-id"
ACCELERATOR_LABEL = "ray.io/accelerator-type"


class NoGpusError(Exception):
    """The Ray cluster has no node with a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The cluster for the planner, and how each of its nodes is addressed in Ray.

    ``selectors`` and ``ray_node_ids`` are keyed by the planner's node names.
    """

    cluster: Cluster
    selectors: Mapping[str, Mapping[str, str]]
    ray_node_ids: Mapping[str, str]

    def node_named(self, ray_node_id: str) -> str:
        """Name the node with a Ray id, or say that it is none of ours."""
        names = (name for name, node_id in self.ray_node_ids.items() if node_id == ray_node_id)
        return next(names, f"a Ray node without GPUs ({ray_node_id[:8]})")


def inventory(ray_nodes: Iterable[Mapping[str, Any]], gpu_memory_bytes: int) -> Inventory:
    """Read ``ray.nodes()``.

    A node labelled by whoever started it is addressed by those labels, so that a replacement with the same labels can
    take its place; any other by its Ray id.

    Args:
        ray_nodes: as ``ray.nodes()`` returns them.
        gpu_memory_bytes: memory of one GPU, which Ray does not report.

    Raises:
        NoGpusError: no node that is alive has a GPU.
    """
    nodes, selectors, ids = [], {}, {}
    for ray_node in ray_nodes:
        gpus = int(ray_node["Resources"].get("GPU", 0))
        if not ray_node["Alive"] or gpus == 0:
            continue
        labels, node_id = ray_node["Labels"], ray_node["NodeID"]
        island = labels.get(ISLAND_LABEL)
        name = labels.get(NODE_LABEL, ray_node["NodeName"] if island is None else f"{island}/{ray_node['NodeName']}")
        if name in ids:  # several unlabelled raylets on one machine
            name = f"{name}#{node_id[:8]}"
        gpu = Gpu(name=labels.get(ACCELERATOR_LABEL, "GPU"), memory_bytes=gpu_memory_bytes)
        nodes.append(Node(name=name, island=island or name, gpus=gpus, gpu=gpu))
        is_labelled = island is not None and NODE_LABEL in labels
        selectors[name] = {ISLAND_LABEL: island, NODE_LABEL: name} if is_labelled else {RAY_NODE_ID_LABEL: node_id}
        ids[name] = node_id
    if not nodes:
        raise NoGpusError("the Ray cluster has no node with a GPU; start its nodes with --num-gpus or on GPU machines")
    nodes.sort(key=lambda node: node.name)
    return Inventory(cluster=Cluster(nodes=tuple(nodes)), selectors=selectors, ray_node_ids=ids)
