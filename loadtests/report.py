"""A run as one document for programs, `result.json`, and as one page for people, `report.html`."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import measures
from loadtests.measures import Figures, Requests
from loadtests.records import RunEvent, read_run
from loadtests.report_html import page
from loadtests.slo import Slo, slo_of
from loadtests.windows import by_minute, over_time

FORMAT, VERSION = "archipelago load result", 1
RESULT_FILE, PAGE_FILE = "result.json", "report.html"
KEYS = (
    *("format", "version", "run", "loop", "slo", "schedule_sha", "span_s", "valid", "invalid", "slo_met", "all"),
    *("outcomes", "lag_s", "by_class", "by_input_quartile", "by_shape", "by_replica", "by_minute", "over_time"),
    *("events", "requests"),
)
_DECIMALS = 6  # microseconds: finer than any client's clock is true


class ResultError(Exception):
    """A file is not the result of a run; the message names the file and what is wrong."""


def result(run: Mapping[str, Any], requests: Requests, events: Sequence[RunEvent]) -> dict[str, Any]:
    """The document. Its keys stay; `version` counts up when one changes its meaning.

    Args:
        run: header of the records file.
        requests: all arrivals.
        events: what was done to the server meanwhile.
    """
    slo, open_loop = slo_of(run), run.get("loop", "open") == "open"
    told_lag_s = run.get("max_lag_ms", math.inf) / 1000
    told = run.get("invalid") or []
    invalid = measures.invalid_reasons(requests, slo, told, open_loop=open_loop, told_lag_s=told_lag_s)
    whole = measures.figures(requests, "all") if len(requests) else None
    document = {
        "format": FORMAT,
        "version": VERSION,
        "run": dict(run),
        "loop": "open" if open_loop else "closed",
        "slo": asdict(slo),
        "schedule_sha": schedule_sha(requests),
        "span_s": requests.span_s,
        "valid": not invalid,
        "invalid": invalid,
        "slo_met": slo_met(whole, slo),
        "all": whole and asdict(whole),
        "outcomes": measures.outcome_counts(requests),
        "lag_s": (lag := measures.distribution(requests.lag_s)) and asdict(lag),
        "by_class": _rows(measures.by_class(requests)),
        "by_input_quartile": _rows(measures.by_input_quartile(requests)),
        "by_shape": _rows(measures.by_shape(requests)),
        "by_replica": _rows(measures.by_replica(requests)),
        "by_minute": [asdict(minute) for minute in by_minute(requests)],
        "over_time": asdict(over_time(requests)),
        "events": [asdict(event) for event in sorted(events, key=lambda event: event.at_s)],
        "requests": _columns(requests),
    }
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def slo_met(whole: Figures | None, slo: Slo) -> bool | None:
    """Whether the share of good requests is what was asked for; None where no share was."""
    return None if slo.attainment is None else whole is not None and whole.attainment >= slo.attainment


def schedule_sha(requests: Requests) -> str:
    """Equal for two runs that asked for the same lengths in the same classes at the same times."""
    asked = zip(
        requests.scheduled_s.round(_DECIMALS).tolist(),
        requests.asked_input_tokens.tolist(),
        requests.asked_output_tokens.tolist(),
        requests.class_names,
        strict=True,
    )
    return hashlib.sha256(json.dumps(list(asked)).encode()).hexdigest()[:16]


def write_report(records_path: Path, out_dir: Path) -> Path:
    """Write `result.json` and `report.html` into a directory, which is made if need be; returns the page.

    Raises:
        RecordsError: the file is not one of records; nothing is written then.
    """
    recorded = read_run(records_path)
    open_loop = recorded.header.get("loop", "open") == "open"
    requests = measures.requests_of(recorded.records, slo_of(recorded.header), open_loop=open_loop)
    document = result(recorded.header, requests, recorded.events)
    text = page(document)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / RESULT_FILE).write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
    written = out_dir / PAGE_FILE
    written.write_text(text, encoding="utf-8")
    return written


def read_result(path: Path) -> dict[str, Any]:
    """A document that `write_report` wrote.

    Raises:
        ResultError: it is none, or one of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ResultError(f"{path} is not the result of a load test; `archipelago bench report` writes {RESULT_FILE}")
    if document.get("version") != VERSION:
        raise ResultError(
            f"{path} has version {document.get('version')!r}; this program reads {VERSION}: write it anew from its "
            "records with `archipelago bench report`"
        )
    if missing := [key for key in KEYS if key not in document]:
        raise ResultError(
            f"{path} lacks {', '.join(missing)}; write it anew from its records with `archipelago bench report`"
        )
    return document


def requests_in(document: Mapping[str, Any]) -> Requests:
    """The arrivals of a document, as they were before it was written, to the microsecond."""
    columns = document["requests"]
    names = {"outcomes", "class_names", "replicas"}
    values: dict[str, Any] = {name: tuple(columns[name]) for name in names}
    values["good"] = np.array(columns["good"], dtype=np.bool_)
    for field in fields(Requests):
        if field.name not in values:
            values[field.name] = np.array(
                [math.nan if value is None else value for value in columns[field.name]], dtype=np.float64
            )
    return Requests(**values)


def _columns(requests: Requests) -> dict[str, Any]:
    values = {field.name: getattr(requests, field.name) for field in fields(Requests)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else list(value) for name, value in values.items()}


def _rows(groups: Sequence[Figures]) -> list[dict[str, Any]]:
    return [asdict(group) for group in groups]


def _rounded(value: Any) -> Any:
    """Plain JSON: no NaN, and no digits that nothing measured."""
    if isinstance(value, float):
        return round(value, _DECIMALS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value
