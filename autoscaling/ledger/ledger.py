"""The ledger: every decision with its prediction, and what came of it, on disk before anything is done about it.

JSON lines in `ledger.jsonl` of a directory, each flushed to the disk before the next thing happens. One process writes;
anybody may read meanwhile. A file that has grown large is put aside as `ledger-NUMBER.jsonl`, where NUMBER is of the
first decision in the next one; the oldest of those go.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from autoscaling.ledger.entries import Entry, Outcome, State, add_fact, after, decision_fact, outcome_fact, state_fact

FILE = "ledger.jsonl"
MOST_BYTES = 16 * 2**20
MOST_ASIDE = 8
_REMEMBERED = 500  # entries: enough for the last ones of any model, few enough to go through with every tick
_DECISION = b'"fact":"decision"'


class LedgerError(Exception):
    """The ledger cannot be kept or read. The message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Entries by number, oldest first. `troubles` has a sentence for every line that cannot be read."""

    entries: Mapping[int, Entry]
    troubles: tuple[str, ...]


def read_ledger(directory: Path, *, last: int = 100, number: int | None = None) -> Reading:
    """The last entries, or all from entry `number` on. Nothing where there is no ledger yet. Raises `LedgerError`."""
    lines: list[tuple[str, bytes]] = []
    for path in reversed(_files(directory)):
        lines[:0] = _lines(path)
        if (number is None and sum(_DECISION in line for _, line in lines) >= last) or (
            number is not None and path.name != FILE and _ends_before(path) <= number
        ):
            break
    entries: dict[int, Entry] = {}
    troubles = []
    for place, line in lines:
        try:
            add_fact(entries, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            troubles.append(f"{place} is left out: it is no fact of a ledger ({error}).")
    first = number if number is not None else min([*entries][-last:], default=0)
    kept = {known: entry for known, entry in entries.items() if known >= first}
    return Reading(entries=kept, troubles=tuple(troubles))


class Ledger:
    """The one writer of a ledger. Every method raises `LedgerError` where the disk does not take a line.

    `entries` has those that something may still become of, and the last ones of each model; `troubles` what could not
    be read when it was opened.
    """

    def __init__(self, directory: Path, *, most_bytes: int = MOST_BYTES, most_aside: int = MOST_ASIDE) -> None:
        self._directory, self._most_bytes, self._most_aside = directory, most_bytes, most_aside
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{directory}: the ledger cannot be kept there ({error.strerror}).") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise LedgerError(f"{directory}: another autoscaler keeps its ledger there; give another one.") from error
        _end_torn_line(directory / FILE)
        reading = read_ledger(directory, last=_REMEMBERED)
        self.troubles = reading.troubles
        self.entries = dict(reading.entries)
        self._next_number = max(self.entries, default=0) + 1
        self._may_be_torn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def open(self, **fields: Any) -> Entry:
        """Write down a decision; `fields` are those of `Entry`, less its number and `since_s`."""
        entry = Entry(number=self._next_number, since_s=fields["at_s"], **fields)
        self._write(decision_fact(entry))
        self._next_number += 1
        self.entries[entry.number] = entry
        if len(self.entries) > _REMEMBERED:
            self._forget_one()
        return entry

    def move(self, entry: Entry, state: State, *, at_s: float, why: str = "", by: str = "") -> Entry:
        """Write down that an entry is in another state."""
        return self._add(entry, state_fact(entry.number, state, at_s=at_s, why=why, by=by))

    def judge(self, entry: Entry, outcome: Outcome, *, at_s: float) -> Entry:
        """Write down what a change brought."""
        return self._add(entry, outcome_fact(entry.number, outcome, at_s=at_s))

    def of(self, model: str) -> list[Entry]:
        """The entries of one model that are still in memory, oldest first."""
        return [entry for entry in self.entries.values() if entry.model == model]

    def _add(self, entry: Entry, fact: Mapping[str, Any]) -> Entry:
        self._write(fact)
        self.entries[entry.number] = changed = after(self.entries[entry.number], fact)
        return changed

    def _forget_one(self) -> None:
        """The oldest that is judged; another may never be, such as a change of a model that is watched no more."""
        oldest = next((number for number, entry in self.entries.items() if entry.is_judged), None)
        if oldest is not None:
            del self.entries[oldest]

    def _write(self, fact: Mapping[str, Any]) -> None:
        path = self._directory / FILE
        line = json.dumps(fact, separators=(",", ":")) + "\n"
        if self._may_be_torn:
            _end_torn_line(path)
        self._may_be_torn = True
        try:
            # Only before a decision, so that a file begins with one.
            if fact["fact"] == "decision" and path.exists() and path.stat().st_size > self._most_bytes:
                self._put_aside(path)
            is_new = not path.exists()
            with path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                _sync_directory(self._directory)
            self._may_be_torn = False
        except OSError as error:
            raise LedgerError(f"{path}: cannot be written ({error.strerror}); nothing was done.") from error

    def _put_aside(self, path: Path) -> None:
        path.rename(path.with_name(f"ledger-{self._next_number:012}.jsonl"))
        for old in _files(self._directory)[: -self._most_aside]:
            old.unlink()


def _files(directory: Path) -> list[Path]:
    """All files of a ledger, oldest first."""
    aside = sorted(directory.glob("ledger-*.jsonl"))
    return [*aside, *([directory / FILE] if (directory / FILE).exists() else [])]


def _ends_before(path: Path) -> int:
    """The number of the first decision after those in a file that was put aside."""
    return int(path.stem.removeprefix("ledger-"))


def _lines(path: Path) -> list[tuple[str, bytes]]:
    """The lines of a file, each with its place."""
    try:
        return [
            (f"{path} line {position}", line) for position, line in enumerate(path.read_bytes().splitlines(), start=1)
        ]
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror}).") from error


def _end_torn_line(path: Path) -> None:
    """End a torn last line, so that the next one does not become part of it. It stays, to be told of."""
    try:
        if not path.exists() or path.stat().st_size == 0:
            return
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written ({error.strerror}).") from error


def _sync_directory(directory: Path) -> None:
    """A file's name is on the disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
