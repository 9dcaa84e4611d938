"""Times inside one island: measured curves where there are some, else the structure of NCCL's tuner on a bare link.

A curve is the lowest of a few lines latency + bytes * slope, one for each protocol or algorithm that the library
switches between. Between measured numbers of ranks the time is interpolated in log(ranks), above the largest it grows
as named below. `constants.json` holds the lines, fitted by `fitting.fit_lines`, and their source.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from placement.clusters.hardware import Link
from placement.collectives.group import Engine, Factors, Op

Line = tuple[float, float]  # seconds, seconds per byte
Lines = tuple[Line, ...]

_MIB = 1024**2
# Latency of NCCL grows 1.6 times per doubling up to 8 ranks, where it runs rings; with in-switch reduction and trees,
# which it takes above, far less. No curve above 8 ranks is published: 1.15 is an assumption.
_GROWTH_PER_DOUBLING = 1.15
_LOW_LATENCY_COST = 2.0  # every 4 bytes of LL carry a flag of 4 bytes
_RDMA = ("infiniband", "roce", "efa")
SOCKETS = ("ethernet", "shared-memory")  # no GPU fabric: gloo, or NCCL over sockets
_PCIE = ("pcie4", "pcie5", "pcie6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Geometric mean of two sets of lines, the upper with weight `weight`; and where they come from."""

    lower: Lines
    upper: Lines
    weight: float
    source: str

    def time_s(self, size_bytes: float) -> float:
        """Seconds for `size_bytes`."""
        lower = line_time_s(self.lower, size_bytes)
        if not self.weight:
            return lower
        return float(lower * (line_time_s(self.upper, size_bytes) / lower) ** self.weight)


def line_time_s(lines: Lines, size_bytes: float) -> float:
    """The lowest line at `size_bytes`."""
    time_s = math.inf
    for latency_s, s_per_byte in lines:
        candidate = latency_s + s_per_byte * size_bytes
        if candidate < time_s:
            time_s = candidate
    return time_s


@cache
def constants() -> Mapping[str, Any]:
    """The fitted constants, read once."""
    text = files("placement.collectives").joinpath("constants.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def volume(op: Op, ranks: int) -> float:
    """Bytes that every rank must send, as a part of the size: the bus-bandwidth factor of nccl-tests."""
    return (2 if op == "all_reduce" else 1) * (ranks - 1) / ranks


def island_curve(op: Op, ranks: int, link: Link, gpu: str, engine: Engine, factors: Factors) -> Curve:
    """The curve of `ranks` GPUs on `link`, which all of them share."""
    known = _known(gpu, link)
    library = engine if op == "all_reduce" else "nccl"
    measured = _measured(known, op, library) if known else None
    if not known or not measured:
        return _scaled(_prior(op, ranks, link), factors)
    rate = link.bandwidth_bytes_per_s / constants()["gpus"][known]["link_bytes_per_s"]
    both = Factors(latency=factors.latency, bandwidth=factors.bandwidth * rate)
    source = f"measured on {known}" if known == gpu else f"measured on {known}, which has the same link"
    return _scaled(_between(measured, op, ranks, source), both)


def _known(gpu: str, link: Link) -> str:
    """The GPU kind whose curves hold: its own if it is on the link they were measured on, else one with that link."""
    gpus = constants()["gpus"]
    if gpu in gpus:
        return gpu if gpus[gpu]["link"] == link.kind else ""
    return str(constants()["by_link"].get(link.kind, ""))


@cache
def _measured(gpu: str, op: Op, library: str) -> dict[int, Lines]:
    """Ranks to lines: the GPU's own, completed by the kinds it resembles, else those of plain NCCL."""
    found: dict[int, Lines] = {}
    for name in (gpu, *constants()["gpus"][gpu]["like"]):
        for ranks, lines in constants()["gpus"][name]["curves"].get(library, {}).get(op, {}).items():
            found.setdefault(int(ranks), tuple((us * 1e-6, us_per_mib * 1e-6 / _MIB) for us, us_per_mib in lines))
    if not found and library != "nccl":
        return _measured(gpu, op, "nccl")
    return dict(sorted(found.items()))


def _between(measured: dict[int, Lines], op: Op, ranks: int, source: str) -> Curve:
    sizes = list(measured)
    if ranks in measured:
        return Curve(lower=measured[ranks], upper=(), weight=0.0, source=source)
    if ranks > sizes[-1]:
        grown = Factors(
            latency=_GROWTH_PER_DOUBLING ** math.log2(ranks / sizes[-1]),
            bandwidth=volume(op, sizes[-1]) / volume(op, ranks),
        )
        largest = Curve(
            lower=measured[sizes[-1]], upper=(), weight=0.0, source=f"{source} with {sizes[-1]} ranks, grown"
        )
        return _scaled(largest, grown)
    above = next(size for size in sizes if size > ranks)
    below = sizes[sizes.index(above) - 1]
    weight = math.log(ranks / below) / math.log(above / below)
    return Curve(lower=measured[below], upper=measured[above], weight=weight, source=f"{source}, between rank counts")


def _scaled(curve: Curve, factors: Factors) -> Curve:
    if factors.latency == factors.bandwidth == 1.0:
        return curve
    lower, upper = (
        tuple((latency_s * factors.latency, s_per_byte / factors.bandwidth) for latency_s, s_per_byte in lines)
        for lines in (curve.lower, curve.upper)
    )
    return Curve(lower=lower, upper=upper, weight=curve.weight, source=curve.source)


def _prior(op: Op, ranks: int, link: Link) -> Curve:
    """What NCCL or gloo would take on a link that nobody measured."""
    messages, efficiency = 1.3 + 0.3 * (ranks - 2), 0.75  # NVLink 4: 6.4, 9.6, 16 us of 5 us each; 70-77 %
    if link.kind in _PCIE:
        # 7, 13 and 25 us on L40S and RTX PRO 6000; bandwidth is the geometric mean of those two and V100 PCIe, which
        # are a factor of 3 apart: GPUs on one host bridge share it, and NUMA nodes their interconnect.
        messages, efficiency = 1.0 + 0.45 * (ranks - 2), 0.45 * (2 / ranks) ** 0.8
    elif link.kind in SOCKETS:
        messages, efficiency = 2.0 * (ranks - 1), 0.9
    if op != "all_reduce":
        messages = 1 + (messages - 1) / 2  # one pass of the ring instead of two
    latency_s = messages * link.latency_s
    s_per_byte = volume(op, ranks) / (efficiency * link.bandwidth_bytes_per_s)
    source = f"structure of NCCL's tuner on the {link.kind} link ({link.source})"
    return Curve(lower=protocols(latency_s, latency_s * 1.7, s_per_byte), upper=(), weight=0.0, source=source)


def protocols(low_latency_s: float, full_latency_s: float, s_per_byte: float) -> Lines:
    """NCCL's three protocols: LL waits least and moves half, Simple the reverse, LL128 between the two."""
    middle_s = math.sqrt(low_latency_s * full_latency_s)
    return (
        (low_latency_s, s_per_byte * _LOW_LATENCY_COST),
        (middle_s, s_per_byte * math.sqrt(_LOW_LATENCY_COST)),
        (full_latency_s, s_per_byte),
    )


def network_messages(units: int, link: Link) -> float:
    """How many one-way messages in sequence an all-reduce of a few bytes takes over `units` machines.

    Over sockets a ring (2 per further machine) or a tree, whichever is shorter. Over RDMA NCCL's trees are pipelined
    and most of the time goes into entering the network: 47 us on 2 and 66 us on 32 machines (nccl issues 1244 and 652).
    """
    if link.kind in _RDMA:
        return 3.0 + 0.4 * (math.log2(units) - 1)
    return min(2.0 * (units - 1), 3.7 * math.log2(units))  # 3.7: NCCL's net hop in a tree is 1.85 of one in a ring
