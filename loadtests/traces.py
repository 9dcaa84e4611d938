"""Recorded requests to replay: a CSV with `arrival_s,input_tokens,output_tokens`, and `class` where it is known.

Columns are found by name, and others are passed over. `archipelago simulate` reads the same form. Sessions are not held
together: a recorded turn is sent when it was recorded, even if the answer before it has not ended this time.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_REQUIRED = ("arrival_s", "input_tokens", "output_tokens")
_OPTIONAL = "class"


class TraceError(ValueError):
    """A trace that cannot be read. The message names the file, the row, the field, its value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One recorded request."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    class_name: str | None


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """The rows of the CSV at `path`, in the order of arrival. Raises TraceError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _rows(file)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path} cannot be read as CSV: {reason}") from error


def _rows(file: TextIO) -> tuple[TraceRow, ...]:
    reader = csv.reader(file)
    header = [column.strip() for column in next(reader, [])]
    if missing := [column for column in _REQUIRED if column not in header]:
        raise TraceError(
            f"there is no column {', '.join(missing)}; the header is {','.join(header)[:200]!r} and must have "
            f"{', '.join(_REQUIRED)}, and may have {_OPTIONAL}"
        )
    rows: list[TraceRow] = []
    for number, values in enumerate((row for row in reader if row), start=1):
        if len(values) != len(header):
            raise TraceError(f"row {number} has {len(values)} values; the header has {len(header)}")
        row = _row(number, dict(zip(header, values, strict=True)))
        if rows and row.arrival_s < rows[-1].arrival_s:
            raise TraceError(
                f"row {number}: arrival_s is {row.arrival_s:g}, before the {rows[-1].arrival_s:g} of the row above; "
                "sort the rows by arrival_s"
            )
        rows.append(row)
    if not rows:
        raise TraceError("there are no rows; give at least one request")
    return tuple(rows)


def _row(number: int, values: Mapping[str, str]) -> TraceRow:
    arrival_s = _number(number, "arrival_s", values["arrival_s"])
    if arrival_s < 0:
        raise TraceError(f"row {number}: arrival_s is {arrival_s:g}; it must be 0 or more")
    return TraceRow(
        arrival_s=arrival_s,
        input_tokens=_tokens(number, "input_tokens", values["input_tokens"]),
        output_tokens=_tokens(number, "output_tokens", values["output_tokens"]),
        class_name=values.get(_OPTIONAL) or None,
    )


def _number(row: int, field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TraceError(f"row {row}: {field} is {text[:80]!r}; it must be a number")
    return value


def _tokens(row: int, field: str, text: str) -> int:
    value = _number(row, field, text)
    if value < 1 or value != int(value):
        raise TraceError(f"row {row}: {field} is {text[:80]}; it must be a whole number of at least 1")
    return int(value)
