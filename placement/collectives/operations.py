"""Times of collectives by level: inside an island, between islands of a machine, between machines."""

from dataclasses import dataclass
from functools import lru_cache

from placement.collectives.curves import (
    SOCKETS,
    Curve,
    Lines,
    island_curve,
    line_time_s,
    network_messages,
    protocols,
    volume,
)
from placement.collectives.engines import Choice, all_reduce_choice, library
from placement.collectives.group import (
    NOTHING,
    Calibration,
    Engine,
    Group,
    Op,
    Span,
    Transfer,
    require_engine,
    require_size,
)

_NETWORK_EFFICIENCY = 0.92  # 46-48 GB/s of 400 Gbit/s, 11-12 GB/s of 100 Gbit/s: headers and flow control
_PCIE_EFFICIENCY = 0.77  # 49 GB/s over PCIe 5 between the NVLink pairs of a machine with four H100
# Latency of NCCL's full-bandwidth protocol against LL, inside and between machines, and over sockets: rounded, chosen
# on the tables of A100, B200 and V100 clusters that `constants.json` names; the error is flat around these.
_SIMPLE_INSIDE, _SIMPLE_OUTSIDE, _SIMPLE_SOCKETS = 1.5, 1.7, 3.5
_SEND_EFFICIENCY = 0.75  # one pair of GPUs: 348 of 450 GB/s over NVLink 4, 36 of 50 GB/s over 400 Gbit/s


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A border that messages cross: `ranks` GPUs in `units` equal parts, which are linked inside by `inside`."""

    span: Span
    ranks: int
    units: int
    inside: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCurve:
    """Time of one op on one group as a function of size: the slowest of the levels it crosses."""

    inner: tuple[Curve, ...]
    outer: tuple[Lines, ...]
    choice: Choice
    source: str

    def time_s(self, size_bytes: float) -> float:
        """Seconds for `size_bytes`, counted as in `all_reduce` and its siblings."""
        time_s = max(curve.time_s(size_bytes) for curve in self.inner)
        for lines in self.outer:
            time_s = max(time_s, line_time_s(lines, size_bytes))
        return time_s

    def transfer(self, size_bytes: float) -> Transfer:
        """The same with its algorithm and source."""
        algorithm = next(name for largest, name in self.choice if size_bytes <= largest)
        return Transfer(time_s=self.time_s(size_bytes), algorithm=algorithm, source=self.source)


def all_reduce(size_bytes: float, group: Group, engine: Engine = "vllm") -> Transfer:
    """Sum a tensor of `size_bytes` that every rank holds, and leave the sum on every rank."""
    return _transfer("all_reduce", size_bytes, group, engine)


def all_gather(size_bytes: float, group: Group, engine: Engine = "vllm") -> Transfer:
    """Give every rank all parts; `size_bytes` is the whole gathered tensor."""
    return _transfer("all_gather", size_bytes, group, engine)


def reduce_scatter(size_bytes: float, group: Group, engine: Engine = "vllm") -> Transfer:
    """Sum a tensor of `size_bytes` that every rank holds, and leave one part of the sum on each rank."""
    return _transfer("reduce_scatter", size_bytes, group, engine)


def all_to_all(size_bytes: float, group: Group, engine: Engine = "vllm") -> Transfer:
    """Every rank sends an equal part of its `size_bytes` to every rank, itself included."""
    return _transfer("all_to_all", size_bytes, group, engine)


def send_recv(size_bytes: float, group: Group) -> Transfer:
    """One rank sends `size_bytes` to another; `group` are the two."""
    require_size(size_bytes)
    if group.ranks == 1:
        return NOTHING
    link, factors = group.link(group.span)
    latency_s = link.latency_s * factors.latency
    s_per_byte = 1 / (_SEND_EFFICIENCY * link.bandwidth_bytes_per_s * factors.bandwidth)
    time_s = line_time_s(protocols(latency_s, 1.6 * latency_s, s_per_byte), size_bytes)
    return Transfer(time_s=time_s, algorithm=f"point to point over {link.kind}", source=f"link: {link.source}")


def _transfer(op: Op, size_bytes: float, group: Group, engine: Engine) -> Transfer:
    require_size(size_bytes)
    return NOTHING if group.ranks == 1 else _cached_curve(op, group, engine).transfer(size_bytes)


def collective_curve(op: Op, group: Group, engine: Engine = "vllm") -> CollectiveCurve:
    """The curve of `op` on `group`, which must have two ranks or more."""
    require_engine(engine)
    inside = group.inside
    levels: list[Level] = []
    if group.span == "machine" and inside == "island":
        levels.append(Level(span="machine", ranks=group.ranks, units=group.islands, inside=inside))
    if group.span == "network":
        levels.append(Level(span="network", ranks=group.ranks, units=group.machines, inside=inside))
        ranks, islands = -(-group.ranks // group.machines), -(-group.islands // group.machines)
        if inside == "island" and islands > 1:
            levels.append(Level(span="machine", ranks=ranks, units=islands, inside=inside))
    link, factors = group.link(inside)
    # Beyond one machine the engine runs NCCL, but is never taken to be faster than with the same ranks inside.
    own = library(engine, group.ranks)
    engines: tuple[Engine, ...] = (own, "nccl") if levels and own != "nccl" else (own,)
    inner = tuple(island_curve(op, group.ranks, link, group.gpu, each, factors) for each in engines)
    choice = all_reduce_choice(group, engine) if op == "all_reduce" else ((float("inf"), "NCCL"),)
    sources = [f"structure of NCCL's tuner over {group.link(level.span)[0].kind}" for level in levels]
    calibrated = ["calibrated"] if group.calibration != Calibration() else []
    return CollectiveCurve(
        inner=inner,
        outer=tuple(_lines(op, group, level) for level in levels),
        choice=choice,
        source="; ".join((*sources, inner[-1].source, *calibrated)),
    )


_cached_curve = lru_cache(maxsize=4096)(collective_curve)


def _lines(op: Op, group: Group, level: Level) -> Lines:
    """Rings through every rank, which cross each border once per channel; latency as a tree where that is shorter.

    The same ranks on more units wait at least as long as on fewer.
    """
    link, factors = group.link(level.span)
    per_unit = -(-level.ranks // level.units)
    # An NVLink pair leaves over one host bridge: half a link for each GPU.
    senders = max(per_unit, group.network_gpus) if level.span == "network" else per_unit / 2
    efficiency = _NETWORK_EFFICIENCY if level.span == "network" else _PCIE_EFFICIENCY
    rate = senders * efficiency * link.bandwidth_bytes_per_s * factors.bandwidth
    waits = [_waits_s(op, group, level, count) for count in range(2, level.units + 1)]
    low_s = max(inside_s + outside_s for inside_s, outside_s in waits)
    simple = _SIMPLE_SOCKETS if link.kind in SOCKETS else _SIMPLE_OUTSIDE
    full_s = max(_SIMPLE_INSIDE * inside_s + simple * outside_s for inside_s, outside_s in waits)
    sent = per_unit * (level.ranks - per_unit) / level.ranks if op == "all_to_all" else volume(op, level.ranks)
    return protocols(low_s, full_s, sent / rate)


def _waits_s(op: Op, group: Group, level: Level, units: int) -> tuple[float, float]:
    """What a few bytes wait inside and between `units` equal parts of the group."""
    link, factors = group.link(level.span)
    per_unit = -(-level.ranks // units)
    inside_s = 0.0
    if per_unit > 1:
        inside_link, inside_factors = group.link(level.inside)
        inside_s = island_curve(op, per_unit, inside_link, group.gpu, "nccl", inside_factors).time_s(0.0)
    messages = network_messages(units, link)
    if op != "all_reduce":
        messages = 1 + (messages - 1) / 2
    return inside_s, messages * link.latency_s * factors.latency
