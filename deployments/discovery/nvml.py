"""Reads a machine through NVML, with a module such as `pynvml` given. What a driver does not support is left open."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from ctypes import byref
from itertools import combinations
from typing import Any

from deployments.discovery.machine import COMPLETED, SUCCESS, Connection, Fabric, FoundGpu, Machine, NvLink

# nvml.h, nvmlNvlinkVersion_t: 1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0, 6.0
_GENERATIONS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5, 8: 6}
_ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_STATES = {1: "not started", 2: "in progress", 3: COMPLETED}
_IS_TRUE = 1  # in each pair of bits of the health mask: 0 not supported, 1 true, 2 false
_HEALTH = ((0, "its bandwidth is degraded"), (4, "a route of it is unhealthy"))
# What is at the other end. A switch, or what a virtual machine cannot see, is the way to all GPUs (nccl#1182).
_TO_GPU, _TO_PROCESSOR = 0, 1


def read_nvml(nvml: Any, host: str) -> Machine:
    """All GPUs that NVML shows. Raises `nvml.NVMLError` where there is no driver."""
    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        gpus = tuple(_gpu(nvml, index, handle) for index, handle in enumerate(handles))
        return Machine(host=host, source="NVML", gpus=gpus, connections=tuple(_connections(nvml, handles)))
    finally:
        nvml.nvmlShutdown()


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """The answer, None where the driver, the library or the GPU has none."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _gpu(nvml: Any, index: int, handle: Any) -> FoundGpu:
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    mig = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    return FoundGpu(
        index=index,
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)),
        uuid=_text(_ask(nvml, "nvmlDeviceGetUUID", handle)),
        memory_bytes=int(memory.total) if memory else None,
        has_mig=bool(mig and mig[0]),
        nvlinks=tuple(_link(nvml, handle, number, state) for number, state in _links(nvml, handle)),
        fabric=_fabric(nvml, handle),
        pcie_generation=_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_lanes=_ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        pcie_max_lanes=_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
    )


def _links(nvml: Any, handle: Any) -> Iterable[tuple[int, int]]:
    """The links that the GPU has, with 1 for one that is up."""
    numbers = range(nvml.NVML_NVLINK_MAX_LINKS)
    states = ((number, _ask(nvml, "nvmlDeviceGetNvLinkState", handle, number)) for number in numbers)
    return ((number, int(state)) for number, state in states if state is not None)


def _link(nvml: Any, handle: Any, number: int, state: int) -> NvLink:
    if not state:
        return NvLink(is_active=False)
    version = _ask(nvml, "nvmlDeviceGetNvLinkVersion", handle, number)
    speeds = _ask(nvml, "nvmlDeviceGetFieldValues", handle, [(nvml.NVML_FI_DEV_NVLINK_GET_SPEED, number)])
    is_told = speeds is not None and speeds[0].nvmlReturn == 0 and speeds[0].value.uiVal > 0
    return NvLink(
        is_active=True,
        generation=_GENERATIONS.get(version),
        bytes_per_s=speeds[0].value.uiVal * 1e6 if is_told else None,  # nvml.h: MB/s
    )


def _fabric(nvml: Any, handle: Any) -> Fabric | None:
    if not hasattr(nvml, "c_nvmlGpuFabricInfoV_t"):
        return None
    info = nvml.c_nvmlGpuFabricInfoV_t()
    if _ask(nvml, "nvmlDeviceGetGpuFabricInfoV", handle, byref(info)) is None or info.state not in _STATES:
        return None
    return Fabric(
        state=_STATES[info.state],
        # Only a completed registration has a status (nvmlGpuFabricInfo_v2_t).
        status=SUCCESS if info.state != 3 or info.status == 0 else f"NVML error {info.status}",
        cluster_uuid=str(uuid.UUID(bytes=bytes(info.clusterUuid).ljust(16, b"\0"))),
        clique=info.cliqueId,
        troubles=tuple(text for shift, text in _HEALTH if info.healthMask >> shift & 3 == _IS_TRUE),
    )


def _connections(nvml: Any, handles: list[Any]) -> Iterable[Connection]:
    names = [_bus(_ask(nvml, "nvmlDeviceGetPciInfo", handle)) for handle in handles]
    ends = [_ends(nvml, handle, names) for handle in handles]
    for a, b in combinations(range(len(handles)), 2):
        switched = min(ends[a].get("", 0), ends[b].get("", 0))
        links = min(ends[a].get(names[b], 0), ends[b].get(names[a], 0)) or switched
        ancestor = _ask(nvml, "nvmlDeviceGetTopologyCommonAncestor", handles[a], handles[b])
        status = _p2p_status(nvml, handles[a], handles[b]) if links else 0
        yield Connection(
            a=a,
            b=b,
            nvlinks=0 if status else links,
            pcie=_ANCESTORS.get(ancestor, ""),
            refused=f"NVML P2P status {status}, with {links} NVLinks up" if status else "",
        )


def _p2p_status(nvml: Any, a: Any, b: Any) -> int:
    """0 where the driver lets the two talk over NVLink, or does not say."""
    return int(_ask(nvml, "nvmlDeviceGetP2PStatus", a, b, nvml.NVML_P2P_CAPS_INDEX_NVLINK) or 0)


def _ends(nvml: Any, handle: Any, names: Sequence[str]) -> Mapping[str, int]:
    """How many active links go to each GPU, by its place on the bus; under "" those to a switch."""
    count: dict[str, int] = {}
    for number, state in _links(nvml, handle):
        kind = _ask(nvml, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)
        if not state or kind == _TO_PROCESSOR:
            continue
        place = _bus(_ask(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, number))
        end = place if kind == _TO_GPU or place in names else ""  # old drivers tell the place only
        count[end] = count.get(end, 0) + 1
    return count


def _bus(info: Any) -> str:
    return _text(info.busId).lower() if info is not None else "?"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
