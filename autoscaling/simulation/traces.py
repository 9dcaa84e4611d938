"""Requests to replay, in one canonical form: a CSV with `arrival_s,input_tokens,output_tokens`.

Columns are found by name, as public traces insert some. Scaling thins or superposes and never compresses time: that
would shorten bursts against the starts of replicas, which is the very ratio under test.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from autoscaling.observation import Array

REQUIRED = ("arrival_s", "input_tokens", "output_tokens")
OPTIONAL = ("session_id", "class")


class TraceError(ValueError):
    """A trace that cannot be read. The message names the row, the field, its value and what is accepted."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trace:
    """Requests in the order of arrival; whole tokens, 1 or more. `sessions` and `classes` are empty or one for each.

    `name` tells results apart.
    """

    arrivals_s: Array
    input_tokens: Array
    output_tokens: Array
    sessions: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        count = len(self.arrivals_s)
        for field, values in (("input_tokens", self.input_tokens), ("output_tokens", self.output_tokens)):
            if len(values) != count:
                raise TraceError(f"{field} has {len(values)} values for {count} arrivals; there must be one each.")
            _check_all(field, values, values >= 1, "a finite number of at least 1")
        _check_all("arrival_s", self.arrivals_s, self.arrivals_s >= 0, "a finite time of 0 or more")
        _check_all("arrival_s", self.arrivals_s, np.diff(self.arrivals_s, prepend=0.0) >= 0, "not before the row above")
        for field, names in (("session_id", self.sessions), ("class", self.classes)):
            if names and len(names) != count:
                raise TraceError(f"{field} has {len(names)} values for {count} arrivals; give one each or none.")

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival."""
        return float(self.arrivals_s[-1]) if len(self) else 0.0


def _check_all(field: str, values: Array, accepted: Any, what: str) -> None:
    wrong = np.flatnonzero(~(accepted & np.isfinite(values)))
    if len(wrong):
        row = int(wrong[0])
        raise TraceError(f"row {row + 1}: {field} is {values[row]:g}; it must be {what}.")


def trace_of(
    arrivals_s: Array,
    input_tokens: Array,
    output_tokens: Array,
    *,
    name: str = "",
) -> Trace:
    """A trace of arrays in any order of time; lengths are rounded to whole tokens."""
    order = np.argsort(arrivals_s, kind="stable")
    return Trace(
        arrivals_s=np.asarray(arrivals_s, dtype=np.float64)[order],
        input_tokens=np.maximum(1.0, np.rint(input_tokens))[order],
        output_tokens=np.maximum(1.0, np.rint(output_tokens))[order],
        name=name,
    )


def read_trace(path: Path) -> Trace:
    """The canonical CSV at `path`. Raises `TraceError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parsed(file, path.stem)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} cannot be read as CSV: {error}.") from error


def write_trace(trace: Trace, path: Path) -> None:
    """Write the canonical CSV; times to the microsecond."""
    columns: list[Iterable[Any]] = [
        (f"{arrival_s:.6f}" for arrival_s in trace.arrivals_s.tolist()),
        trace.input_tokens.astype(int).tolist(),
        trace.output_tokens.astype(int).tolist(),
    ]
    header = list(REQUIRED)
    for field, names in zip(OPTIONAL, (trace.sessions, trace.classes), strict=True):
        if names:
            header.append(field)
            columns.append(names)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))


def _parsed(file: TextIO, name: str) -> Trace:
    rows = csv.reader(file)
    header = [column.strip() for column in next(rows, [])]
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        raise TraceError(
            f"there is no column {', '.join(missing)}; the header is {','.join(header)[:200]!r} and must have "
            f"{', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}."
        )
    body = [row for row in rows if row]
    if not body:
        raise TraceError("there are no rows; give at least one request.")
    for number, row in enumerate(body, start=1):
        if len(row) != len(header):
            raise TraceError(f"row {number} has {len(row)} values; the header has {len(header)}.")
    columns = dict(zip(header, zip(*body, strict=True), strict=True))
    arrivals_s, prompts, answers = (_numbers(field, columns[field]) for field in REQUIRED)
    for field, values in (("input_tokens", prompts), ("output_tokens", answers)):
        _check_all(field, values, values == np.rint(values), "a whole number of tokens, 1 or more")
    return Trace(
        arrivals_s=arrivals_s,
        input_tokens=prompts,
        output_tokens=answers,
        sessions=columns.get("session_id", ()),
        classes=columns.get("class", ()),
        name=name,
    )


def _numbers(field: str, texts: Sequence[str]) -> Array:
    try:
        return np.array(texts, dtype=np.float64)
    except ValueError:
        for number, text in enumerate(texts, start=1):
            _number(field, number, text)
        raise


def _number(field: str, row: int, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise TraceError(f"row {row}: {field} is {text[:50]!r}; it must be a number.") from error


def thinned(trace: Trace, share: float, generator: np.random.Generator) -> Trace:
    """Each request kept with probability `share`, above 0 and at most 1."""
    if not 0 < share <= 1:
        raise TraceError(f"share is {share:g}; it must be above 0 and at most 1.")
    rows = np.flatnonzero(generator.random(len(trace)) < share)
    return _picked(trace, rows, trace.arrivals_s[rows])


def superposed(trace: Trace, times: float, generator: np.random.Generator, *, shift_s: float = 60.0) -> Trace:
    """`times` as many requests: copies shifted in time by up to `shift_s` (wrapped round), the last one thinned.

    Copies without a shift would make every burst `times` as sharp.
    """
    if not (times >= 1 and math.isfinite(times)):
        raise TraceError(f"times is {times:g}; it must be at least 1 and finite (`thinned` goes down).")
    if not len(trace):
        return trace
    span_s = np.nextafter(trace.duration_s, math.inf)
    kept: list[Any] = [np.arange(len(trace))]
    moved_s: list[Array] = [trace.arrivals_s]
    for copy in range(1, math.ceil(times)):
        share = min(1.0, times - copy)
        chosen = np.flatnonzero(generator.random(len(trace)) < share) if share < 1 else kept[0]
        by_s = generator.uniform(-shift_s, shift_s)
        kept.append(chosen)
        moved_s.append((trace.arrivals_s[chosen] + by_s) % span_s)
    arrivals_s = np.concatenate(moved_s)
    order = np.argsort(arrivals_s, kind="stable")
    return _picked(trace, np.concatenate(kept)[order], arrivals_s[order])


def _picked(trace: Trace, rows: Any, arrivals_s: Array) -> Trace:
    """Some rows of `trace`, at other times."""
    return replace(
        trace,
        arrivals_s=arrivals_s,
        input_tokens=trace.input_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        sessions=_names(trace.sessions, rows),
        classes=_names(trace.classes, rows),
    )


def _names(names: tuple[str, ...], rows: Iterable[int]) -> tuple[str, ...]:
    return tuple(names[row] for row in rows) if names else ()
