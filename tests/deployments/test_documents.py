"""Commands that the documents tell the reader to type are commands that there are."""

import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from deployments.cli import parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/*.md", "*/*/*.md", ".github/*.md")
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") and part != ".github" for part in path.relative_to(ROOT).parts)
)
GROUPS = {"bench", "keys"}  # of commands
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands_in(text: str) -> Iterator[str]:
    """Lines of code blocks, with those that they go on with, and code within sentences."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    yield from (line.strip() for line in lines)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


def words_of(command: str) -> list[str]:
    """What a shell makes of the first command in a line: no comment, no pipe, no redirection."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    return words[: next((at for at, word in enumerate(words) if set(word) <= set("|&;<>")), None)]


def written(program: str) -> list[tuple[str, str]]:
    """Each command that begins with `program`, with where it is written; those cut short with dots are no commands."""
    return [
        (path.relative_to(ROOT).as_posix(), command)
        for path in DOCUMENTS
        for command in commands_in(path.read_text())
        if re.match(rf"(\.venv/bin/)?{program} [a-z]", command) and "..." not in command and " | " not in command
    ]


@pytest.mark.parametrize(("path", "command"), written("archipelago"))
def test_each_command_is_one_that_there_is(path: str, command: str) -> None:
    words = words_of(command.replace("NUMBER", "17"))[1:]
    if len(words) == 1 or (words[0] in GROUPS and len(words) == 2):  # named only, such as `archipelago plan`
        words.append("--help")
    with pytest.raises(SystemExit, match=r"^0$") if "--help" in words else nullcontext():
        parser().parse_args(words)


@pytest.mark.parametrize(("path", "command"), written("make"))
def test_each_word_of_make_is_in_the_makefile(path: str, command: str) -> None:
    assert words_of(command)[1] in TARGETS, path


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"
