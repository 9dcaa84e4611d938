"""A GPU and its links as a user describes them, each field with its unit; what is left out comes from the presets.

Every error is a `ClusterError` that starts with the path of the field.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from placement.clusters.hardware import FLOP_KINDS, LINK_KINDS, ClusterError, Gpu, GpuKind, Link, Links
from placement.clusters.machines import closest, default_links, gpu_kind, gpu_kinds, gpu_of, typical_link
from placement.quantities import QuantityError, bandwidth_bytes_per_s, flops_per_s, seconds, size_bytes

GIVEN = "given by the user"
_GPU_FIELDS = ("kind", "name", "memory", "memory_bandwidth", "flops", "l2")
T = TypeVar("T")


def read_gpu(given: Any, path: str) -> Gpu:
    """A GPU by the name of its kind, or by its own figures, or by a kind with some figures changed."""
    if isinstance(given, str):
        return gpu_of(_known_gpu(given, path))
    require(
        isinstance(given, Mapping), path, given, "the kind of GPU, such as h100_sxm, or a mapping that describes it"
    )
    refuse_unknown(given, _GPU_FIELDS, f"{path}.")
    base = _known_gpu(text(given["kind"], f"{path}.kind"), f"{path}.kind") if "kind" in given else None
    kind = GpuKind(
        kind=base.kind if base else text(given.get("name"), f"{path}.name"),
        title=text(given.get("name", base.title if base else None), f"{path}.name"),
        memory_bytes=_field(given, "memory", size_bytes, base.memory_bytes if base else None, path),
        memory_bandwidth_bytes_per_s=_field(
            given,
            "memory_bandwidth",
            bandwidth_bytes_per_s,
            base.memory_bandwidth_bytes_per_s if base else None,
            path,
        ),
        flops=_flops(given.get("flops"), base, f"{path}.flops"),
        l2_bytes=_field(given, "l2", size_bytes, base.l2_bytes if base else 0, path),
        source=f"{GIVEN}; the rest: {base.source}" if base else GIVEN,
    )
    return Gpu(name=kind.title, memory_bytes=kind.memory_bytes, kind=base.kind if base else "", spec=kind)


def _known_gpu(name: str, path: str) -> GpuKind:
    kind = gpu_kind(name)
    if kind is None:
        raise ClusterError(f"{path}: GPU {name!r} is not known; {closest(name.lower(), gpu_kinds())}")
    return kind


def _flops(given: Any, base: GpuKind | None, path: str) -> dict[str, float]:
    if given is None and base:
        return dict(base.flops)
    require(isinstance(given, Mapping), path, given, "a mapping such as {bf16: 400 TFLOPS, fp8: 800 TFLOPS}")
    refuse_unknown(given, FLOP_KINDS, f"{path}.")
    flops = {name: _quantity(flops_per_s, value, f"{path}.{name}") for name, value in given.items()}
    flops = {**(base.flops if base else {}), **flops}
    require("bf16" in flops, f"{path}.bf16", None, "the dense speed with 16-bit floats, such as 400 TFLOPS")
    return flops


def read_links(given: Any, base: Links, gpu: Gpu, path: str) -> Links:
    """`base` with what the user gave."""
    if given is None:
        return base
    require(isinstance(given, Mapping), path, given, "a mapping with island, machine or network")
    refuse_unknown(given, ("island", "machine", "network"), f"{path}.")
    changed = {
        name: _link(row, getattr(base, name) or getattr(default_links(gpu), name), f"{path}.{name}")
        for name, row in given.items()
    }
    return replace(base, **changed)


def _link(given: Any, base: Link | None, path: str) -> Link:
    """The given fields; bandwidth and latency of `base` where it is of the same kind, else the kind's usual latency."""
    require(isinstance(given, Mapping), path, given, "a mapping with kind, bandwidth and latency")
    refuse_unknown(given, ("kind", "bandwidth", "latency"), f"{path}.")
    kind = text(given.get("kind", base.kind if base else None), f"{path}.kind")
    if kind not in LINK_KINDS:
        raise ClusterError(f"{path}.kind: {kind!r} is not a kind of link; {closest(kind.lower(), LINK_KINDS)}")
    same = base if base and base.kind == kind else None
    usual = same or typical_link(kind)
    taken = "" if {"bandwidth", "latency"} <= given.keys() or not usual else f"; the rest {usual.source}"
    return Link(
        kind=kind,
        bandwidth_bytes_per_s=_field(
            given, "bandwidth", bandwidth_bytes_per_s, same.bandwidth_bytes_per_s if same else None, path
        ),
        latency_s=_field(given, "latency", _latency_s, usual.latency_s if usual else None, path),
        source=f"{GIVEN}{taken}",
    )


def _latency_s(value: object, *, field: str, unit: str | None) -> float:
    return seconds(value, field=field, unit=unit, zero_ok=True)


def _field(given: Mapping[str, Any], name: str, read: Callable[..., T], default: T | None, path: str) -> T:
    """A quantity with its unit, or `default`; an error where it is missing and has none."""
    if name in given:
        return _quantity(lambda value, field: read(value, field=field, unit=None), given[name], f"{path}.{name}")
    if default is None:
        raise ClusterError(f"{path}.{name}: missing; give a number with its unit.")
    return default


def _quantity(read: Callable[..., T], value: Any, path: str) -> T:
    try:
        return read(value, field=path)
    except QuantityError as error:
        raise ClusterError(str(error)) from error


def whole(value: Any, path: str) -> int:
    """A whole number of at least 1."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(is_whole, path, value, "a whole number of at least 1")
    return int(value)


def text(value: Any, path: str) -> str:
    """A name: text that is not empty."""
    require(isinstance(value, str) and bool(value.strip()), path, value, "a name")
    return str(value).strip()


def require(holds: bool, path: str, value: Any, accepted: str) -> None:
    """Raise `ClusterError` with the value and what to give, unless it `holds`."""
    if not holds:
        shown = "missing" if value is None else f"{str(value)[:80]!r} is not accepted"
        raise ClusterError(f"{path}: {shown}; give {accepted}.")


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], path: str) -> None:
    """Raise `ClusterError` for a name in `given` that is not `known`; `path` ends with a dot unless it is empty."""
    for name in given:
        if name not in known:
            raise ClusterError(f"{path}{name}: unknown name; {closest(str(name), known)}")
