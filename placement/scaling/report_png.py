"""The charts of a scaling study as one picture, by matplotlib, which is installed apart."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from placement.scaling.curve import PARTS, WAYS, Curve, Measure, Point, Way
from placement.scaling.report import KNOWN_ERROR, asked, finding, telling
from placement.scaling.scale import Scaling, ScalingError

# Colours that colour-blind readers tell apart, and marks for those who print in grey.
_STYLES: Mapping[Way, tuple[str, str, str]] = {
    "tp": ("#0b63b5", "o", "-"),
    "tp_across": ("#c8480a", "s", "--"),
    "pp": ("#0d7f5c", "D", "-"),
    "tp_pp": ("#93348a", "^", "-"),
    "tp_ep": ("#a87300", "v", "-"),
    "dp_ep": ("#2f9fd0", "P", "-"),
}
_PART_COLOURS: Mapping[str, str] = {
    "overhead": "#8d949e",
    "matrices": "#2a6fb8",
    "experts": "#2fa4ad",
    "kv_reads": "#4a9a4a",
    "prefill_attention": "#7d62c4",
    "all_reduce": "#cf3a34",
    "exchange": "#ec8b24",
    "send": "#e3bd3c",
}


def draw(scaling: Scaling, path: Path) -> None:
    """Write a PNG to `path`: curves of latency and output above, where the time of a step and of a prompt goes below.

    The bars are of the way that the finding is about. Raises `ScalingError` without matplotlib.
    """
    try:
        figure_module, backend = import_module("matplotlib.figure"), import_module("matplotlib.backends.backend_agg")
    except ImportError as error:
        install = ".venv/bin/uv pip install --python .venv/bin/python matplotlib"
        raise ScalingError(f"A PNG needs matplotlib, which is not installed: {install}") from error
    figure = figure_module.Figure(figsize=(13, 11.2), dpi=130, layout="constrained")
    backend.FigureCanvasAgg(figure)
    figure.suptitle(f"{finding(scaling)}\n", fontsize=14, fontweight="bold", wrap=True)
    above, below = figure.subfigures(2, 1)
    _show_curves(above, scaling)
    shown = telling(scaling)
    if shown is not None:
        _show_bars(below, shown, scaling.running)
    marks = (
        f"Ring: an added GPU brings less than {scaling.threshold:.0%} of a perfect one. x: worse than half the GPUs. "
        "Hollow: fewer requests run, as the KV cache has no room."
    )
    figure.supxlabel(f"{asked(scaling)}\n{marks}\n{KNOWN_ERROR}", fontsize=8.5, color="#5b6470", wrap=True)
    figure.savefig(path, format="png")


def _show_curves(figure: Any, scaling: Scaling) -> None:
    left, right = figure.subplots(1, 2)
    token = f"time per token, {scaling.running:,.0f} requests running (ms)"
    _curves(left, scaling, "decode", token, lambda point: point.decode_ms)
    output = "output per GPU, best batch (tokens/s)"
    _curves(right, scaling, "tokens", output, lambda point: point.tokens_per_s_per_gpu)
    _legend(figure, left, columns=3)


def _show_bars(figure: Any, curve: Curve, running: float) -> None:
    left, right = figure.subplots(1, 2)
    sizes = [str(point.gpus) for point in curve.fitting]
    loads = [f"\n({point.running:,.0f} running)" if point.running < running else "" for point in curve.fitting]
    held = [size + load for size, load in zip(sizes, loads, strict=True)]
    _bars(left, [point.parts_ms for point in curve.fitting], held)
    _bars(right, [point.prefill_parts_ms for point in curve.fitting], sizes)
    left.set_title(f"{WAYS[curve.way]}: one decode step (ms)", loc="left", fontsize=11)
    right.set_title(f"{WAYS[curve.way]}: reading one prompt (ms)", loc="left", fontsize=11)
    _legend(figure, left, right, columns=4)


def _curves(axes: Any, scaling: Scaling, measure: Measure, title: str, value: Callable[[Point], float]) -> None:
    sizes = sorted({point.gpus for curve in scaling.curves for point in curve.fitting})
    axes.set_title(title, loc="left", fontsize=11)
    if not sizes:
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for curve in scaling.curves:
        colour, marker, dash = _STYLES[curve.way]
        points = curve.fitting
        axes.plot(
            [point.gpus for point in points],
            [value(point) for point in points],
            color=colour,
            marker=marker,
            linestyle=dash,
            label=WAYS[curve.way],
        )
        short = [point for point in points if measure == "decode" and point.running < scaling.running]
        axes.plot(
            [point.gpus for point in short], [value(point) for point in short], marker, color="white", ms=4, zorder=3
        )
        for turn in curve.turns:
            if turn.measure == measure:
                _turn(axes, turn.after.gpus, value(turn.after), turn.kind == "negative")
    if sizes[0] < scaling.region.island_gpus < sizes[-1]:
        edge, grey = scaling.region.island_gpus, "#5b6470"
        axes.axvline(edge, color=grey, linestyle=":", linewidth=1)
        place = {"xycoords": axes.get_xaxis_transform(), "xytext": (4, 5), "textcoords": "offset points"}
        axes.annotate(f"island of {edge}", (edge, 0), **place, fontsize=9, color=grey)
    _finish(axes, sizes)


def _turn(axes: Any, gpus: int, value: float, is_negative: bool) -> None:
    if is_negative:
        axes.plot([gpus], [value], marker="x", markersize=13, markeredgewidth=2.4, color="#b3261e", zorder=4)
    else:
        axes.plot(
            [gpus], [value], marker="o", markersize=14, markerfacecolor="none", markeredgecolor="#16191d", zorder=4
        )


def _legend(figure: Any, *axes: Any, columns: int) -> None:
    """Below the axes, where no curve runs; what several axes show is named once."""
    named = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def _finish(axes: Any, sizes: Sequence[int]) -> None:
    ticker = import_module("matplotlib.ticker")
    doublings = [gpus for gpus in sizes if gpus & (gpus - 1) == 0]
    axes.set_xticks(doublings, [str(gpus) for gpus in doublings])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("GPUs of one replica")
    axes.grid(color="#e6e9ee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, parts: Sequence[Mapping[str, float]], labels: Sequence[str]) -> None:
    places = range(len(parts))
    bottom = [0.0] * len(parts)
    for part, colour in _PART_COLOURS.items():
        heights = [each[part] for each in parts]
        if any(heights):
            axes.bar(places, heights, 0.62, bottom=bottom, color=colour, label=PARTS[part])
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for place, total in zip(places, bottom, strict=True):
        axes.annotate(
            f"{total:,.1f}", (place, total), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xticks(list(places), labels)
    axes.set_xlim(-0.6, max(len(parts), 4) - 0.4)
    axes.set_xlabel("GPUs of one replica")
    axes.spines[["top", "right"]].set_visible(False)
