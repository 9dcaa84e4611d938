"""The smallest shape of one replica that a cluster can hold.

Fewest GPUs first; among shapes of equal size tensor parallelism inside an island before pipeline stages, because it
shortens every step where stages only add room; and whole experts (ep) before sliced ones. Data parallelism is never
chosen: it adds throughput, not room. Each candidate passes three gates, cheapest first: `misfits`, memory on the
smallest kind of GPU that holds it, `place`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from placement.clusters.hardware import Cluster, Gpu
from placement.layout import Infeasible, Layout, Place, free_gpus, more_needed, place
from placement.models.memory import MemoryUse, memory_use
from placement.models.model import ModelSpec
from placement.shape import Shape, misfits

_MIB = 1024**2
_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The shape, the memory of its busiest GPU, and why this one, in a sentence with numbers.

    `min_memory_bytes` is for `place` on a cluster of different GPUs: those with less do not hold it. 0 when all do.
    """

    shape: Shape
    memory: MemoryUse
    min_memory_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What every candidate must hold."""

    model: ModelSpec
    context_tokens: int
    kv_bytes_per_element: float
    utilisation: float

    def on(self, shape: Shape, gpu: Gpu) -> MemoryUse:
        return memory_use(
            self.model,
            shape,
            gpu,
            context_tokens=self.context_tokens,
            kv_bytes_per_element=self.kv_bytes_per_element,
            utilisation=self.utilisation,
        )


def choose_shape(
    model: ModelSpec,
    cluster: Cluster,
    *,
    context_tokens: int,
    kv_bytes_per_element: float = 2,
    utilisation: float = 0.9,
    taken: frozenset[Place] = frozenset(),
) -> Choice | Infeasible:
    """The smallest shape that holds the weights and `context_tokens` tokens of KV cache on free GPUs of `cluster`."""
    need = _Need(
        model=model,
        context_tokens=context_tokens,
        kv_bytes_per_element=kv_bytes_per_element,
        utilisation=utilisation,
    )
    refused: str | None = None
    no_room: Infeasible | None = None
    for shape in _candidates(model, max_gpus=cluster.gpus, max_tp=cluster.widest_island_gpus):
        gpu = _smallest_fit(need, shape, cluster)
        if gpu is None:
            refused = f"{shape} would need {_size(need.on(shape, cluster.gpu_kinds[-1]).total_bytes)}"
            continue
        min_memory_bytes = 0 if gpu == cluster.gpu_kinds[0] else gpu.memory_bytes
        placed = place(shape, cluster, taken, min_memory_bytes=min_memory_bytes)
        if isinstance(placed, Layout):
            reason = _reason(need, shape, gpu, refused)
            return Choice(shape=shape, memory=need.on(shape, gpu), min_memory_bytes=min_memory_bytes, reason=reason)
        refused = placed.constraint
        free = free_gpus(cluster, taken, min_memory_bytes=min_memory_bytes)
        no_room = no_room or _no_room(model, shape, placed, free)
    return no_room or _too_big(need, cluster)


def _candidates(model: ModelSpec, *, max_gpus: int, max_tp: int) -> Iterator[Shape]:
    """Shapes `model` can be cut into, in order of preference."""
    for gpus in range(1, min(max_gpus, max_tp * model.layers) + 1):
        for tp in range(min(gpus, max_tp, model.heads), 0, -1):
            if gpus % tp:
                continue
            shape = Shape(tp=tp, pp=gpus // tp)
            for candidate in (replace(shape, ep=tp), shape) if model.is_moe and tp > 1 else (shape,):
                if not misfits(candidate, model):
                    yield candidate


def _smallest_fit(need: _Need, shape: Shape, cluster: Cluster) -> Gpu | None:
    return next((gpu for gpu in cluster.gpu_kinds if need.on(shape, gpu).fits), None)


def _reason(need: _Need, shape: Shape, gpu: Gpu, refused: str | None) -> str:
    reason = f"{shape} is the smallest shape that holds {need.model.name}: {_memory_sentence(need, shape, gpu)}"
    return f"{reason}; before it, {refused}." if refused else f"{reason}."


def _memory_sentence(need: _Need, shape: Shape, gpu: Gpu) -> str:
    use = need.on(shape, gpu)
    return (
        f"{shape} needs {_size(use.total_bytes)} on the busiest GPU ({_size(use.weights_bytes)} weights, "
        f"{_size(use.kv_bytes)} KV cache of {need.context_tokens} tokens, {_size(use.activation_bytes)} activations), "
        f"and {gpu.name} has {_size(use.available_bytes)} of {_size(gpu.memory_bytes)} for them"
    )


def _no_room(model: ModelSpec, shape: Shape, placed: Infeasible, free: dict[str, int]) -> Infeasible:
    """GPUs of the cluster hold `shape`, but too few are free together; `place` would suggest shapes too small."""
    constraint = f"{model.name} needs {shape} or more, and {placed.constraint}"
    return Infeasible(constraint=constraint, nearest=more_needed(shape, free))


def _too_big(need: _Need, cluster: Cluster) -> Infeasible:
    """No shape holds the model even on an empty cluster: report the one that comes closest on its largest GPUs."""
    if not cluster.nodes:
        constraint = f"{need.model.name} needs at least 1 GPU; the cluster has 0"
        return Infeasible(constraint=constraint, nearest=more_needed(Shape(), {}))
    gpu = cluster.gpu_kinds[-1]
    max_tp = cluster.widest_island_gpus
    by_size = sorted(
        _candidates(need.model, max_gpus=cluster.gpus, max_tp=max_tp),
        key=lambda shape: need.on(shape, gpu).total_bytes,
    )
    closest = next(
        shape for shape in by_size if isinstance(place(shape, cluster, min_memory_bytes=gpu.memory_bytes), Layout)
    )
    changes = [*_shorter_context(need, closest, gpu), *_more_gpus(need, gpu, max_tp)]
    if not changes:
        use = need.on(closest, gpu)
        changes = [f"GPUs of {_size(gpu.memory_bytes * use.total_bytes / use.available_bytes)} for {closest}"]
    constraint = f"{need.model.name} does not fit: {_memory_sentence(need, closest, gpu)}"
    return Infeasible(constraint=constraint, nearest=", or ".join(changes))


def _shorter_context(need: _Need, shape: Shape, gpu: Gpu) -> Iterator[str]:
    use = need.on(shape, gpu)
    room_bytes = use.available_bytes - use.weights_bytes - use.activation_bytes
    if use.kv_bytes and (tokens := need.context_tokens * room_bytes // use.kv_bytes) > 0:
        yield f"context_tokens of at most {tokens} on {shape}"


def _more_gpus(need: _Need, gpu: Gpu, max_tp: int) -> Iterator[str]:
    for shape in _candidates(need.model, max_gpus=max_tp * need.model.layers, max_tp=max_tp):
        if need.on(shape, gpu).fits:
            yield f"{shape} on {shape.gpus} GPUs like {gpu.name}"
            return


def _size(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.0f} MiB"
