"""What `archipelago islands --raylets` prints, run by a shell: an island inside a machine is a Ray node of its own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from discovery_builders import MACHINES
from ray_up_machines import Machine, left_over, machines, missing
from running_system import until

from deployments.islands import inventory

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

# Four A100 with bridges: two pairs. The driver is not here, so its tool says what it said on such a machine.
DRIVER = f'#!/bin/sh\n[ "$1" != topo ] || cat {MACHINES / "a100-pcie-bridges.txt"}\n'
GPU_BYTES = 80 * 2**30
RAY = f"export PATH={sys.prefix}/bin:$PATH RAY_ADDRESS=10.89.0.1:6379 RAY_USAGE_STATS_ENABLED=0;"
NODES = """
import json, ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print(json.dumps(ray.nodes()))
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    """A head without GPUs, and a machine with two pairs of them."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with machines(tmp_path, {"head": {}, "box": {"bin/nvidia-smi": DRIVER}}) as made:
        yield made
    assert left_over() == []


def test_each_island_inside_a_machine_is_a_ray_node_of_its_own(box: dict[str, Machine]) -> None:
    head = box["head"]
    head.run(f"{RAY} ray start --head --port=6379 --num-gpus=0 --include-dashboard=false")
    box["box"].run(f"{RAY} archipelago islands --raylets | sh", timeout_s=120)

    def joined() -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = json.loads(head.run(f"{RAY} python -c '{NODES}'"))
        return nodes if len(nodes) == 3 else []

    nodes = until(joined, "both raylets have joined", timeout_s=60, every_s=1)
    found = inventory(nodes, {node["NodeID"]: GPU_BYTES for node in nodes}).cluster
    seen = sorted((node.name, node.island, node.machine, node.gpus) for node in found.nodes if node.gpus)
    assert seen == [("box-0", "box-0", "box", 2), ("box-1", "box-1", "box", 2)]
    workers = (one for one in box["box"].environments("raylet") if "CUDA_VISIBLE_DEVICES" in one)
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in workers) == ["0,1", "2,3"]
