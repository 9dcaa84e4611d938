"""The outcome as a table, a file and a plot."""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.crossover.namespaces import UNSHAPED
from deployments.crossover.predict import Comparison, crossing_bits_per_s, verdicts
from deployments.crossover.record import ACROSS, WORKS, Cut, Record

HEADER = ("link", "step", "cut", "predicted ms", "measured ms", "error", "faster: predicted", "faster: measured")
NAMES = {Cut.TP2_ACROSS: "tensor parallel", Cut.PP2_ACROSS: "pipeline"}
COLOURS = {Cut.TP2_ACROSS: "tab:red", Cut.PP2_ACROSS: "tab:blue"}


class PlotError(Exception):
    """The plot cannot be drawn; the message says what to install."""


def table(comparisons: Sequence[Comparison]) -> str:
    """A Markdown table with one row for each case."""
    by_case = {(verdict.speed, verdict.work): verdict for verdict in verdicts(comparisons)}
    rows = [HEADER, tuple("---" for _ in HEADER)]
    for one in comparisons:
        verdict = by_case[one.speed, one.work]
        times = (f"{one.predicted_s * 1e3:.1f}", f"{one.measured_s * 1e3:.1f}", f"{one.error:+.0%}")
        rows.append((one.speed, one.work, NAMES[one.cut], *times, NAMES[verdict.predicted], NAMES[verdict.measured]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |" for row in rows
    )


def summary(record: Record, comparisons: Sequence[Comparison]) -> str:
    """What stays inside an island, how far off the predictions are, and where the cuts cross."""
    found = list(verdicts(comparisons))
    right = sum(verdict.predicted == verdict.measured for verdict in found)
    errors = sorted(abs(one.error) for one in comparisons)
    lines = [_inside(record, cut) for cut in (Cut.TP1, Cut.TP2_INSIDE)]
    lines.append(
        f"Predictions: half of them within {errors[len(errors) // 2]:.0%}, all within {errors[-1]:.0%}; "
        f"the faster cut is named right in {right} of {len(found)} cases."
    )
    for work in WORKS:
        predicted, measured = (
            _crossing(crossing_bits_per_s(comparisons, work.name, measured=clock)) for clock in (False, True)
        )
        lines.append(f"The cuts cross for {work.name}: predicted {predicted}, measured {measured}.")
    return "\n".join(f"- {line}" for line in lines)


def _inside(record: Record, cut: Cut) -> str:
    times = ", ".join(f"{work.name} {record.step_s(cut, UNSHAPED, work.name) * 1e3:.1f} ms" for work in WORKS)
    return f"Without the link, {cut}: {times}."


def _crossing(bits_per_s: float | None) -> str:
    return "nowhere in this range" if bits_per_s is None else f"at {bits_per_s / 1e6:.0f} Mbit/s"


def document(record: Record, comparisons: Sequence[Comparison]) -> str:
    """Everything measured and predicted, as JSON; `Record.from_json` reads it back."""
    content = json.loads(record.to_json())
    content["comparisons"] = [dataclasses.asdict(one) | {"error": round(one.error, 4)} for one in comparisons]
    return json.dumps(content, indent=1) + "\n"


def plot(record: Record, comparisons: Sequence[Comparison], path: Path) -> None:
    """Time of a step over the speed of the link: a panel for each kind of step, lines predicted, dots measured.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        install = ".venv/bin/uv pip install --python .venv/bin/python matplotlib"
        raise PlotError(f"the plot needs matplotlib: {install}") from error
    figure, panels = pyplot.subplots(1, len(WORKS), figsize=(13, 4.4), layout="constrained")
    for panel, work in zip(panels, WORKS, strict=True):
        for cut in ACROSS:
            _draw_cut(panel, record, [one for one in comparisons if (one.cut, one.work) == (cut, work.name)])
        for cut, style in ((Cut.TP1, ":"), (Cut.TP2_INSIDE, "--")):
            time_ms = record.step_s(cut, UNSHAPED, work.name) * 1e3
            panel.axhline(time_ms, color="grey", linestyle=style, linewidth=1, label=f"{cut}, measured")
        crossing = crossing_bits_per_s(comparisons, work.name, measured=False)
        if crossing is not None:
            panel.axvline(crossing / 1e6, color="lightgrey", linewidth=6, zorder=0, label="predicted crossing")
        _label(panel, work.name)
    panels[0].legend(fontsize=8)
    figure.suptitle("Cut across two islands: step time by the speed of the link between them")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_cut(panel: Any, record: Record, comparisons: Sequence[Comparison]) -> None:
    ordered = sorted(comparisons, key=lambda one: one.bits_per_s)
    cut = ordered[0].cut
    speeds = [one.bits_per_s / 1e6 for one in ordered]
    steps = {(step.cut, step.speed, step.work): step for step in record.steps}
    measured = [steps[one.cut, one.speed, one.work] for one in ordered]
    times = [step.median_s * 1e3 for step in measured]
    spread = [
        [(step.median_s - step.low_s) * 1e3 for step in measured],
        [(step.high_s - step.median_s) * 1e3 for step in measured],
    ]
    panel.plot(speeds, [one.predicted_s * 1e3 for one in ordered], color=COLOURS[cut], label=f"{cut}, predicted")
    panel.errorbar(
        speeds, times, yerr=spread, color=COLOURS[cut], fmt="o", markersize=5, capsize=2, label=f"{cut}, measured"
    )


def _label(panel: Any, title: str) -> None:
    panel.set(title=title, xscale="log", yscale="log", xlabel="link, Mbit/s in each direction", ylabel="step, ms")
    panel.grid(which="major", alpha=0.3)
    ticker = importlib.import_module("matplotlib.ticker")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 3.0, 4.0, 5.0, 7.0)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(ticker.NullFormatter())
