"""Machines to find islands on: recorded outputs, and an NVML that answers from a file."""

# ruff: noqa: N802 - NVML's names

import ctypes
import json
from pathlib import Path
from typing import Any

from deployments.discovery.machine import Machine
from deployments.discovery.nvml import read_nvml
from deployments.discovery.smi_text import machine_from_text

MACHINES = Path(__file__).parent / "deployments" / "machines"


class FabricInfo(ctypes.Structure):
    """As `nvmlGpuFabricInfo_v2_t` of nvml.h."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("clusterUuid", ctypes.c_uint8 * 16),
        ("status", ctypes.c_uint),
        ("cliqueId", ctypes.c_uint32),
        ("state", ctypes.c_uint),
        ("healthMask", ctypes.c_uint32),
    )


class FakeNvml:
    """What discovery asks of `pynvml`, answered from a list of GPUs."""

    NVML_NVLINK_MAX_LINKS = 18
    NVML_FI_DEV_NVLINK_GET_SPEED = 164
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    c_nvmlGpuFabricInfoV_t = FabricInfo  # noqa: N815 - its name

    class NVMLError(Exception):
        """NVML does not support what was asked."""

    def __init__(self, gpus: list[dict[str, Any]], p2p_status: int = 0) -> None:
        self._gpus = gpus
        self._p2p_status = p2p_status
        self.is_open = False

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDevice"):
            raise AttributeError(name)
        return getattr(self, "_" + name.removeprefix("nvmlDevice").removeprefix("Get"), self._unsupported)

    def _unsupported(self, *_: Any) -> None:
        raise self.NVMLError("Not Supported")

    def _Count(self) -> int:
        return len(self._gpus)

    def _HandleByIndex(self, index: int) -> int:
        return index

    def _Name(self, gpu: int) -> str:
        return str(self._gpus[gpu]["name"])

    def _UUID(self, gpu: int) -> bytes:
        return f"GPU-{gpu}".encode()

    def _MemoryInfo(self, gpu: int) -> Any:
        return _Values(total=self._gpus[gpu]["memory_bytes"])

    def _MigMode(self, gpu: int) -> list[int]:
        mig = int(self._gpus[gpu].get("mig", 0))
        return [mig, mig]

    def _MaxPcieLinkGeneration(self, gpu: int) -> int:
        return int(self._gpus[gpu]["pcie"][0])

    def _CurrPcieLinkWidth(self, gpu: int) -> int:
        return int(self._gpus[gpu]["pcie"][1])

    def _MaxPcieLinkWidth(self, gpu: int) -> int:
        return int(self._gpus[gpu]["pcie"][2])

    def _NvLinkState(self, gpu: int, link: int) -> int:
        if link >= self._gpus[gpu]["links"]:
            raise self.NVMLError("Invalid Argument")
        return int(link not in self._gpus[gpu].get("down", ()))

    def _NvLinkVersion(self, gpu: int, link: int) -> int:
        return int(self._gpus[gpu]["version"])

    def _NvLinkRemoteDeviceType(self, gpu: int, link: int) -> int:
        if self._gpus[gpu]["remote"] is None:
            raise self.NVMLError("Function Not Found")
        return int(self._gpus[gpu]["remote"])

    def _NvLinkRemotePciInfo(self, gpu: int, link: int) -> Any:
        return _Values(busId=self._gpus[gpu].get("peers", ["0000:05:00.0"] * 18)[link].encode())

    def _PciInfo(self, gpu: int) -> Any:
        return _Values(busId=f"00000000:0{gpu}:00.0".encode())

    def _FieldValues(self, gpu: int, fields: Any) -> list[Any]:
        return [_Values(nvmlReturn=0, value=_Values(uiVal=self._gpus[gpu]["speed_mb_per_s"]))]

    def _TopologyCommonAncestor(self, a: int, b: int) -> int:
        return 50

    def _P2PStatus(self, a: int, b: int, index: int) -> int:
        return self._p2p_status

    def _GpuFabricInfoV(self, gpu: int, pointer: Any) -> int:
        fabric = self._gpus[gpu].get("fabric")
        if fabric is None:
            raise self.NVMLError("Not Supported")
        info = pointer._obj
        info.clusterUuid[:] = bytes.fromhex(fabric["cluster"])
        info.status, info.cliqueId, info.state = fabric["status"], fabric["clique"], fabric["state"]
        info.healthMask = fabric["mask"]
        return 0


class _Values:
    def __init__(self, **values: Any) -> None:
        self.__dict__ |= values


def recorded(name: str, host: str = "box") -> Machine:
    """The machine of a recorded output, called `host`."""
    if name.endswith(".nvml.json"):
        return read_nvml(FakeNvml(nvml_gpus(name)), host)
    return machine_from_text((MACHINES / name).read_text(encoding="utf-8"), host)


def nvml_gpus(name: str) -> list[dict[str, Any]]:
    """The values of a recorded NVML."""
    gpus: list[dict[str, Any]] = json.loads((MACHINES / name).read_text(encoding="utf-8"))["gpus"]
    return gpus
