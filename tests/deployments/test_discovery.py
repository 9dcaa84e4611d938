"""Recorded machines: each classified right, and what is broken told."""

import copy

import pytest
from discovery_builders import MACHINES, FakeNvml, nvml_gpus, recorded

from deployments.discovery.grouping import find_islands
from deployments.discovery.machine import DiscoveryError
from deployments.discovery.nvml import read_nvml

NV, PCIE, ALONE = "NVLink", "PCIe", "alone"
# Name: islands as (medium, GPU indexes), then GB/s of one GPU in the first, None where it cannot be known.
EXPECTED: dict[str, tuple[list[tuple[str, list[int]]], float | None]] = {
    "dgx-a100.txt": ([(NV, [0, 1, 2, 3, 4, 5, 6, 7])], 300),
    "dgx-h100.txt": ([(NV, [0, 1, 2, 3, 4, 5, 6, 7])], 450),
    "dgx-h100.nvml.json": ([(NV, [0, 1, 2, 3, 4, 5, 6, 7])], 400),  # as fast as its slowest GPU: 16 of 18 links
    "h100-4-direct.txt": ([(NV, [0, 1, 2, 3])], 450),
    "h100-fabric-in-progress.txt": ([(NV, [0, 1, 2, 3, 4, 6, 7]), (ALONE, [5])], 450),
    "gb200-tray.nvml.json": ([(NV, [0, 1, 2, 3])], 900),
    "gb200-unhealthy.txt": ([(NV, [0, 1, 2, 3])], 900),
    "a100-pcie-bridges.txt": ([(NV, [0, 1]), (NV, [2, 3])], 300),
    "a100-pcie-missing-bridge.txt": ([(NV, [0, 1]), (ALONE, [2]), (ALONE, [3])], 300),
    "h100-pcie-odd-pairs.txt": ([(NV, [0, 5]), (NV, [1, 2]), (NV, [3, 4]), (NV, [6, 7])], None),
    "l40s-8.txt": ([(PCIE, [0, 1, 2, 3, 4, 5, 6, 7])], None),
    "rtx-4090-4.txt": ([(PCIE, [0, 1, 2, 3])], None),
    "rtx-3090-bridges.txt": ([(NV, [0, 2]), (NV, [1, 3])], 100),
    "b200-broken.txt": ([(NV, [0, 1, 3, 4, 5, 6, 7]), (ALONE, [2])], 900),
    "v100-cube.txt": ([(NV, [0, 1, 2, 3]), (NV, [4, 5, 6, 7])], 100),
    "v100-inactive-links.txt": ([(NV, [0, 1, 2, 3])], 100),
    "a100-mig.txt": ([(NV, [1, 2, 3])], 200),
}
# Name: for each problem, words that its sentence must have.
PROBLEMS: dict[str, list[tuple[str, ...]]] = {
    "dgx-h100.nvml.json": [("GPU 6", "16 active NVLinks", "down: 3, 11", "others of its kind 18")],
    "h100-fabric-in-progress.txt": [("GPU 5", "in progress", "fabric manager")],
    "gb200-unhealthy.txt": [("GPU 1", "health is unhealthy")],
    "a100-pcie-missing-bridge.txt": [("GPU 2", "0 NVLinks", "12", "bridge"), ("GPU 3", "0 NVLinks", "12", "bridge")],
    "b200-broken.txt": [("GPU 2 (NVIDIA B200)", "0 NVLinks", "108")],
    "v100-inactive-links.txt": [("GPU 1", "5 active", "down: 5"), ("GPU 2", "5 active"), ("GPU 3", "4 active", "3, 5")],
    "a100-mig.txt": [("GPU 0", "MIG on", "nvidia-smi -i 0 -mig 0")],
}


def test_every_recorded_machine_is_in_the_table() -> None:
    assert set(EXPECTED) == {path.name for path in MACHINES.iterdir()}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_machine_has_these_islands(name: str) -> None:
    findings = find_islands([recorded(name)])
    islands, gb_per_s = EXPECTED[name]
    found = [(island.medium, [gpu.index for gpu in island.parts[0].gpus]) for island in findings.islands]
    assert sorted(found, key=lambda each: each[1]) == sorted(islands, key=lambda each: each[1])
    if gb_per_s is not None:
        link = min((island for island in findings.islands), key=lambda island: island.parts[0].gpus[0].index).link
        assert link is not None
        assert link.bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_broken_is_told_and_nothing_else_is(name: str) -> None:
    problems = find_islands([recorded(name)]).problems
    expected = PROBLEMS.get(name, [])
    assert len(problems) == len(expected), problems
    for sentence, words in zip(problems, expected, strict=True):
        assert all(word in sentence for word in ("box", *words)), sentence


def test_machines_of_one_fabric_are_one_island() -> None:
    findings = find_islands([recorded("gb200-tray.nvml.json", f"tray-{number}") for number in range(18)])
    (island,) = findings.islands
    assert (island.gpus, island.name) == (72, "9c6f5af3-53bf-49b5-a436-b66766c413c3.4026")
    assert [part.node for part in island.parts][:2] == ["tray-0", "tray-1"]


def test_the_same_clique_of_another_cluster_is_another_island() -> None:
    """Unrelated racks report the same clique (torchcomms#3612)."""
    other = copy.deepcopy(nvml_gpus("gb200-tray.nvml.json"))
    for gpu in other:
        gpu["fabric"]["cluster"] = "6a130f54faaa4b8f847fbe44ab70f917"
    findings = find_islands([recorded("gb200-tray.nvml.json", "a"), read_nvml(FakeNvml(other), "b")])
    assert [island.gpus for island in findings.islands] == [4, 4]


def test_hgx_machines_with_a_uuid_of_zeros_stay_apart() -> None:
    findings = find_islands([recorded("dgx-h100.nvml.json", name) for name in ("a", "b")])
    assert [(island.name, island.gpus) for island in findings.islands] == [("a", 8), ("b", 8)]


def test_two_machines_of_one_name_are_refused() -> None:
    with pytest.raises(DiscoveryError, match="a is given twice"):
        find_islands([recorded("l40s-8.txt", "a"), recorded("dgx-a100.txt", "a")])


def test_a_pair_that_the_driver_keeps_apart_is_no_island() -> None:
    machine = read_nvml(FakeNvml(nvml_gpus("gb200-tray.nvml.json")[:2], p2p_status=1), "box")
    findings = find_islands([machine])
    assert any("GPU 0 and GPU 1 may not use the NVLinks" in sentence for sentence in findings.problems)
    assert [island.medium for island in findings.islands] == [PCIE]


def test_gpus_of_unlike_kinds_share_no_island() -> None:
    gpus = copy.deepcopy(nvml_gpus("dgx-h100.nvml.json"))[:4]
    gpus[3] = {**gpus[3], "name": "NVIDIA H200", "memory_bytes": 143_771 * 2**20}
    islands = find_islands([read_nvml(FakeNvml(gpus), "box")]).islands
    assert sorted(island.gpus for island in islands) == [1, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 4}, "runs as NVLink 3, others of its kind as NVLink 4"),
        ({"speed_mb_per_s": 13_000}, "runs at 13 GB/s, others of its kind at 26.56 GB/s"),
        ({"pcie": [5, 4, 16]}, "uses 4 of its 16 PCIe lanes"),
        ({"fabric": {"state": 3, "status": 999, "clique": 0, "cluster": "0" * 32, "mask": 0}}, "status NVML error 999"),
        ({"fabric": {"state": 3, "status": 0, "clique": 0, "cluster": "0" * 32, "mask": 1}}, "bandwidth is degraded"),
    ],
)
def test_a_gpu_that_is_slower_than_its_like_is_told(change: dict[str, object], words: str) -> None:
    gpus = copy.deepcopy(nvml_gpus("dgx-h100.nvml.json"))[:4]
    gpus[2] = {**gpus[2], **change}
    problems = find_islands([read_nvml(FakeNvml(gpus), "box")]).problems
    assert problems
    assert all("GPU 2" in sentence for sentence in problems)
    assert any(words in sentence for sentence in problems), problems
