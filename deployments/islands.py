"""What the running Ray cluster has: its GPUs by island and node, as the planner's Cluster.

A Ray node is one island, part of an island (its nodes then carry the same ``archipelago.io/island`` label), or the
whole of a machine when nobody labelled it. Several Ray nodes are one machine where ``archipelago.io/machine`` says so
or, without that label, where they have one address: GPUs of different islands then reach each other over PCIe.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from placement import Cluster, Gpu, Node

ISLAND_LABEL = "archipelago.io/island"
NODE_LABEL = "archipelago.io/node"
MACHINE_LABEL = "archipelago.io/machine"
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


def inventory(ray_nodes: Iterable[Mapping[str, Any]], gpu_memory_bytes: Mapping[str, int]) -> Inventory:
    """Read ``ray.nodes()``.

    A node labelled by whoever started it is addressed by those labels, so that a replacement with the same labels can
    take its place; any other by its Ray id.

    Args:
        ray_nodes: as ``ray.nodes()`` returns them.
        gpu_memory_bytes: memory of one GPU for each Ray node id; Ray itself does not report it.

    Raises:
        NoGpusError: no node that is alive has a GPU.
    """
    with_gpus = [node for node in ray_nodes if node["Alive"] and int(node["Resources"].get("GPU", 0)) > 0]
    uses = Counter(map(_name, with_gpus))
    at_address = Counter(node["NodeManagerAddress"] for node in with_gpus)
    nodes, selectors, ids = [], {}, {}
    for ray_node in with_gpus:
        labels, node_id, name = ray_node["Labels"], ray_node["NodeID"], _name(ray_node)
        if uses[name] > 1:  # several unlabelled raylets on one machine, or node labels that repeat
            name = f"{name}#{node_id[:8]}"
        gpu = Gpu(name=labels.get(ACCELERATOR_LABEL, "GPU"), memory_bytes=gpu_memory_bytes[node_id])
        gpus = int(ray_node["Resources"]["GPU"])
        address = ray_node["NodeManagerAddress"]
        machine = labels.get(MACHINE_LABEL) or (address if at_address[address] > 1 else "")
        nodes.append(Node(name=name, island=labels.get(ISLAND_LABEL) or name, gpus=gpus, gpu=gpu, machine=machine))
        selectors[name] = _selector(ray_node, with_gpus)
        ids[name] = node_id
    if not nodes:
        raise NoGpusError("the Ray cluster has no node with a GPU; start its nodes with --num-gpus or on GPU machines")
    nodes.sort(key=lambda node: node.name)
    return Inventory(cluster=Cluster(nodes=tuple(nodes)), selectors=selectors, ray_node_ids=ids)


def _name(ray_node: Mapping[str, Any]) -> str:
    island, own = ray_node["Labels"].get(ISLAND_LABEL), str(ray_node["NodeName"])
    return ray_node["Labels"].get(NODE_LABEL) or (f"{island}/{own}" if island else own)


def _selector(ray_node: Mapping[str, Any], with_gpus: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Our labels where they tell the node from all others, else its Ray id."""
    ours = {label: ray_node["Labels"].get(label) for label in (ISLAND_LABEL, NODE_LABEL)}
    is_unique = sum(ours.items() <= node["Labels"].items() for node in with_gpus) == 1
    return ours if all(ours.values()) and is_unique else {RAY_NODE_ID_LABEL: ray_node["NodeID"]}
