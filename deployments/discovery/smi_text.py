"""Reads what `nvidia-smi` prints: `topo -m`, and if they are there `-L`, `nvlink -s` and `-q`, one after another.

No output is complete: a driver leaves out what it does not know, people cut off the ends. Only the matrix is needed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from deployments.discovery.machine import SUCCESS, Connection, DiscoveryError, Fabric, FoundGpu, Machine, NvLink

COMMANDS = (("-L",), ("topo", "-m"), ("nvlink", "-s"), ("-q",))
MAX_GPUS = 32  # what one operating system has been seen with is 20; beyond it the search for islands takes too long

_UNDERLINE = re.compile(r"\x1b\[[0-9;]*m")  # `topo -m` underlines its first line
_COLUMN = re.compile(r"GPU([0-9]{1,4})")
_NVLINKS = re.compile(r"NV([0-9]{1,3})")
_PCIE = {"SYS", "SOC", "NODE", "PHB", "PXB", "PIX", "PSB"}
_GPU = re.compile(r"GPU ([0-9]{1,4}): (.+?) \(UUID: ([^)]*)\)")
_LINK = re.compile(r"\s+Link ([0-9]{1,3}): (?:([0-9.]{1,12}) GB/s|<inactive>)")
_MIG_DEVICE = re.compile(r"\s+MIG \S+\s+Device ")
_QUERIED_GPU = re.compile(r"GPU [0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9]")
_FIELD = re.compile(r"(\s+)(\S.*?)(?:\s*:\s(.*))?")
_NVLINK5_BYTES_PER_S = 40e9  # a link of NVLink 5 has 53, of all before at most 27


@dataclass(slots=True)
class _Seen:
    """What the text has said of one GPU so far."""

    values: dict[str, Any] = field(default_factory=dict)
    links: dict[int, NvLink] | None = None


def machine_from_text(text: str, host: str) -> Machine:
    """The machine whose `nvidia-smi` printed `text`. Raises `DiscoveryError`."""
    lines = _UNDERLINE.sub("", text).splitlines()
    columns, rows = _matrix(lines)
    listed = _listed(lines)
    indexes = columns or sorted(listed)
    if not indexes:
        raise DiscoveryError(f"{host}: no GPU in this text; give what `nvidia-smi topo -m` prints.")
    if len(indexes) > MAX_GPUS or len(set(indexes)) != len(indexes):
        raise DiscoveryError(
            f"{host}: {len(indexes)} GPUs in the matrix; give the output of one machine, with at most {MAX_GPUS} GPUs."
        )
    if not columns and len(indexes) > 1:
        raise DiscoveryError(f"{host}: {len(indexes)} GPUs but no matrix; add what `nvidia-smi topo -m` prints.")
    queried = list(_queried(lines))
    if len(queried) == len(indexes):
        for index, values in zip(sorted(indexes), queried, strict=True):
            seen = listed.setdefault(index, _Seen())
            seen.values = {**values, **seen.values, "has_mig": values["has_mig"] or seen.values.get("has_mig", False)}
    gpus = tuple(_gpu(index, listed.get(index, _Seen())) for index in sorted(indexes))
    connections, notes = _connections(host, sorted(indexes), columns, rows)
    return Machine(host=host, source="nvidia-smi", gpus=gpus, connections=tuple(connections), notes=tuple(notes))


def _matrix(lines: Sequence[str]) -> tuple[list[int], dict[int, list[str]]]:
    """The GPUs of the columns, and the words of each row after its name."""
    columns: list[int] = []
    rows: dict[int, list[str]] = {}
    for line in lines:
        words = line.split()
        if not words or not _COLUMN.fullmatch(words[0]):
            continue
        names = [int(found[1]) for found in map(_COLUMN.fullmatch, words) if found]
        if not columns and (len(names) == len(words) or len(names) > 1 or words[1] == "CPU"):
            columns = names
        elif columns:
            rows.setdefault(names[0], words[1:])
    return columns, rows


def _connections(
    host: str, indexes: Sequence[int], columns: Sequence[int], rows: Mapping[int, Sequence[str]]
) -> tuple[list[Connection], list[str]]:
    position = {index: place for place, index in enumerate(columns)}
    found, notes = [], []
    for a, b in combinations(indexes, 2):
        there, back = (_cell(host, rows, of, to, position[to]) for of, to in ((a, b), (b, a)))
        if there != back:
            notes.append(f"GPU {a} says {there} of GPU {b}, which says {back} of it; the lesser is taken")
        links = [int(match[1]) if (match := _NVLINKS.fullmatch(cell)) else 0 for cell in (there, back)]
        pcie = next((cell for cell in (there, back) if cell in _PCIE), "")
        found.append(Connection(a=a, b=b, nvlinks=min(links), pcie=pcie))
    return found, notes


def _cell(host: str, rows: Mapping[int, Sequence[str]], of: int, to: int, position: int) -> str:
    row = rows.get(of, ())
    if position >= len(row):
        raise DiscoveryError(f"{host}: the row of GPU{of} is cut off before GPU{to}; give the whole matrix.")
    cell = row[position]
    if cell not in _PCIE and not _NVLINKS.fullmatch(cell):
        accepted = ", ".join(sorted(_PCIE))
        raise DiscoveryError(f"{host}: GPU{of} to GPU{to} is {cell[:40]!r}; it must be NV and a number, or {accepted}.")
    return cell


def _listed(lines: Sequence[str]) -> dict[int, _Seen]:
    """What `-L` and `nvlink -s` say, which start a GPU with the same line."""
    seen: dict[int, _Seen] = {}
    gpu: _Seen | None = None
    for line in lines:
        if found := _GPU.match(line):
            gpu = seen.setdefault(int(found[1]), _Seen())
            gpu.values |= {"name": found[2], "uuid": found[3]}
        elif gpu is None:
            continue
        elif link := _LINK.match(line):
            gpu.links = {**(gpu.links or {}), int(link[1]): _link(link[2])}
        elif "all links are inactive" in line.lower():
            gpu.links = gpu.links or {}
        elif _MIG_DEVICE.match(line):
            gpu.values["has_mig"] = True
    return seen


def _link(speed: str | None) -> NvLink:
    try:
        bytes_per_s = float(speed or "") * 1e9
    except ValueError:
        return NvLink(is_active=False)
    return NvLink(
        is_active=bytes_per_s > 0,
        generation=5 if bytes_per_s > _NVLINK5_BYTES_PER_S else None,
        bytes_per_s=bytes_per_s or None,
    )


def _gpu(index: int, seen: _Seen) -> FoundGpu:
    links = None if seen.links is None else tuple(seen.links[number] for number in sorted(seen.links))
    return replace(FoundGpu(index=index, nvlinks=links), **seen.values)


def _queried(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The GPUs of `nvidia-smi -q`, in the order of their indexes."""
    fields: dict[str, str] | None = None
    path: list[tuple[int, str]] = []
    for line in lines:
        if _QUERIED_GPU.match(line):
            if fields is not None:
                yield _values(fields)
            fields, path = {}, []
        elif fields is not None and (found := _FIELD.fullmatch(line)):
            depth = len(found[1])
            path = [*(part for part in path if part[0] < depth), (depth, found[2].lower())]
            fields.setdefault("/".join(name for _, name in path), (found[3] or "").strip())
    if fields is not None:
        yield _values(fields)


def _values(fields: Mapping[str, str]) -> dict[str, Any]:
    memory = _number(fields.get("fb memory usage/total"))
    values = {
        "name": fields.get("product name"),
        "uuid": fields.get("gpu uuid"),
        "memory_bytes": None if memory is None else memory * 2**20,
        "has_mig": fields.get("mig mode/current", "").lower() == "enabled",
        "fabric": _fabric(fields),
        "pcie_generation": _number(fields.get("pci/gpu link info/pcie generation/max")),
        "pcie_lanes": _number(fields.get("pci/gpu link info/link width/current")),
        "pcie_max_lanes": _number(fields.get("pci/gpu link info/link width/max")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _fabric(fields: Mapping[str, str]) -> Fabric | None:
    state = fields.get("fabric/state", "n/a").lower()
    if state in ("n/a", "not supported", ""):
        return None
    health = {
        name.rpartition("/")[2]: value.lower() for name, value in fields.items() if name.startswith("fabric/health")
    }
    troubles = (
        [f"its health is {health['summary']}"] if health.get("summary") in ("unhealthy", "limited capacity") else []
    )
    if health.get("bandwidth") == "degraded":
        troubles.append("its bandwidth is degraded")
    status = fields.get("fabric/status", "").lower()
    return Fabric(
        state=state,
        status=SUCCESS if status in ("", "n/a") else status,
        cluster_uuid=fields.get("fabric/clusteruuid", "").lower().replace("n/a", ""),
        clique=_number(fields.get("fabric/cliqueid")) or 0,
        troubles=tuple(troubles),
    )


def _number(text: str | None) -> int | None:
    """The whole number at the start, as in "81559 MiB" and "16x"."""
    found = re.match(r"[0-9]{1,12}", text or "")
    return int(found[0]) if found else None
