"""A study as one HTML page that needs no network: verdict, demand, fleets over time, every decision with its reason."""

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from autoscaling.observation import Array, spelled
from autoscaling.whatif.decisions_html import decisions_html, grouped
from autoscaling.whatif.reconstruction import demanded
from autoscaling.whatif.replay import OURS
from autoscaling.whatif.study import MEASURED, Study, Way
from autoscaling.whatif.verdict import IN_HINDSIGHT, goal, hours, keeps, percent, span, verdict

_MOST_BINS = 600  # as many as a chart has pixels for
_FINE_BINS = 360  # up to so many minutes each has its own
_NOTHING = "\u2013"
_HINDSIGHT = "tuned on this very history, which nobody could have done before"
_ERRORS = (("requests", "requests"), ("input_tokens", "input tokens"), ("output_tokens", "output tokens"))


def page(study: Study) -> str:
    """The page."""
    first, second = verdict(study)
    text = {
        "model": study.model,
        # A percent sign stays with its number where a line ends.
        "verdict": first.replace(" %", "\u00a0%"),
        "others": second.replace(" %", "\u00a0%"),
        "target": goal(study.slo),
        "clock": "UTC" if study.past else "hours since the first request",
    }
    clock = clock_of(study)
    ours = next((result for result in study.results if result.policy == OURS), None)
    markup = {
        "cards": "".join(_card(*card) for card in _cards(study)),
        "conditions": "".join(f"<span><b>{name}</b>{escape(value)}</span>" for name, value in _conditions(study)),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in study.notes),
        "rows": "".join(_row(way, study) for way in study.ways),
        "fidelity": _fidelity(study),
        "decisions": decisions_html(ours.decisions, tick_s=study.tick_s, clock=clock) if ours else "",
        # Inside a script only "<" could end the element.
        "data": json.dumps(charts(study), allow_nan=False).replace("<", "\\u003c"),
        "script": (files("autoscaling.whatif") / "report.js").read_text(encoding="utf-8"),
        "counted": _counted(study),
    }
    template = (files("autoscaling.whatif") / "report.html").read_text(encoding="utf-8")
    values = {name: escape(value) for name, value in text.items()} | markup
    # In one pass, so that nothing in a value is taken for a placeholder.
    return re.sub("@([a-z_]+)@", lambda found: values[found[1]], template)


def clock_of(study: Study) -> Callable[[float], str]:
    """Writes a time of the study: of the day, with the date where there are several; without a date since the start."""
    past = study.past
    if past is None:
        return lambda at_s: f"{int(at_s // 3600)}:{int(at_s // 60 % 60):02d}"
    form = "%H:%M" if study.length_s <= 93_600 else "%d %b %H:%M"
    return lambda at_s: datetime.fromtimestamp(past.start_s + at_s, UTC).strftime(form)


def _counted(study: Study) -> str:
    """How many decisions there are."""
    ours = next((result for result in study.results if result.policy == OURS), None)
    if ours is None:
        return "Archipelago was not among the policies."
    each = list(grouped(ours.decisions))
    changes = [one for one in ours.decisions if one.kind != "hold"]
    refused = sum(not one.accepted for one in changes)
    ticks = sum(one.ticks for one in ours.decisions)
    asked = f"Asked {ticks:,} times, it changed something {len(changes) - refused} times"
    return f"{asked}; the {len(each) - len(changes)} stretches between are holds, each merged into one line."


def _cards(study: Study) -> list[tuple[str, str, str, bool]]:
    """Title, figure, what it is held against, and whether it is bad."""
    ours, ran = study.way(OURS), study.way(MEASURED)
    if ours is None or ours.result is None:
        return []
    result, actions = ours.result, ours.result.actions
    late = f"{result.late:,} late, {result.refused:,} refused, {result.unfinished:,} unfinished"
    missed = keeps(ours, study.slo) is False
    return [
        ("GPU-hours", hours(ours.gpu_hours), f"you ran {hours(ran.gpu_hours)}" if ran else "", False),
        ("SLO attainment", percent(ours.attainment), f"you had {percent(ran.attainment)}" if ran else "", missed),
        (
            "Worst 5 minutes",
            percent(ours.worst_5_minutes),
            f"you had {percent(ran.worst_5_minutes)}" if ran else "",
            False,
        ),
        ("Requests", f"{result.arrivals:,}", late, False),
        (
            "Changes of replicas",
            f"{actions['up'] + actions['down']}",
            f"{actions['up']} up, {actions['down']} down",
            False,
        ),
        ("Repartitions", f"{actions['repartition']}", f"{result.reversals} changes soon taken back", False),
    ]


def _card(title: str, figure: str, below: str, is_bad: bool) -> str:
    value, _, unit = figure.partition(" ")
    small = f" <small>{escape(unit)}</small>" if unit else ""
    return (
        f'<div class="card{" bad" if is_bad else ""}"><h3>{escape(title)}</h3><b>{escape(value)}{small}</b>'
        f"<p>{escape(below)}</p></div>"
    )


def _conditions(study: Study) -> list[tuple[str, str]]:
    slo = study.slo
    limits = [f"TTFT {slo.ttft_s:g} s"] if slo.ttft_s is not None else []
    limits += [f"TPOT {slo.tpot_s * 1e3:g} ms"] if slo.tpot_s is not None else []
    when = [("length", span(study.length_s))]
    if study.past is not None:
        begin, end = (
            datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")
            for at_s in (study.past.start_s, study.past.start_s + study.length_s)
        )
        when = [("from", f"{begin} UTC"), ("until", f"{end} UTC")]
    return [
        *when,
        ("sizes of", study.source),
        ("cluster", study.cluster),
        ("SLO", f"{' and '.join(limits) or 'answered at all'} for {goal(slo)}"),
        ("at the start", spelled(study.initial)),
        ("seed", str(study.seed)),
    ]


def _row(way: Way, study: Study) -> str:
    result, ours = way.result, study.way(OURS)
    more = _NOTHING
    if ours is not None and ours.gpu_hours and way.name != OURS:
        more = f"{(way.gpu_hours / ours.gpu_hours - 1) * 100:+.0f} %".replace("-", "\u2212")
        more = "same" if more[1:] == "0 %" else more
    kept = {True: "yes", False: "no", None: "unknown"}[keeps(way, study.slo)]
    cells = [hours(way.gpu_hours), more, percent(way.attainment), percent(way.worst_5_minutes)]
    if result is None:
        cells += [_NOTHING] * 4
    else:
        actions = result.actions
        cells += [
            f"{result.ttft_s.p99:.2f} s" if math.isfinite(result.ttft_s.p99) else "never",
            f"{result.tpot_s.p99 * 1e3:.0f} ms" if math.isfinite(result.tpot_s.p99) else "never",
            f"{actions['up'] + actions['down']}",
            f"{actions['repartition']}",
        ]
    note = f'<i title="{_HINDSIGHT}">in hindsight</i>' if way.name in IN_HINDSIGHT else ""
    note += "" if result else "<i>measured</i>"
    marked = f'<i class="dot" data-way="{escape(way.name)}"></i>{escape(way.title)}{note}'
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{kept}" data-way="{escape(way.name)}"><td>{marked}</td>{body}</tr>'


def _fidelity(study: Study) -> str:
    found, past = study.fidelity, study.past
    if found is None or past is None:
        return "<p>The trace was given, so nothing of it is made up.</p>"
    rows = "".join(
        f"<tr><td>{title}</td><td>{_signed(getattr(found, name))}</td>"
        f"<td>{_signed(getattr(found, f'worst_{name}'))}</td></tr>"
        for name, title in _ERRORS
    )
    return (
        "<p>Prometheus counts requests and tokens and does not list them: the requests replayed are a reconstruction. "
        "Each minute has the requests it had, and each five minutes the tokens. Drawn from the seed are when in its "
        f"minute a request came (index of dispersion {past.dispersion:.2f}, 1 is Poisson) and how long each was "
        f"(lognormal, with the mean and the spread of then). {percent(past.prefix_hit_rate)} of the prompt tokens "
        'are taken to be found in a cache, as they were overall.</p><table class="small"><tr>'
        f"<th>trace against history</th><th>in all</th><th>worst of {found.hours} hours</th></tr>{rows}</table>"
    )


def _signed(error: float) -> str:
    return f"{error * 100:+.2f} %".replace("-", "\u2212")


def charts(study: Study) -> dict[str, Any]:
    """What the page draws, in bins of minutes that are no more than a chart has room for."""
    minutes = max(1, math.ceil(study.length_s / 60))
    per_bin = 1 if minutes <= _FINE_BINS else 5 * math.ceil(minutes / 5 / _MOST_BINS)
    bins = math.ceil(minutes / per_bin)
    ways = study.ways
    ours = next((result for result in study.results if result.policy == OURS), None)
    return {
        "bin_s": 60 * per_bin,
        "bins": bins,
        "start_s": study.past.start_s if study.past else None,
        "target": study.slo.percentile,
        "demand": {name: _rounded(_binned(row, per_bin, bins)) for name, row in _demand(study).items()},
        "unknown": _rounded(_binned(study.past.unknown, per_bin, bins)) if study.past else [],
        "ways": [_chart(way, per_bin, bins) for way in ways],
        "changes": [
            {"at_s": one.at_s, "kind": one.kind, "reason": one.reason}
            for one in (ours.decisions if ours else ())
            if one.kind != "hold" and one.accepted
        ],
    }


def _demand(study: Study) -> Mapping[str, Array]:
    """By minute and second: of the history where there is one, of the trace otherwise."""
    if study.past is not None:
        asked = demanded(study.past)
        rows = {"requests": asked.requests, "input": asked.input_tokens, "output": asked.output_tokens}
        return {name: row / asked.step_s for name, row in rows.items()}
    trace = study.trace
    minute = (trace.arrivals_s // 60).astype(int)
    weights = {"requests": None, "input": trace.input_tokens, "output": trace.output_tokens}
    return {name: np.bincount(minute, each) / 60 for name, each in weights.items()}


def _chart(way: Way, per_bin: int, bins: int) -> dict[str, Any]:
    repeats = round(way.share_step_s / 60)
    weights = np.repeat(way.weights / repeats, repeats)
    good = np.repeat(np.nan_to_num(way.shares) * way.weights / repeats, repeats)
    kept, all_of = (_sums(row, per_bin, bins) for row in (good, weights))
    return {
        "name": way.name,
        "title": way.title,
        "gpu_hours": way.gpu_hours,
        "attainment": way.attainment,
        "worst": way.worst_5_minutes,
        "gpus": {shape: _rounded(_binned(row, per_bin, bins)) for shape, row in way.gpus.items()},
        "kept": [
            None if not there else round(min(1.0, part / there), 5)
            for part, there in zip(kept.tolist(), all_of.tolist(), strict=True)
        ],
    }


def _sums(row: Array, per_bin: int, bins: int) -> Array:
    padded = np.zeros(bins * per_bin)
    length = min(len(row), len(padded))
    padded[:length] = row[:length]
    return np.asarray(padded.reshape(bins, per_bin).sum(axis=1))


def _binned(row: Array, per_bin: int, bins: int) -> Array:
    """Means; the last bin's is of the minutes it has."""
    there = _sums(np.ones(len(row)), per_bin, bins)
    return np.asarray(_sums(row, per_bin, bins) / np.maximum(there, 1))


def _rounded(row: Array) -> list[float]:
    return [float(f"{value:.5g}") for value in row.tolist()]
