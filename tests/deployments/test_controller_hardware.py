"""The nodes as the controller sees them, when the driver of one does not tell the memory of its GPUs."""

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from deployment_builders import ray_node, ray_nodes_of
from placement_builders import cluster_of

from deployments.controller import hardware
from deployments.controller.hardware import ASK_AGAIN_S, Hardware
from deployments.gpu_memory import GpuMemoryUnknownError

GIB = 2**30


class Site:
    """A Ray cluster in memory: nodes, and what their drivers say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[dict[str, Any]] = ray_nodes_of(cluster_of(2, 2))
        self.broken: set[str] = set()
        self.asked: list[str] = []
        self.now_s = 0.0
        self.may_answer = threading.Event()
        self.may_answer.set()
        monkeypatch.setattr(hardware.ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(hardware.ray_state, "get_draining_nodes", dict)
        monkeypatch.setattr(hardware, "gpu_memory_bytes", self.gpu_memory_bytes)
        self.hardware = Hardware(None, now=lambda: self.now_s)

    def gpu_memory_bytes(self, nodes: list[dict[str, Any]]) -> dict[str, int]:
        (node,) = nodes
        self.asked.append(node["NodeName"])
        assert self.may_answer.wait(10)
        if node["NodeName"] in self.broken:
            raise GpuMemoryUnknownError(f"nvidia-smi does not tell the memory of the GPUs of {node['NodeName']}")
        return {node["NodeID"]: 80 * GIB}

    def memory(self) -> dict[str, int]:
        where, _ = self.hardware.look()
        return {node.name: node.gpu.memory_bytes // GIB for node in where.cluster.nodes}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_each_driver_is_asked_once_and_nodes_without_gpus_never(site: Site) -> None:
    for _ in range(3):
        assert site.memory() == {"island-0-node-0": 80, "island-1-node-0": 80}
    assert sorted(site.asked) == ["island-0-node-0", "island-1-node-0"]


def test_a_node_whose_driver_is_broken_is_there_and_the_others_are_well(site: Site) -> None:
    """Who serves there stays: only what needs memory is not started there."""
    site.broken = {"island-1-node-0"}
    for _ in range(3):
        assert site.memory() == {"island-0-node-0": 80, "island-1-node-0": 0}
    assert len(site.asked) == 2
    site.broken = set()
    site.now_s = ASK_AGAIN_S
    until(lambda: site.memory() == {"island-0-node-0": 80, "island-1-node-0": 80})
    assert len(site.asked) == 3


def test_a_driver_that_hangs_on_a_node_that_joins_keeps_nobody_waiting(site: Site) -> None:
    site.memory()
    site.may_answer.clear()
    site.nodes.append(ray_node("new", name="new"))
    assert site.memory() == {"island-0-node-0": 80, "island-1-node-0": 80, "new": 0}
    site.may_answer.set()
    until(lambda: site.memory()["new"] == 80)


def test_the_memory_that_is_configured_is_not_asked_for(site: Site) -> None:
    where, leaving = Hardware(GIB).look()
    assert {node.gpu.memory_bytes for node in where.cluster.nodes} == {GIB}
    assert (site.asked, leaving) == ([], {})


def test_a_cluster_that_has_lost_all_its_gpus_is_empty(site: Site) -> None:
    site.memory()
    site.nodes = site.nodes[:1]
    assert site.hardware.look() == (hardware.NOTHING, {})


def test_nodes_that_ray_drains_leave_when_it_says_or_in_no_hurry(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts in ms, and 0 is no deadline. Nodes without GPUs are nobody's business."""
    first, second = (node["NodeID"] for node in site.nodes if node["Resources"].get("GPU"))
    drained = {first: 1_700_000_000_500, second: 0, "of no GPUs": 0}
    monkeypatch.setattr(hardware.ray_state, "get_draining_nodes", lambda: drained)
    _, leaving = site.hardware.look()
    assert leaving == {"island-0-node-0": 1_700_000_000.5, "island-1-node-0": math.inf}


def until(is_so: Callable[[], bool]) -> None:
    """The answers come from threads."""
    for _ in range(1000):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not within 10 s")
