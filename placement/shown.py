"""What people are shown and given: text on a terminal, and files."""

import shutil
import sys
import textwrap
from pathlib import Path

from placement.given import InputError


def show(text: str) -> None:
    """Print lines, folded to the width of a terminal; a pipe gets each whole."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(folded(line, width) for line in text.splitlines())
    sys.stdout.write(f"{text}\n")


def folded(line: str, width: int) -> str:
    """A line as lines of at most `width` columns where its words allow that, all with its own indent."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def check_writable(path: Path, *, option: str) -> None:
    """Before minutes of work, not after. Raises `InputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written: {error.strerror}.") from error


def write(path: Path, text: str) -> None:
    """Write a file and the directories above it. Raises `InputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error
