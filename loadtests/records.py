"""What one run wrote down: a JSONL file with a header line, one line for each event of the run, one for each request.

Every arrival has its record, whatever became of it. All times are seconds from the start of the run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

VERSION = 1
Outcome = Literal[
    "ok",
    "refused",  # 429 or 503
    "http-error",  # any other status that is neither 2xx nor 3xx
    "redirect",
    "unreachable",  # no connection
    "timeout",
    "cut",  # the connection or the stream ended before the answer did
    "error-event",  # an error inside the stream
    "error-body",  # status 200, and an error instead of a stream
    "garbage",  # not HTTP, not events, or events that are not completions
    "no-usage",
    "gap-or-repeat",  # the tokens of the stream are not as many as the server counts, or it was asked for
    "text-differs",  # from the reference run
    "unfinished",  # still under way when the time to drain was over
]
OUTCOMES: tuple[str, ...] = get_args(Outcome)


class RecordsError(ValueError):
    """A file of records that cannot be read. The message names the file, the line, and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request as its client saw it.

    `scheduled_s` is when it was due; in a closed loop, when its client was free. `first_s` and `last_s` are the first
    and the last event with content, `longest_gap_s` the longest wait between two such events; `events` is their number.
    `input_tokens` and `output_tokens` are the server's own count. `text_sha` is there for greedy runs only.
    """

    id: int
    worker: int
    class_name: str | None
    scheduled_s: float
    sent_s: float | None
    first_s: float | None
    last_s: float | None
    ended_s: float
    input_tokens: int | None
    output_tokens: int | None
    asked_input_tokens: int
    asked_output_tokens: int
    events: int
    longest_gap_s: float | None
    outcome: Outcome
    status: int | None
    detail: str | None
    finish_reason: str | None
    replica: str | None
    text_sha: str | None

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps({_KEYS.get(name, name): getattr(self, name) for name in _FIELDS}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that was done to the system during the run, and what came of it."""

    at_s: float
    kind: str
    what: str
    outcome: Literal["done", "failed"]
    detail: str | None = None

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps({"event": {name: getattr(self, name) for name in _EVENT_FIELDS}}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A whole file. `header` is the object under the key `run` of its first line."""

    header: Mapping[str, Any]
    events: tuple[RunEvent, ...]
    records: tuple[Record, ...]


_FIELDS = tuple(field.name for field in fields(Record))
_EVENT_FIELDS = tuple(field.name for field in fields(RunEvent))
_KEYS = {"class_name": "class"}  # `class` is a word of Python
_NAMES = {key: name for name, key in _KEYS.items()}


def record_of(values: Mapping[str, Any]) -> Record:
    """A record from the object of its line. Raises ValueError that names the field."""
    named = {_NAMES.get(key, key): value for key, value in values.items()}
    if wrong := set(named) ^ set(_FIELDS):
        raise ValueError(f"{', '.join(sorted(wrong))}: unknown or missing; a record has exactly {', '.join(_FIELDS)}")
    if named["outcome"] not in OUTCOMES:
        raise ValueError(f"outcome is {named['outcome']!r}; it must be one of {', '.join(OUTCOMES)}")
    return Record(**named)


def write_run(path: Path, run: Run) -> None:
    """Write the file whole: it appears under its name only when it is complete."""
    lines = [json.dumps({"run": {"version": VERSION, **run.header}})]
    lines += [event.to_json() for event in run.events]
    lines += [record.to_json() for record in run.records]
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


def read_run(path: Path) -> Run:
    """Read a file that `write_run` wrote. Raises RecordsError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecordsError(f"{path} cannot be read: {reason}") from error
    first, *rest = text.rstrip("\n").split("\n")  # not splitlines: JSON may hold what only str takes for a line's end
    return _run_of(_header_of(first, path), rest, path)


def read_records(lines: Iterable[str]) -> list[Record]:
    """The records that one worker wrote; a last line that was cut short by its end is left out."""
    records = []
    for line in lines:
        if not line.endswith("\n"):
            break
        records.append(record_of(json.loads(line)))
    return records


def _header_of(line: str, path: Path) -> Mapping[str, Any]:
    first = _object(line, path, 1)
    header = first.get("run")
    if not isinstance(header, dict) or len(first) > 1:  # a result.json has a run, too, and a report would replace it
        raise RecordsError(f'{path}, line 1: a file of records begins with {{"run": ...}}; give records.jsonl')
    if header.get("version") != VERSION:
        raise RecordsError(f"{path}, line 1: version is {header.get('version')!r}; this program reads {VERSION}")
    return header


def _run_of(header: Mapping[str, Any], lines: Iterable[str], path: Path) -> Run:
    events: list[RunEvent] = []
    records: list[Record] = []
    for number, line in enumerate(lines, start=2):
        values = _object(line, path, number)
        try:
            if "event" in values:
                events.append(RunEvent(**values["event"]))
            else:
                records.append(record_of(values))
        except (TypeError, ValueError) as error:
            what = re.sub(r"^RunEvent\.__init__\(\)", "an event", str(error))
            raise RecordsError(f"{path}, line {number}: {what}") from error
    return Run(header=header, events=tuple(events), records=tuple(records))


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise RecordsError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RecordsError(f"{path}, line {number}: must be a JSON object")
    return values
