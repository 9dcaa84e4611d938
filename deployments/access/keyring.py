"""The keys of a file that may be changed at any time.

The file is looked at when a key is shown, so there is no task that could die: one `stat` (about 2 us), at most once in
`LOOK_EVERY_S`.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from deployments.access.keys import KeyFileError, KeyRecord, digest, id_of, is_same, read_keys
from deployments.control.gate import Caller, Verifier

LOOK_EVERY_S = 1.0
_NO_KEY = digest("")  # compared with where the id is unknown, so that the time does not tell

log = logging.getLogger("ray.serve")
Clock = Callable[[], float]
Version = tuple[int, int, int]
_NEVER: Version = (-1, -1, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """No key that may be used."""

    why: Literal["missing", "unknown", "expired"]


class Keyring:
    """The keys of one file.

    A file that turns bad or goes changes nothing: the keys that were read last stay, and the log says so. While none
    was read yet no key is known.
    """

    def __init__(self, path: Path, *, now_s: Clock, utc: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._now_s = now_s
        self._utc = utc
        self._version: Version | None = _NEVER
        self._keys: dict[str, KeyRecord] = {}
        self._looked_at_s = -math.inf

    def find(self, shown: str) -> KeyRecord | Unknown:
        """Whose key this is."""
        self._look()
        record = self._keys.get(id_of(shown) or "")
        is_right = is_same(shown, record.sha256 if record else _NO_KEY)
        if record is None or not is_right:
            return Unknown(why="unknown" if shown else "missing")
        return Unknown(why="expired") if record.is_expired(self._utc()) else record

    @property
    def records(self) -> tuple[KeyRecord, ...]:
        """All keys of the file. May be called from any thread."""
        self._look()
        return tuple(self._keys.values())

    def _look(self) -> None:
        now_s = self._now_s()
        if now_s - self._looked_at_s < LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        version = _version_of(self._path)  # before it is read: a change meanwhile is found the next time
        if version == self._version:
            return
        self._version = version
        try:
            keys = {key.id: key for key in read_keys(self._path)}
        except KeyFileError as error:
            log.error("the keys stay as they were: %s", error)  # noqa: TRY400  (the message is all there is to say)
            return
        added, removed = keys.keys() - self._keys.keys(), self._keys.keys() - keys.keys()
        self._keys = keys
        log.warning("%s: %d keys; %d are new, %d have gone", self._path, len(keys), len(added), len(removed))


def _version_of(path: Path) -> Version | None:
    """What changes with the content; follows links, as those that a mounted Kubernetes secret consists of."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def control_verifier(tokens: Verifier, keys: str | None, now_s: Clock) -> Verifier:
    """A verifier of `tokens` and of the keys in a file that are for the control API."""
    if keys is None:
        return tokens
    keyring = Keyring(Path(keys), now_s=now_s)

    def verify(token: str) -> Caller | None:
        known = tokens(token)
        if known is not None:
            return known
        found = keyring.find(token)
        if isinstance(found, Unknown) or found.role == "use":
            return None
        return Caller(name=found.name, role=found.role)

    return verify
