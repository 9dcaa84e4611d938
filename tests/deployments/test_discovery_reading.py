"""Reading the machine: what the driver answers, what the kernel lists, and how fast its processes talk."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from discovery_builders import MACHINES, FakeNvml, nvml_gpus

from deployments.discovery import reading
from deployments.discovery.grouping import find_islands
from deployments.discovery.machine import DiscoveryError
from deployments.discovery.measuring import Measured, Task
from deployments.discovery.nvml import read_nvml
from deployments.discovery.sysfs import read_sysfs
from placement import Links
from placement.collectives import Group, send_recv


@pytest.mark.parametrize("kind", [0, None], ids=["told to be GPUs", "of an old driver"])
def test_bridges_are_seen_through_the_bus_ids_of_their_ends(kind: int | None) -> None:
    gpus = [{**copy.deepcopy(nvml_gpus("dgx-h100.nvml.json")[0]), "remote": kind, "links": 12} for _ in range(4)]
    for index, gpu in enumerate(gpus):
        gpu["peers"] = [f"00000000:0{index ^ 1}:00.0"] * 12
    islands = find_islands([read_nvml(FakeNvml(gpus), "box")]).islands
    assert [[gpu.index for gpu in island.parts[0].gpus] for island in islands] == [[0, 1], [2, 3]]
    assert {island.link.bandwidth_bytes_per_s for island in islands if island.link} == {300e9}


def test_nvml_is_closed_whatever_it_answers() -> None:
    nvml = FakeNvml([])
    assert read_nvml(nvml, "box").gpus == ()
    assert not nvml.is_open


def test_a_driver_that_supports_nothing_still_counts_its_gpus() -> None:
    class Old(FakeNvml):
        """NVML of a GPU from before NVLink."""

        def __getattr__(self, name: str) -> object:
            return super().__getattr__(name) if name.endswith(("Count", "HandleByIndex")) else self._unsupported

    findings = find_islands([read_nvml(Old(nvml_gpus("dgx-h100.nvml.json")[:2]), "box")])
    assert [island.medium for island in findings.islands] == ["PCIe"]


def kernel(root: Path, gpus: dict[str, tuple[str, str]]) -> None:
    """Lists GPUs below `root` as the kernel does: bus id to the path of its bridges, and its NUMA node."""
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    for bus_id, (bridges, numa) in gpus.items():
        folder = root / "sys/devices" / bridges / bus_id
        folder.mkdir(parents=True)
        values = {"vendor": "0x10de", "class": "0x030200", "numa_node": numa, "max_link_speed": "16.0 GT/s PCIe"}
        for name, value in (values | {"max_link_width": "16", "current_link_width": "8"}).items():
            (folder / name).write_text(value + "\n", encoding="utf-8")
        (root / "sys/bus/pci/devices" / bus_id).symlink_to(folder)
        information = root / "proc/driver/nvidia/gpus" / bus_id / "information"
        information.parent.mkdir(parents=True)
        information.write_text("Model: \t\t NVIDIA L40S\nIRQ:   \t\t 42\n", encoding="utf-8")


def test_without_the_drivers_tools_pcie_is_read_from_the_kernel(tmp_path: Path) -> None:
    places = {
        "0000:01:00.0": ("pci0000:00/0000:00:01.0", "0"),
        "0000:02:00.0": ("pci0000:00/0000:00:01.0", "0"),
        "0000:03:00.0": ("pci0000:00/0000:00:02.0", "0"),
        "0000:41:00.0": ("pci0000:40/0000:40:01.0", "0"),
        "0000:81:00.0": ("pci0000:80/0000:80:01.0", "1"),
    }
    kernel(tmp_path, places)
    machine = read_sysfs(tmp_path, "box")
    assert [machine.connection(0, other).pcie for other in range(1, 5)] == ["PXB", "PHB", "NODE", "SYS"]
    findings = find_islands([machine])
    (island,) = findings.islands
    assert (island.medium, island.gpus, island.parts[0].gpus[0].name) == ("PCIe", 5, "NVIDIA L40S")
    assert island.link is not None
    assert island.link.bandwidth_bytes_per_s == pytest.approx(15.75e9, rel=0.01)
    assert sum("uses 8 of its 16 PCIe lanes" in sentence for sentence in findings.problems) == 5
    assert any("NVLinks cannot be seen" in note for note in findings.notes)


def test_nothing_found_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiscoveryError, match=r"no GPU .*nvidia-ml-py is not installed; nvidia-smi is not .*; sysfs"):
        reading.read_machine(tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9",
            "nvidia-smi says: NVIDIA-SMI",
        ),
        ("echo nonsense", "no GPU in this text"),
    ],
)
def test_nvidia_smi_that_fails_is_quoted(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiscoveryError, match=message):
        reading.read_machine(tmp_path)


def test_nvidia_smi_is_asked_where_there_is_no_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'#!/bin/sh\n[ "$1" != topo ] || /bin/cat {MACHINES / "a100-pcie-bridges.txt"}\n'
    (tmp_path / "nvidia-smi").write_text(script, encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = reading.read_machine(tmp_path)
    assert [island.gpus for island in find_islands([machine]).islands] == [2, 2]
    assert "nvidia-ml-py is not installed" in machine.notes[0]


def test_a_measured_link_makes_the_planner_predict_what_was_measured() -> None:
    latency_s, bytes_per_s = 8e-6, 350e9
    sizes = (64, 2**12, 2**16, 2**20, 2**24, 2**28)
    times = {size: latency_s + size / bytes_per_s for size in sizes}
    measured = Measured(
        task=Task(level="island", link_kind="nvlink4", ranks=4), send_recv_s=times, all_reduce_s={2**28: 1e-3}
    )
    assert (measured.latency_s, measured.transfer_bytes_per_s) == pytest.approx((latency_s, bytes_per_s))
    assert measured.bus_bytes_per_s == pytest.approx(1.5 * 2**28 / 1e-3)
    pair = Group(ranks=2, links=Links(island=measured.link, network=measured.link))
    assert send_recv(2**28, pair).time_s == pytest.approx(times[2**28], rel=0.05)


@pytest.mark.slow
def test_processes_of_this_machine_are_really_measured() -> None:
    command = [sys.executable, "-c", "import sys; from deployments.cli import main; sys.exit(main(sys.argv[1:]))"]
    arguments = ["islands", "--measure", "--processes", "2", "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)["measured"]["island"]
    assert result["ranks"] == 2
    assert 1e-6 < result["latency_s"] < 0.1
    assert 1e7 < result["transfer_bytes_per_s"] < 1e12
    assert set(result["send_recv_s"]) == set(result["all_reduce_s"])
