"""Two runs side by side: each figure, the difference, where it lies with 95 %, and what that means in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.table import Table

from loadtests.bootstrap import (
    BLOCK_S,
    Blocked,
    Counts,
    Figure,
    blocked,
    blocks_of,
    draws,
    interval,
    per_second,
    rank,
    share,
)
from loadtests.measures import Requests
from loadtests.report import requests_in

RESAMPLES = 1000
NOTHING = "-"
# What a run was asked to do. The seed is not among it: another draw of the same load is comparable.
_LOAD = ("arrivals", "closed_loop", "lengths", "classes", "duration_s", "endpoint", "ignore_eos")
Verdict = Literal["better", "worse", "no difference seen", "too few values"]


class NotComparableError(Exception):
    """The runs cannot be compared; the message has one line for each reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure, how it is shown, and which way is better."""

    name: str
    figure: Figure
    unit: Literal["s", "%", "/s"]
    more_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of A and of B, in base units; `low` and `high` hold B - A with 95 %."""

    metric: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All figures of two runs, and how they were compared."""

    paired: bool
    blocks: int
    block_s: float
    differences: tuple[Difference, ...]


METRICS = (
    Metric(name="attainment", figure=share(lambda run: run.good), unit="%", more_is_better=True),
    Metric(name="answered", figure=share(lambda run: run.ok), unit="%", more_is_better=True),
    Metric(
        name="good requests",
        figure=per_second(lambda run: run.good.astype(np.float64)),
        unit="/s",
        more_is_better=True,
    ),
    Metric(
        name="good output tokens",
        figure=per_second(lambda run: np.where(run.good, run.output_tokens, 0)),
        unit="/s",
        more_is_better=True,
    ),
    Metric(name="output tokens", figure=per_second(lambda run: run.output_tokens), unit="/s", more_is_better=True),
    *(
        Metric(name=f"{name} p{part * 100:.0f}", figure=rank(column, part), unit="s", more_is_better=False)
        for name, column in (
            ("TTFT", lambda run: run.ttft_s),
            ("TPOT", lambda run: run.tpot_s),
            ("end to end", lambda run: run.e2e_s),
        )
        for part in (0.5, 0.95, 0.99)
    ),
    Metric(
        name="longest stall p99", figure=rank(lambda run: run.longest_stall_s, 0.99), unit="s", more_is_better=False
    ),
)


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], rng: np.random.Generator, *, anyway: bool = False
) -> Comparison:
    """Compare two results.

    Raises:
        NotComparableError: a run is not valid, or they were asked for different things, and not `anyway`; or a run
            has no requests at all.
    """
    if (reasons := obstacles(a, b)) and not anyway:
        raise NotComparableError("\n".join(reasons))
    first, second = requests_in(a), requests_in(b)
    if not len(first) or not len(second):
        raise NotComparableError("a run without requests cannot be compared")
    paired = a["schedule_sha"] == b["schedule_sha"] and a["loop"] == "open"
    lengths_s = [_length_s(run) for run in (first, second)]
    blocks = [blocks_of(length_s) for length_s in lengths_s]
    runs = [blocked(run, *cut) for run, cut in zip((first, second), zip(lengths_s, blocks, strict=True), strict=True)]
    counts = [draws(rng, count, RESAMPLES) for count in blocks]
    if paired:
        counts[1] = counts[0]
    return Comparison(
        paired=paired,
        blocks=min(blocks),
        block_s=lengths_s[0] / blocks[0],
        differences=tuple(_difference(metric, runs, counts) for metric in METRICS),
    )


def obstacles(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why the difference of two results would not say anything about the servers."""
    found = [f"{name} is not valid: {reason}" for name, run in (("A", a), ("B", b)) for reason in run["invalid"]]
    if a["loop"] != b["loop"]:
        found.append(f"A is {a['loop']} loop, B is {b['loop']} loop: their clocks start at different moments")
    if a["slo"] != b["slo"]:
        found.append(f"the SLO differs: {a['slo']} and {b['slo']}")
    if a["schedule_sha"] != b["schedule_sha"]:
        asked_a, asked_b = (run["run"].get("scenario", {}) for run in (a, b))
        found += [
            f"the load differs in {key}: {asked_a.get(key)} and {asked_b.get(key)}"
            for key in _LOAD
            if asked_a.get(key) != asked_b.get(key)
        ]
    return found


def _length_s(run: Requests) -> float:
    return float(run.scheduled_s.max()) or BLOCK_S


def _difference(metric: Metric, runs: list[Blocked], counts: list[Counts]) -> Difference:
    once = [np.ones((1, count.shape[1]), dtype=np.int64) for count in counts]
    a, b = (float(metric.figure(run, count)[0]) for run, count in zip(runs, once, strict=True))
    if math.isnan(a) or math.isnan(b):
        return _unknown(metric, a, b)
    drawn_a, drawn_b = (metric.figure(run, count) for run, count in zip(runs, counts, strict=True))
    found = interval(drawn_b - drawn_a, min(count.shape[1] for count in counts))
    if found is None:
        return _unknown(metric, a, b)
    return Difference(
        metric=metric.name,
        a=a,
        b=b,
        difference=b - a,
        low=found.low,
        high=found.high,
        verdict=_verdict(found.low, found.high, more_is_better=metric.more_is_better),
    )


def _unknown(metric: Metric, a: float, b: float) -> Difference:
    known_a, known_b = (None if math.isnan(value) else value for value in (a, b))
    return Difference(
        metric=metric.name, a=known_a, b=known_b, difference=None, low=None, high=None, verdict="too few values"
    )


def _verdict(low: float, high: float, *, more_is_better: bool) -> Verdict:
    if low <= 0 <= high:
        return "no difference seen"
    return "better" if (low > 0) == more_is_better else "worse"


def comparison_table(comparison: Comparison) -> Table:
    """For people; times in milliseconds, shares in percent."""
    how = "paired by" if comparison.paired else "unpaired, from"
    table = Table(
        title=f"B against A; {how} {comparison.blocks} blocks of {comparison.block_s:.0f} s", title_justify="left"
    )
    table.add_column("figure")
    for title in ("A", "B", "difference", "95 % interval"):
        table.add_column(title, justify="right")
    table.add_column("B is")
    colours = {"better": "green", "worse": "red"}
    for metric, each in zip(METRICS, comparison.differences, strict=True):
        label, scale = {"s": ("ms", 1000.0), "%": ("%", 100.0), "/s": ("/s", 1.0)}[metric.unit]
        a, b, difference, low, high = (
            _shown(value, scale) for value in (each.a, each.b, each.difference, each.low, each.high)
        )
        relative = f" ({each.difference / each.a:+.1%})" if each.difference is not None and each.a else ""
        lies = NOTHING if each.low is None else f"{low} to {high}"
        colour = colours.get(each.verdict, "dim")
        verdict = f"[{colour}]{each.verdict}[/{colour}]"
        table.add_row(f"{metric.name}, {label}", a, b, f"{difference}{relative}", lies, verdict)
    return table


def _shown(value: float | None, scale: float) -> str:
    if value is None:
        return NOTHING
    scaled = value * scale
    return f"{scaled:,.4g}" if abs(scaled) < 1000 else f"{scaled:,.0f}"
