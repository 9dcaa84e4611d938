"""The audit log: one JSON line for each request to change something, on disk before the request is answered."""

import os
from collections import deque
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from deployments.control.refusals import Refusal
from deployments.control.wire import Accepted, AuditEntry, FleetView, PoolsTarget

_ONLY_OWNER = 0o600


def entry_of(
    target: PoolsTarget, answer: Accepted | Refusal, *, who: str, at: datetime, model: str, current: FleetView | None
) -> AuditEntry:
    """What to record of a target and its answer; `current` is the fleet before it, None for an unknown model."""
    return AuditEntry(
        at=at,
        who=who,
        model=model,
        what="set pools" if target.pools else "delete",
        before=current.desired_pools if current else {},
        after=target.pools,
        outcome="refused" if isinstance(answer, Refusal) else "accepted" if answer.changed else "unchanged",
        reason=target.reason,
        refusal=answer.sentence if isinstance(answer, Refusal) else None,
    )


class AuditLog:
    """Appends to `path`; beyond `max_bytes` it becomes `path.1`, that `path.2`, and so on; `kept` (at least 1) of them.

    The files are for one writer, and only their owner may read them. Every method may raise `OSError`: what cannot be
    recorded should not be done.
    """

    def __init__(self, path: Path, *, max_bytes: int = 16 * 2**20, kept: int = 8) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = [path, *(path.with_name(f"{path.name}.{age}") for age in range(1, kept + 1))]  # newest first

    def record(self, entry: AuditEntry) -> None:
        """Append one entry; it is on the disk when this returns."""
        line = entry.model_dump_json().encode() + b"\n"
        size_bytes = self._path.stat().st_size if self._path.exists() else 0
        if size_bytes and size_bytes + len(line) > self._max_bytes:
            self._rotate()
            size_bytes = 0
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, _ONLY_OWNER)
        with os.fdopen(descriptor, "ab") as file:
            os.fchmod(descriptor, _ONLY_OWNER)  # one that was there may be open to more
            if size_bytes and os.pread(descriptor, 1, size_bytes - 1) != b"\n":
                file.write(b"\n")  # a crash tore the last line; this one shall be whole
            file.write(line)
            file.flush()
            os.fsync(descriptor)
        if not size_bytes:
            self._sync_directory()

    def latest(self, limit: int) -> tuple[AuditEntry, ...]:
        """The last `limit` entries, oldest first, of all files that are kept."""
        entries: list[AuditEntry] = []
        for path in self._files:
            if len(entries) >= limit:
                break
            if path.exists():
                entries = [*_entries(path, limit - len(entries)), *entries]
        return tuple(entries)

    def _rotate(self) -> None:
        for newer, older in reversed(list(pairwise(self._files))):
            if newer.exists():
                newer.replace(older)

    def _sync_directory(self) -> None:
        """A new file is only sure to be found after a crash when its directory is on the disk too."""
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entries(path: Path, limit: int) -> list[AuditEntry]:
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = deque(file, maxlen=limit)
    entries = []
    for line in lines:
        # Only a crash tears a line, before its request was answered; it stays in the file for whoever looks there.
        with suppress(ValidationError):
            entries.append(AuditEntry.model_validate_json(line))
    return entries
