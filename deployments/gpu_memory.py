"""How much memory the GPUs of each Ray node have, which Ray does not know: asked of the NVIDIA driver on the node."""

import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

import ray

from deployments.islands import RAY_NODE_ID_LABEL

MIB = 2**20
DRIVER_TIMEOUT_S = 30


class GpuMemoryUnknownError(Exception):
    """A node's driver did not answer; the message names the node."""


def gpu_memory_bytes(ray_nodes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Memory of the smallest GPU of each node that has any, by Ray node id.

    Args:
        ray_nodes: as ``ray.nodes()`` returns them; connected to their cluster.

    Raises:
        GpuMemoryUnknownError: ``nvidia-smi`` failed on a node.
    """
    # No GPU is asked for: all may be in use, and the driver answers regardless.
    ask = ray.remote(num_cpus=0, max_retries=0)(_smallest_on_this_node)
    nodes = {node["NodeID"]: node for node in ray_nodes if node["Alive"] and node["Resources"].get("GPU", 0) > 0}
    answers = {node_id: ask.options(label_selector={RAY_NODE_ID_LABEL: node_id}).remote() for node_id in nodes}
    memory_bytes = {}
    for node_id, answer in answers.items():
        try:
            memory_bytes[node_id] = int(ray.get(answer, timeout=2 * DRIVER_TIMEOUT_S))
        except (ray.exceptions.RayError, TimeoutError) as error:
            name = nodes[node_id]["NodeName"]
            raise GpuMemoryUnknownError(
                f"nvidia-smi does not tell the memory of the GPUs of {name}: {error}"
            ) from error
    return memory_bytes


def _smallest_on_this_node() -> int:
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]  # in MiB
    done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=True)
    return min(int(line) for line in done.stdout.split()) * MIB
