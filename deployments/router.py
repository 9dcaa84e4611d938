"""Which replica gets the next request. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one ready replica has been given and has not finished.

    ``outstanding_tokens`` are prompt tokens plus tokens that may still be generated, over its unfinished requests.
    """

    replica: str
    outstanding_tokens: int


def choose(loads: Iterable[Load]) -> str | None:
    """Pick the replica with the least outstanding tokens (by name among equals); None when none is ready."""
    best = min(loads, key=lambda load: (load.outstanding_tokens, load.replica), default=None)
    return best.replica if best else None
