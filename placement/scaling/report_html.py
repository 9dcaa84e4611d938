"""A scaling study as one HTML page that needs no network: charts to point at, on screens and on paper."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from placement.scaling.curve import MEASURES, WAYS, Curve, Turn
from placement.scaling.report import KNOWN_ERROR, as_json, as_text, asked, finding, sources, worth_telling
from placement.scaling.scale import Scaling, ScalingError

_ARROW = "\u2192"
_PLAN = {  # what the page shows of a plan option, with the head of its column
    "name": "option",
    "gpus": "GPUs",
    "replicas": "replicas",
    "ttft_ms": "TTFT, ms",
    "tpot_ms": "TPOT, ms",
    "tokens_per_s_per_gpu": "tokens/s per GPU",
    "reason": "why",
}


def page(scaling: Scaling, *, plans: Sequence[Mapping[str, Any]] = (), known_error: str = KNOWN_ERROR) -> str:
    """The page. `plans` are options of a plan, best first, each with the keys name, gpus, replicas, ttft_ms, tpot_ms,
    tokens_per_s_per_gpu and reason. Raises `ScalingError` where one lacks a key.
    """
    text = {
        "title": finding(scaling),
        "asked": asked(scaling),
        "known_error": known_error,
        "threshold": f"{scaling.threshold:.0%}",
        "table": as_text(scaling, known_error=known_error),
    }
    document = as_json(scaling, known_error=known_error)
    markup = {
        "plans": _plans(plans),
        "turns": "\n".join(_turns(curve) for curve in scaling.curves if curve.turns),
        "sources": "\n".join(f'<p class="soft">{escape(source)}</p>' for source in sources(scaling)),
        # Inside a script only "<" could end the element.
        "data": json.dumps(document, allow_nan=False).replace("<", "\\u003c"),
        "script": _file("report.js"),
    }
    return _filled(_file("report.html"), {name: escape(value) for name, value in text.items()} | markup)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """In one pass, so that nothing in a value is taken for a placeholder."""
    return re.sub("@([a-z_]+)@", lambda found: values[found[1]], template)


def _turns(curve: Curve) -> str:
    items = "\n".join(_turn(turn) for turn in worth_telling(curve))
    return f'<h3 class="way">{escape(WAYS[curve.way])}</h3>\n<ul class="turns">\n{items}\n</ul>'


def _turn(turn: Turn) -> str:
    sentence = escape(turn.sentence.replace("->", _ARROW))
    return f'<li class="{turn.kind}"><b>{escape(MEASURES[turn.measure])}</b>{sentence}</li>'


def _plans(plans: Sequence[Mapping[str, Any]]) -> str:
    if not plans:
        return ""
    for plan in plans:
        if missing := [key for key in _PLAN if key not in plan]:
            raise ScalingError(f"A plan option lacks {', '.join(missing)}; it needs {', '.join(_PLAN)}.")
    head = "".join(f"<th>{escape(title)}</th>" for title in _PLAN.values())
    rows = "".join(f"<tr>{''.join(f'<td>{_cell(plan[key])}</td>' for key in _PLAN)}</tr>" for plan in plans)
    return f'<h2>Ranked options</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>{rows}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"
    return escape(str(value))


def _file(name: str) -> str:
    return (files("placement.scaling") / name).read_text(encoding="utf-8")
