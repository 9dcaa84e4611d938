"""API keys and the file of their hashes.

A key is `ak-ID-SECRET`. The secret is 256 random bits, so one round of SHA-256 is enough: what makes slow hashes
necessary is that people choose passwords (NIST SP 800-63B, 5.1.1.2). The id is no secret; it finds the entry.
"""

import fcntl
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from deployments.access.priorities import MOST, UNASKED
from deployments.config_messages import problems_of

_KEY = re.compile(r"ak-(?P<id>[0-9a-f]{12})-[A-Za-z0-9_-]{43}", re.ASCII)
_ONLY_OWNER = 0o600
Role = Literal["use", "read", "operate"]


class KeyFileError(Exception):
    """The file of keys cannot be used. The message names the file and says what is wrong."""


class KeyRecord(BaseModel):
    """One key, without its secret. `role`: `use` the endpoint, `read` or `operate` the control API.

    `priority` is the least number that its requests may have, as in vLLM: lower goes first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern="^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    role: Role = "use"
    requests_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**12)
    priority: int = Field(default=UNASKED, ge=-MOST, le=MOST)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    def is_expired(self, now: datetime) -> bool:
        """Whether the key is past its time."""
        return self.expires_at is not None and self.expires_at <= now


class KeyFile(BaseModel):
    """All keys, as they are in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyRecord, ...] = ()


def new_key() -> tuple[str, str]:
    """A key that nobody else has, and its id."""
    key_id = secrets.token_hex(6)
    return f"ak-{key_id}-{secrets.token_urlsafe(32)}", key_id


def id_of(key: str) -> str | None:
    """The id in a key; None for what is no key at all."""
    match = _KEY.fullmatch(key)
    return match["id"] if match else None


def digest(key: str) -> str:
    """What is stored of a key."""
    return sha256(key.encode()).hexdigest()


def is_same(key: str, stored: str) -> bool:
    """Whether `stored` is the digest of `key`. How long it takes does not depend on where they differ."""
    return hmac.compare_digest(digest(key), stored)


def parse_keys(text: str | bytes, origin: str) -> tuple[KeyRecord, ...]:
    """The keys in the text of a key file. Raises `KeyFileError`; no message has a hash in it."""
    try:
        keys = KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        if first["type"] == "json_invalid":
            raise KeyFileError(f"{origin}: not JSON; make it with `archipelago keys add`") from None
        problem = problems_of(error, KeyFile.model_json_schema())[0]
        shown = f"{problem.partition(':')[0]}: not accepted" if first["loc"][-1:] == ("sha256",) else problem
        raise KeyFileError(f"{origin}: {shown}") from None
    for field in ("id", "name"):
        values: Sequence[str] = [getattr(key, field) for key in keys]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise KeyFileError(f"{origin}: two keys have the {field} {twice!r}; remove one")
    return keys


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """The keys in a file. Raises `KeyFileError`."""
    try:
        return parse_keys(path.read_bytes(), str(path))
    except OSError as error:
        accepted = "make it with `archipelago keys add`"
        raise KeyFileError(f"{path}: cannot be read ({error.strerror}); {accepted}") from error


def write_keys(path: Path, keys: Sequence[KeyRecord]) -> None:
    """Replace the file in one step: whoever watches it sees the old keys or the new ones. Raises `OSError`."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _ONLY_OWNER), "w") as file:
        file.write(KeyFile(keys=tuple(keys)).model_dump_json(indent=2, exclude_none=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Let nobody else change key files of that directory meanwhile. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
