"""A scaling study as text for a terminal, and as JSON."""

import math
from collections.abc import Mapping
from typing import Any

from placement.clusters.hardware import Link
from placement.scaling.curve import MEASURES, PARTS, WAYS, Curve, Measure, Point, Turn
from placement.scaling.scale import Scaling

# On the public points that the constants were fitted on (tests/placement/test_report.py measures it). Between machines
# little is published: there the times of collectives are within a factor of 2 of what was measured.
KNOWN_ERROR = (
    "The model's error on 1,643 public points inside one machine, which its constants were fitted on: time per token "
    "within 10% for half and within a third for nine in ten, time to first token within 40% for half. Between "
    "machines expect up to a factor of 2 on communication. Where curves turn is firmer than how high they are."
)
_CLEARLY = 0.1  # a loss to warn of first
_MARKS = {"diminishing": "~", "negative": "x"}
_COLUMNS = ("GPUs", "shape", "ms/token ", "ms/prompt ", "tokens/s ", "per GPU", "prompt tok/s ", "sent", "gain")


def as_text(scaling: Scaling) -> str:
    """One table per way of growing, with its turns below."""
    legend = (
        f"ms/token: a step of {scaling.running:,.0f} running requests (* fewer, the KV cache has no room). tokens/s: "
        "at the best batch, prompts\nread as well. sent: share of the step that is communication. gain: tokens/s that "
        "an added GPU brings,\nof a perfect one (above 100% where the smaller replica has little room for KV cache).\n"
        f"~ an added GPU brings less than {scaling.threshold:.0%} of a perfect one from here on; x slower than with "
        "half the GPUs."
    )
    tables = [_table(curve, scaling.running) for curve in scaling.curves]
    return "\n\n".join([finding(scaling), asked(scaling), *tables, legend, KNOWN_ERROR])


def as_json(scaling: Scaling) -> dict[str, Any]:
    """Everything in the study, for `json.dumps`. What has no number (a time where nothing fits) is None."""
    workload = scaling.question.workload
    return {
        "finding": finding(scaling),
        "asked": asked(scaling),
        "model": scaling.question.model.name,
        "engine": scaling.question.engine,
        "gpu": scaling.region.kind.title,
        "island_gpus": scaling.region.island_gpus,
        "max_gpus": scaling.max_gpus,
        "running": scaling.running,
        "threshold": scaling.threshold,
        "input_tokens": workload.input_tokens.mean_tokens,
        "output_tokens": workload.output_tokens.mean_tokens,
        "sources": list(sources(scaling)),
        "known_error": KNOWN_ERROR,
        "telling_way": shown.way if (shown := telling(scaling)) else None,
        "parts": dict(PARTS),
        "measures": dict(MEASURES),
        "curves": [
            {
                "way": curve.way,
                "title": WAYS[curve.way],
                "points": [_point(point) for point in curve.points],
                "turns": [_turn(turn) for turn in curve.turns],
            }
            for curve in scaling.curves
        ],
    }


def finding(scaling: Scaling) -> str:
    """The one sentence to remember: how far to grow, and what is best."""
    name = f"{scaling.question.model.name} on {scaling.region.kind.title}"
    points = [point for curve in scaling.curves for point in curve.fitting]
    if not points:
        return f"{name}: fits no shape of up to {scaling.max_gpus} GPUs"
    thrifty = max(points, key=lambda point: point.tokens_per_s_per_gpu)
    best = f"{thrifty.shape} writes most per GPU, {thrifty.tokens_per_s_per_gpu:,.0f} tokens/s"
    loss = _loss(scaling)
    if loss is None:
        return f"{name}: no way of growing makes tokens slower up to {scaling.max_gpus:,} GPUs; {best}"
    return f"{name}: {loss.after.shape} is {_slower(loss):.0%} slower per token than {loss.before.shape}; {best}"


def telling(scaling: Scaling) -> Curve | None:
    """The curve to look at first: the one that the finding warns of, else that of the best output per GPU."""
    loss = _loss(scaling)
    fitting = [curve for curve in scaling.curves if curve.fitting]
    warned = [curve for curve in fitting if loss in curve.turns]
    return warned[0] if warned else max(fitting, key=_best_per_gpu, default=None)


def worth_telling(curve: Curve) -> tuple[Turn, ...]:
    """Turns, without those of prompt tokens/s that say what the time of one prompt said already."""
    said = {(turn.kind, turn.after.gpus) for turn in curve.turns if turn.measure == "prefill"}
    return tuple(
        turn for turn in curve.turns if turn.measure != "prompt_tokens" or (turn.kind, turn.after.gpus) not in said
    )


def asked(scaling: Scaling) -> str:
    """What the numbers are for, in a sentence."""
    workload, region = scaling.question.workload, scaling.region
    return (
        f"One replica on {scaling.question.engine}, prompts of {workload.input_tokens.mean_tokens:,.0f} and answers of "
        f"{workload.output_tokens.mean_tokens:,.0f} tokens, {scaling.running:,.0f} requests running, up to "
        f"{scaling.max_gpus:,} GPUs in islands of {region.island_gpus} ({_link(region.links.island)} inside, "
        f"{_link(region.links.network)} between)."
    )


def sources(scaling: Scaling) -> tuple[str, ...]:
    """Where the numbers come from, one sentence each."""
    region, question = scaling.region, scaling.question
    measured = question.constants.is_measured(region.kind.kind, question.engine)
    return (
        f"GPU: {region.kind.source} (datasheet)",
        f"Overheads of {question.engine}: fitted on {'this GPU' if measured else 'other GPUs; this one is unmeasured'}",
        f"Matrix products: {question.constants.gemm_source}",
        f"Inside an island: {region.links.island.source}",
        f"Between machines: {region.links.network.source}",
    )


def _best_per_gpu(curve: Curve) -> float:
    return max(point.tokens_per_s_per_gpu for point in curve.fitting)


def _loss(scaling: Scaling) -> Turn | None:
    """The smallest size at which tokens get clearly slower, else the worst of the small losses."""
    lost = [turn for turn in scaling.turns if turn.kind == "negative" and turn.measure == "decode"]
    clear = [turn for turn in lost if _slower(turn) > _CLEARLY]
    if clear:
        return min(clear, key=lambda turn: (turn.after.gpus, -_slower(turn)))
    return max(lost, key=_slower, default=None)


def _slower(turn: Turn) -> float:
    return turn.after.decode_ms / turn.before.decode_ms - 1


def _link(link: Link) -> str:
    return f"{link.kind}, {link.bandwidth_bytes_per_s / 1e9:,.4g} GB/s"


def _table(curve: Curve, running: float) -> str:
    marks = {(turn.measure, turn.after.gpus): _MARKS[turn.kind] for turn in curve.turns}
    rows = [_row(point, marks, running) if point.fits else None for point in curve.points]
    shown = [_COLUMNS, *(row for row in rows if row)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(_COLUMNS))]
    lines = [WAYS[curve.way], _line(_COLUMNS, widths)]
    for point, row in zip(curve.points, rows, strict=True):
        lines.append(
            _line(row, widths) if row else f"{point.gpus:>{widths[0]}}  {point.shape!s:{widths[1]}}  {point.reason}"
        )
    return "\n".join([*lines, *(f"  {_MARKS[turn.kind]} {turn.sentence}" for turn in worth_telling(curve))])


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if index == 1 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _row(point: Point, marks: Mapping[tuple[Measure, int], str], running: float) -> tuple[str, ...]:
    def marked(text: str, measure: Measure) -> str:
        return text + marks.get((measure, point.gpus), " ")

    fewer = "*" if point.running < running else ""
    gain = point.gain_per_gpu.get("tokens")
    return (
        f"{point.gpus}",
        str(point.shape),
        marked(f"{fewer}{point.decode_ms:,.1f}", "decode"),
        marked(f"{point.prefill_ms:,.0f}", "prefill"),
        marked(f"{point.tokens_per_s:,.0f}", "tokens"),
        f"{point.tokens_per_s_per_gpu:,.0f}",
        marked(f"{point.prompt_tokens_per_s:,.0f}", "prompt_tokens"),
        f"{point.communication_share:.0%}",
        "" if gain is None else f"{gain:.0%}",
    )


def _point(point: Point) -> dict[str, Any]:
    return {
        "gpus": point.gpus,
        "shape": str(point.shape),
        "islands": point.islands,
        "fits": point.fits,
        "reason": point.reason,
        "running": point.running,
        "decode_ms": _number(point.decode_ms),
        "tpot_ms": _number(point.tpot_ms),
        "prefill_ms": _number(point.prefill_ms),
        "tokens_per_s": point.tokens_per_s,
        "tokens_per_s_per_gpu": point.tokens_per_s_per_gpu,
        "best_running": point.best_running,
        "prompt_tokens_per_s": point.prompt_tokens_per_s,
        "communication_share": point.communication_share,
        "gain_per_gpu": dict(point.gain_per_gpu),
        "parts_ms": dict(point.parts_ms),
        "prefill_parts_ms": dict(point.prefill_parts_ms),
        "best_parts_ms": dict(point.best_parts_ms),
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "measure": turn.measure,
        "kind": turn.kind,
        "before_gpus": turn.before.gpus,
        "after_gpus": turn.after.gpus,
        "gain_per_gpu": turn.gain_per_gpu,
        "cause": turn.cause,
        "sentence": turn.sentence,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
