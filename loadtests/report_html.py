"""The result of a run as one HTML page that needs no network: what was asked, what came of it, and when."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

_MEANING = {
    "ok": "the whole answer came, with its finish reason and as many tokens as it says",
    "refused": "turned away with 429 or 503",
    "http-error": "another status than 2xx",
    "cut": "the connection ended in the middle of the answer",
    "error-event": "the server reported an error in the middle of the answer",
    "timeout": "no end within timeout_s",
    "unreachable": "no connection",
    "garbage": "something that is not a stream of completions",
    "unfinished": "still running when the run ended",
    "no-usage": "a whole answer, without the count of its tokens",
    "gap-or-repeat": "not as many tokens as the server counts or was asked for",
    "redirect": "sent to another address",
    "error-body": "status 200 with an error in it",
    "text-differs": "another text than that of the reference run",
}
_RANKS = ("p50", "p95", "p99")
_GROUPS = (
    ("by_class", "By class", "class"),
    ("by_input_quartile", "By input length, in quartiles", "input"),
    ("by_shape", "By shape", "shape"),
    ("by_replica", "By replica", "replica"),
)
_NOTHING = "\u2013"
_CONDITIONS = {
    "url": "endpoint",
    "model": "model",
    "started_at": "started",
    "loop": "loop",
    "arrivals": "arrivals",
    "duration_s": "duration",
    "workers": "workers",
    "seed": "seed",
}


def page(document: Mapping[str, Any]) -> str:
    """The page of a document that `report.result` made."""
    shown = {key: value for key, value in document.items() if key != "requests"}
    text = {
        "scenario": str(document["run"].get("name") or "Load test"),
        # A percent sign stays with its number where a line ends.
        "headline": headline(document).replace(" %", "\u00a0%"),
        "verdict": verdict(document),
        "asked": asked(document),
    }
    markup = {
        "invalid": "".join(f"<li>{escape(reason)}</li>" for reason in document["invalid"]),
        "cards": "".join(_card(*card) for card in _cards(document)),
        "outcomes": _outcomes(document),
        "groups": "".join(_group(title, column, document[key]) for key, title, column in _GROUPS if document[key]),
        "conditions": _conditions(document),
        "header": escape(json.dumps(document["run"], indent=2, default=str, ensure_ascii=False)),
        # Inside a script only "<" could end the element.
        "data": json.dumps(shown, allow_nan=False).replace("<", "\\u003c"),
        "script": _file("report.js"),
    }
    return _filled(_file("report.html"), {name: escape(value) for name, value in text.items()} | markup)


def verdict(document: Mapping[str, Any]) -> str:
    """One word or two: is the run valid, and was the SLO met."""
    if not document["valid"]:
        return "not valid"
    return {True: "SLO met", False: "SLO missed", None: "no SLO"}[document["slo_met"]]


def headline(document: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    whole = document["all"]
    if whole is None:
        return "No request was scheduled"
    of = f"{whole['arrivals']:,} requests"
    target = document["slo"]["attainment"]
    wanted = "" if target is None else f"; {target * 100:g} % were asked for"
    if _asks(document["slo"]):
        return f"{_percent(whole['attainment'])} of {of} were good{wanted}"
    return f"{_percent(whole['ok'] / whole['arrivals'])} of {of} were answered in full{wanted}"


def asked(document: Mapping[str, Any]) -> str:
    """What a request had to reach, and from when its time counts."""
    slo = document["slo"]
    general = _limits(slo) or "a whole answer"
    classes = "".join(f"; {name}: {_limits({'limits': own})}" for name, own in slo["classes"].items())
    clock = {
        "open": "Open loop: time counts from the moment a request was scheduled.",
        "closed": "Closed loop: time counts from sending, so a stalled server is asked less and its misses are hidden.",
    }
    return f"Good: {general}{classes}. Every arrival counts. {clock[document['loop']]}"


def _asks(slo: Mapping[str, Any]) -> bool:
    return any(limit is not None for limits in (slo["limits"], *slo["classes"].values()) for limit in limits.values())


def _limits(slo: Mapping[str, Any]) -> str:
    names = {"ttft_s": "TTFT", "tpot_s": "TPOT"}
    given = slo["limits"]
    return ", ".join(f"{name} ≤ {_limit(given[key])}" for key, name in names.items() if given[key] is not None)


def _limit(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _cards(document: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Title, figure, what stands under it, and whether it is bad."""
    whole, lag = document["all"], document["lag_s"]
    if whole is None:
        return []
    target = document["slo"]["attainment"]
    failed = whole["arrivals"] - whole["ok"]
    wanted = f"asked: {target * 100:g} %" if target is not None else f"{whole['good']:,} of {whole['arrivals']:,}"
    broken = whole["lost_streams"] + whole["damaged_streams"]
    return [
        ("Attainment", _percent(whole["attainment"]), wanted, document["slo_met"] is False),
        (
            "Goodput",
            f"{_number(whole['good_requests_per_s'])} req/s",
            f"answered: {_number(whole['requests_per_s'])}",
            False,
        ),
        (
            "Output",
            f"{_number(whole['output_tokens_per_s'])} tok/s",
            f"good: {_number(whole['good_output_tokens_per_s'])}",
            False,
        ),
        ("TTFT p99", *_two(whole["ttft_s"], "p99", "p50"), False),
        ("TPOT p99", *_two(whole["tpot_s"], "p99", "p50"), False),
        ("Longest stall", *_two(whole["longest_stall_s"], "max", "p99"), False),
        ("Failed", f"{failed:,}", f"broken: {broken:,}", failed > 0),
        ("Client lag p99", *_two(lag, "p99", "p50"), False),
    ]


def _two(found: Mapping[str, Any] | None, first: str, second: str) -> tuple[str, str]:
    return (_NOTHING, "") if found is None else (_duration(found[first]), f"{second}: {_duration(found[second])}")


def _card(title: str, figure: str, under: str, bad: bool) -> str:
    number, _, unit = figure.partition(" ")
    value = f"{escape(number)} <small>{escape(unit)}</small>"
    kind = "card bad" if bad else "card"
    return f'<div class="{kind}"><h3>{escape(title)}</h3><b>{value}</b><p>{escape(under)}&nbsp;</p></div>'


def _outcomes(document: Mapping[str, Any]) -> str:
    counts = document["outcomes"]
    total = sum(counts.values())
    rows = "".join(
        f'<tr><td><i class="dot {"good" if name == "ok" else "failed"}"></i>{escape(name)}</td><td>{count:,}</td>'
        f"<td>{_percent(count / total)}</td><td>{escape(_MEANING.get(name, ''))}</td></tr>"
        for name, count in counts.items()
    )
    return f'<table class="outcomes">{_head(("outcome", "requests", "share", "what happened"))}{rows}</table>'


def _group(title: str, column: str, rows: Sequence[Mapping[str, Any]]) -> str:
    latencies = [(name, key, rank) for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")) for rank in _RANKS]
    counted = (column, "requests", "attainment", "failed", "good req/s", "output tok/s")
    heads = (*counted, *(f"{name} {rank}" for name, _, rank in latencies), "longest stall")
    body = []
    for row in rows:
        cells = [
            escape(row["name"]),
            f"{row['arrivals']:,}",
            _percent(row["attainment"]),
            f"{row['arrivals'] - row['ok']:,}",
            _number(row["good_requests_per_s"]),
            _number(row["output_tokens_per_s"]),
        ]
        cells += [_of(row[key], rank) for _, key, rank in latencies]
        cells.append(_of(row["longest_stall_s"], "max"))
        body.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<h2>{escape(title)}</h2><div class="wide"><table>{_head(heads)}{"".join(body)}</table></div>'


def _conditions(document: Mapping[str, Any]) -> str:
    run = document["run"]
    given = [(title, run[key]) for key, title in _CONDITIONS.items() if run.get(key) not in (None, "")]
    given = [(title, f"{value:g} s" if isinstance(value, float) else str(value)) for title, value in given]
    return "".join(f"<span><b>{escape(title)}</b> {escape(value)}</span>" for title, value in given)


def _head(titles: Sequence[str]) -> str:
    return f"<thead><tr>{''.join(f'<th>{escape(title)}</th>' for title in titles)}</tr></thead>"


def _of(found: Mapping[str, Any] | None, rank: str) -> str:
    return _NOTHING if found is None else _duration(found[rank])


def _percent(share: float) -> str:
    """One decimal, two next to 100 %; never 100 % where one is missing, nor 0 % where one is there."""
    percent = share * 100
    shown = f"{percent:.{2 if 99 < percent < 100 or 0 < percent < 1 else 1}f}"
    if percent < 100 and float(shown) == 100:
        return "> 99.99 %"
    if percent > 0 and float(shown) == 0:
        return "< 0.01 %"
    return f"{shown} %" if 0 < percent < 100 else f"{percent:g} %"


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _filled(template: str, values: Mapping[str, str]) -> str:
    """In one pass, so that nothing in a value is taken for a placeholder."""
    return re.sub("@([a-z_]+)@", lambda found: values[found[1]], template)


def _file(name: str) -> str:
    return (files("loadtests") / name).read_text(encoding="utf-8")
