"""The last resort: NVIDIA GPUs as the kernel lists them. PCIe can be read there; NVLink cannot."""

from itertools import combinations
from pathlib import Path

from deployments.discovery.machine import Connection, FoundGpu, Machine

_NVIDIA = "0x10de"
_DISPLAYS = ("0x0300", "0x0302")  # PCI class: VGA, and 3D without a display
_GENERATIONS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}
_UNSEEN = "NVLinks cannot be seen without the driver's tools; install nvidia-ml-py or nvidia-smi"


def read_sysfs(root: Path, host: str) -> Machine:
    """The machine below `root`, which is "/" but for tests; it has no GPUs where the kernel lists none."""
    folders = [folder for folder in sorted((root / "sys/bus/pci/devices").glob("*")) if _is_gpu(folder)]
    gpus = tuple(_gpu(root, index, folder) for index, folder in enumerate(folders))
    pairs = combinations(range(len(folders)), 2)
    connections = tuple(Connection(a=a, b=b, pcie=_distance(folders[a], folders[b])) for a, b in pairs)
    notes = (_UNSEEN,) if gpus else ()
    return Machine(host=host, source="sysfs", gpus=gpus, connections=connections, notes=notes)


def _is_gpu(folder: Path) -> bool:
    return _word(folder / "vendor") == _NVIDIA and _word(folder / "class").startswith(_DISPLAYS)


def _gpu(root: Path, index: int, folder: Path) -> FoundGpu:
    return FoundGpu(
        index=index,
        name=_model(root / "proc/driver/nvidia/gpus" / folder.name / "information"),
        pcie_generation=_GENERATIONS.get(_word(folder / "max_link_speed")),
        pcie_lanes=_count(folder / "current_link_width"),
        pcie_max_lanes=_count(folder / "max_link_width"),
    )


def _distance(a: Path, b: Path) -> str:
    """In the words of `nvidia-smi topo`: from the places of both in the tree of PCI bridges."""
    shared = [left for left, right in zip(a.resolve().parts, b.resolve().parts, strict=False) if left == right]
    below_root = [part for part in shared if part.count(":") == 2]
    if below_root:
        return "PXB"
    if any(part.startswith("pci") and ":" in part for part in shared):
        return "PHB"
    return "NODE" if _word(a / "numa_node") == _word(b / "numa_node") else "SYS"


def _model(information: Path) -> str:
    lines = (line.partition(":") for line in _read(information).splitlines())
    return next((value.strip() for name, _, value in lines if name == "Model"), "")


def _count(path: Path) -> int | None:
    word = _word(path)
    return int(word) if word.isdecimal() and 0 < int(word) <= 32 else None


def _word(path: Path) -> str:
    """The first word of a file: "16.0 GT/s PCIe" is 16.0."""
    return next(iter(_read(path).split()), "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
