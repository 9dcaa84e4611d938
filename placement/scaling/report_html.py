"""A scaling study as one HTML page that needs no network: charts to point at, on screens and on paper."""

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files

from placement.scaling.curve import MEASURES, WAYS, Curve, Turn
from placement.scaling.report import KNOWN_ERROR, as_json, as_text, asked, finding, sources, worth_telling
from placement.scaling.scale import Scaling

_ARROW = "\u2192"


def page(scaling: Scaling) -> str:
    """The page."""
    text = {
        "title": finding(scaling),
        "asked": asked(scaling),
        "known_error": KNOWN_ERROR,
        "threshold": f"{scaling.threshold:.0%}",
        "table": as_text(scaling),
    }
    markup = {
        "turns": "\n".join(_turns(curve) for curve in scaling.curves if curve.turns),
        "sources": "\n".join(f'<p class="soft">{escape(source)}</p>' for source in sources(scaling)),
        # Inside a script only "<" could end the element.
        "data": json.dumps(as_json(scaling), allow_nan=False).replace("<", "\\u003c"),
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


def _file(name: str) -> str:
    return (files("placement.scaling") / name).read_text(encoding="utf-8")
