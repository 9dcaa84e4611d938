"""What a person says to the autoscaler: yes or no to a proposal, and that nothing shall change for now.

Small files in the ledger's directory, each written in one step: whoever may write there may say so. The autoscaler
reads them with every tick; only it writes the ledger.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ANSWERS = "answers"
_FREEZE = "freeze.json"


class ApprovalError(Exception):
    """An answer cannot be written. The message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Yes or no to one proposal, and who said so."""

    is_approved: bool
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Nothing shall change: since when, who said so, and why."""

    since_s: float
    by: str
    why: str = ""


def answer(directory: Path, number: int, given: Answer) -> None:
    """Leave an answer for the autoscaler. Raises `ApprovalError`."""
    _write(directory / _ANSWERS / f"{number}.json", asdict(given))


def take_answer(directory: Path, number: int) -> Answer | None:
    """The answer to a proposal, None as long as there is none. A file that is no answer is none."""
    document = _read(directory / _ANSWERS / f"{number}.json")
    try:
        return Answer(is_approved=document["is_approved"] is True, by=str(document["by"]), why=str(document["why"]))
    except (KeyError, TypeError):
        return None


def forget_answer(directory: Path, number: int) -> None:
    """The answer is in the ledger now."""
    (directory / _ANSWERS / f"{number}.json").unlink(missing_ok=True)


def freeze(directory: Path, given: Freeze) -> None:
    """Have nothing changed until `thaw`. Raises `ApprovalError`."""
    _write(directory / _FREEZE, asdict(given))


def thaw(directory: Path) -> bool:
    """Changes are allowed again; whether they were not."""
    was_frozen = frozen(directory) is not None
    (directory / _FREEZE).unlink(missing_ok=True)
    return was_frozen


def frozen(directory: Path) -> Freeze | None:
    """Whether a person has said that nothing shall change. An unreadable file counts: it was written to be safe."""
    path = directory / _FREEZE
    document = _read(path)
    try:
        return Freeze(since_s=float(document["since_s"]), by=str(document["by"]), why=str(document["why"]))
    except (KeyError, TypeError, ValueError):
        return Freeze(since_s=0.0, by="unknown") if path.exists() else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write(path: Path, document: dict[str, Any]) -> None:
    draft = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(document))
        draft.replace(path)
    except OSError as error:
        raise ApprovalError(f"{path}: cannot be written ({error.strerror}).") from error
