"""Which shapes are worth looking at: every way to cut the model that GPUs in islands of one size could hold."""

from collections.abc import Iterator

from placement.models.model import ModelSpec
from placement.shape import Shape, misfits

_MOST_STAGES = 16  # deeper pipelines only when nothing else holds the model: each stage adds latency, none removes it


def shapes(model: ModelSpec, *, gpus: int, island_gpus: int, most_stages: int = _MOST_STAGES) -> list[Shape]:
    """Shapes of at most `gpus` GPUs, tensor-parallel groups inside one island, smallest first."""
    found = {
        shape
        for tp in _widths(model, min(island_gpus, gpus))
        for shape in _with_width(model, tp, gpus, most_stages)
        if shape.gpus <= gpus and not misfits(shape, model)
    }
    return sorted(found, key=lambda shape: (shape.gpus, shape.pp, shape.dp, shape.ep, -shape.tp))


def _widths(model: ModelSpec, most: int) -> list[int]:
    """Degrees of tensor parallelism that divide the heads; most are powers of two."""
    return [tp for tp in range(1, most + 1) if model.heads % tp == 0]


def _with_width(model: ModelSpec, tp: int, gpus: int, most_stages: int) -> Iterator[Shape]:
    for pp in range(1, min(most_stages, model.layers, gpus // tp) + 1):
        yield Shape(tp=tp, pp=pp)
        if model.is_moe and tp > 1:
            yield Shape(tp=tp, pp=pp, ep=tp)
    if not model.is_moe:
        return
    dp = 2
    while tp * dp <= min(gpus, model.experts):
        # vLLM runs data-parallel attention without pipeline stages in practice; experts then spread over all ranks.
        yield Shape(tp=tp, dp=dp, ep=tp * dp)
        dp *= 2
