"""One machine as it was read: its GPUs, their NVLinks, and how each pair is connected. Pure values, and their JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

NO_UUID = "00000000-0000-0000-0000-000000000000"
COMPLETED, SUCCESS = "completed", "success"


class DiscoveryError(Exception):
    """The GPUs of a machine could not be read. The message says what was tried and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvLink:
    """One NVLink of a GPU. `generation` is 1 to 6; `bytes_per_s` is the rate in one direction that the driver tells."""

    is_active: bool
    generation: int | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What a GPU says of the NVLink fabric that it has registered with.

    `state` and `status` are as in `nvidia-smi -q`, in lower case. `troubles` are sentences' ends, such as "its
    bandwidth is degraded".
    """

    state: str
    status: str = SUCCESS
    cluster_uuid: str = NO_UUID
    clique: int = 0
    troubles: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether NVLink can be used. Links train, and look active, without that."""
        return self.state == COMPLETED and self.status == SUCCESS

    @property
    def domain(self) -> str | None:
        """The name of the fabric where it spans machines, as the GPU operator's label `nvidia.com/gpu.clique` has it.

        A clique's number is unique only within its cluster. The GPUs of one HGX board report a completed fabric with a
        UUID of zeros: they share it with no other machine.
        """
        spans_machines = self.is_ready and self.cluster_uuid not in ("", NO_UUID)
        return f"{self.cluster_uuid}.{self.clique}" if spans_machines else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundGpu:
    """One GPU. What could not be read is None or empty; `nvlinks` is None where the links were not looked at."""

    index: int
    name: str = ""
    uuid: str = ""
    memory_bytes: int | None = None
    has_mig: bool = False
    nvlinks: tuple[NvLink, ...] | None = None
    fabric: Fabric | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    pcie_max_lanes: int | None = None

    @property
    def active_nvlinks(self) -> int | None:
        """How many of its NVLinks are up."""
        return None if self.nvlinks is None else sum(link.is_active for link in self.nvlinks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How the GPUs with indexes `a` < `b` reach each other: over so many NVLinks, else PCIe in `nvidia-smi`'s words.

    `refused` says why the driver does not let them talk over the NVLinks they have.
    """

    a: int
    b: int
    nvlinks: int = 0
    pcie: str = ""
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One operating system with its GPUs; `source` says how they were read, `notes` what was odd about it."""

    host: str
    source: str
    gpus: tuple[FoundGpu, ...]
    connections: tuple[Connection, ...] = ()
    notes: tuple[str, ...] = ()

    def connection(self, a: int, b: int) -> Connection:
        """The connection of two GPUs by their indexes, in any order."""
        low, high = min(a, b), max(a, b)
        return self._by_pair.get((low, high)) or Connection(a=low, b=high)

    @cached_property
    def _by_pair(self) -> Mapping[tuple[int, int], Connection]:
        return {(each.a, each.b): each for each in self.connections}


_MACHINES = TypeAdapter(tuple[Machine, ...])


def machines_document(machines: tuple[Machine, ...]) -> list[dict[str, Any]]:
    """What `read_machines` takes, as JSON values."""
    document: list[dict[str, Any]] = _MACHINES.dump_python(machines, mode="json", exclude_defaults=True)
    return document


def read_machines(document: Any, where: str) -> tuple[Machine, ...]:
    """The machines that `machines_document` wrote. Raises `DiscoveryError`, which starts with `where`."""
    try:
        return _MACHINES.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        wrong = f"machines.{path}: {first['msg']}" if path else "no list of machines"
        raise DiscoveryError(f"{where}: {wrong}; give what `archipelago islands --json` wrote.") from error
