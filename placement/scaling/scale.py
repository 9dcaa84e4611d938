"""Where returns turn: what one replica gains from more GPUs, along each way of growing, and where it gains no more.

Every way is a curve over numbers of GPUs. Decoding (the time of one token of each running request) and prefill (the
time to read one prompt) are apart, because they turn at different sizes: the first is bound by memory and latency, the
second by arithmetic and bandwidth. Growing from n to m GPUs gains, per added GPU and as a share of perfect,

    (speed(m) / speed(n) - 1) / (m / n - 1)        1: another replica would do as much;  below 0: slower than before

Returns diminish at the first doubling whose gain is under a threshold, and are negative from the first that is slower
by more than benchmarks differ. The part of the time to blame is named with both: the one furthest above what perfect
growth would have left of it, or the one that grew most.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from placement.clusters.terrain import Region
from placement.cost.prediction import Load, Prediction, Question, factors_for, predict, work_in
from placement.cost.serving import Demand, with_running
from placement.cost.step import Step, overhead_s, reading, step
from placement.cost.work import Array, stack
from placement.fields import FieldError
from placement.models.memory import STEP_TOKENS
from placement.scaling.curve import WAYS, Curve, Point, Turn, Way
from placement.scaling.turns import turns, with_gains
from placement.shape import Shape, misfits

_USUAL_RUNNING = 32.0  # where neither the caller nor the workload says
_MS = 1e3


class ScalingError(FieldError):
    """A sweep that cannot be made. The message names the argument, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The answer of `scale`, with what was asked."""

    question: Question
    region: Region
    max_gpus: int
    running: float
    threshold: float
    curves: tuple[Curve, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(turn for curve in self.curves for turn in curve.turns)


def scale(
    question: Question, region: Region, *, max_gpus: int, running: float | None = None, threshold: float = 0.5
) -> Scaling:
    """Curves of one replica on 1 to `max_gpus` GPUs of `region`, with `running` requests where decoding is timed.

    `running` is the workload's concurrency where it has one, else 32. Raises `ScalingError`.
    """
    asked = running if running is not None else question.workload.concurrency or _USUAL_RUNNING
    _check(region, max_gpus, asked, threshold)
    shapes = {way: _shapes(way, question, region, max_gpus) for way in WAYS}
    points = _points(
        question, region, list(dict.fromkeys(shape for found in shapes.values() for shape in found)), asked
    )
    curves = tuple(_curve(way, [points[shape] for shape in found], asked, threshold) for way, found in shapes.items())
    return Scaling(
        question=question,
        region=region,
        max_gpus=max_gpus,
        running=asked,
        threshold=threshold,
        curves=tuple(curve for curve in curves if len(curve.points) > 1) or curves[:1],  # of one GPU, all are alike
    )


def _curve(way: Way, points: Sequence[Point], running: float, threshold: float) -> Curve:
    compared = with_gains(points)
    return Curve(way=way, points=compared, turns=turns(way, compared, running=running, threshold=threshold))


def _check(region: Region, max_gpus: int, running: float, threshold: float) -> None:
    if not 1 <= max_gpus <= region.gpus:
        raise ScalingError(f"is {max_gpus}; it must be from 1 to {region.gpus}, the GPUs of the region.", "max_gpus")
    if not (math.isfinite(running) and running >= 1):
        raise ScalingError(f"is {running}; it must be at least 1 and finite.", "running")
    if not 0 < threshold < 1:
        raise ScalingError(f"is {threshold}; it must be above 0 and below 1.", "threshold")


def _shapes(way: Way, question: Question, region: Region, max_gpus: int) -> list[Shape]:
    """In order of GPUs. Sizes that are no power of two are there for the islands, and only where the model allows."""
    model, island = question.model, region.island_gpus
    doublings = [2**power for power in range(max_gpus.bit_length())]
    halves = [island >> power for power in range(island.bit_length()) if island % 2**power == 0]
    sizes = sorted({*doublings, *halves, *(island * count for count in doublings)})
    widest = max(size for size in sizes if size <= island and not misfits(Shape(tp=size), model))
    found = [shape for gpus in sizes if gpus <= max_gpus and (shape := _shape(way, gpus, widest, region, model.is_moe))]
    return [shape for shape in found if shape.gpus in doublings or not misfits(shape, model)]


def _shape(way: Way, gpus: int, widest: int, region: Region, is_moe: bool) -> Shape | None:
    """None where the way has none of `gpus` GPUs; `widest` is the most tensor parallelism of an island."""
    inside = gpus <= region.island_gpus
    if way == "tp":
        return Shape(tp=gpus) if inside else None
    if way == "tp_across":
        return Shape(tp=gpus) if gpus == widest or not inside else None
    if way == "pp":
        return Shape(pp=gpus)
    if way == "tp_pp":
        return None if gpus % widest else Shape(tp=widest, pp=gpus // widest)
    if not is_moe:
        return None
    return Shape(tp=gpus, ep=gpus) if way == "tp_ep" else Shape(dp=gpus, ep=gpus)


def _points(question: Question, region: Region, shapes: Sequence[Shape], running: float) -> dict[Shape, Point]:
    refused = {shape: why[0] for shape in shapes if (why := misfits(shape, question.model))}
    predictions = predict(question, [(shape, region) for shape in shapes if shape not in refused])
    fitting = [prediction for prediction in predictions if prediction.fits]
    refused |= {prediction.shape: _too_big(prediction) for prediction in predictions if not prediction.fits}
    timed = dict(_timed(question, fitting, running)) if fitting else {}
    return {
        shape: timed.get(shape)
        or Point(gpus=shape.gpus, shape=shape, islands=_islands(shape, region), reason=refused[shape])
        for shape in shapes
    }


def _timed(question: Question, predictions: Sequence[Prediction], running: float) -> Iterator[tuple[Shape, Point]]:
    """All points at once: decoding with `running` requests, one prompt, and the best batch that `predict` tried."""
    work = stack([work_in(question, found.shape, found.region) for found in predictions])
    factors = factors_for(question, [found.region for found in predictions])
    prompt_tokens = np.full(len(predictions), question.workload.computed_tokens)
    room = np.array([found.loads[-1].running for found in predictions])
    demand = Demand(prompt_tokens, np.full(len(room), question.workload.output_tokens.mean_tokens), room)
    decode = with_running(work, factors, demand, np.minimum(running, room))
    # One prompt for each data-parallel rank: a prompt is never divided over them.
    chunks, overhead = np.ceil(prompt_tokens / STEP_TOKENS), overhead_s(work, factors)
    read = step(work, factors, work.dp, work.dp * prompt_tokens)
    busy = reading(read._replace(overhead_s=read.overhead_s - overhead), factors)
    busy = busy._replace(overhead_s=busy.overhead_s + overhead * chunks)
    in_stages = (chunks + work.pp - 1) / (chunks * work.pp)  # chunks follow each other through the stages
    for index, found in enumerate(predictions):
        best = max(found.loads, key=lambda load: load.running / load.tpot_s)
        point = Point(
            gpus=found.shape.gpus,
            shape=found.shape,
            islands=_islands(found.shape, found.region),
            running=float(decode.running[index]),
            decode_ms=float(decode.step.total_s[index]) * _MS,
            tpot_ms=float(decode.tpot_s[index]) * _MS,
            prefill_ms=float(busy.total_s[index] * in_stages[index]) * _MS,
            tokens_per_s=best.running / best.tpot_s,
            best_running=best.running,
            prompt_tokens_per_s=float((prompt_tokens * found.shape.dp * found.shape.pp / busy.total_s)[index]),
            communication_share=float((decode.step.communication_s / decode.step.total_s)[index]),
            parts_ms=_parts(decode.step, index),
            prefill_parts_ms=_parts(busy, index, in_stages),
            best_parts_ms=_best_parts(best),
        )
        yield found.shape, point


def _parts(step: Step, index: int, scale: Array | None = None) -> dict[str, float]:
    factor = _MS if scale is None else _MS * float(scale[index])
    return {name.removesuffix("_s"): float(values[index]) * factor for name, values in step._asdict().items()}


def _best_parts(load: Load) -> dict[str, float]:
    parts = {name.removesuffix("_s"): time_s * _MS for name, time_s in load.parts_s.items()}
    return parts | {"prompts": max(0.0, load.tpot_s * _MS - sum(parts.values()))}


def _islands(shape: Shape, region: Region) -> int:
    return math.ceil(shape.gpus / region.island_gpus)


def _too_big(prediction: Prediction) -> str:
    memory, gib = prediction.memory, 2**30
    return (
        f"does not fit: weights {memory.weights_bytes / gib:.1f} GiB, activations {memory.activation_bytes / gib:.1f} "
        f"GiB and a request's KV cache, in {memory.available_bytes / gib:.1f} GiB."
    )
