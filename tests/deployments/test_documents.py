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
    yield from block_lines(text)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


def block_lines(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, without the shell's prompt."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?<=\n\n)(?: {4}.*\n?)+", prose)
    lines = "\n".join((*fenced, *indented)).replace("\\\n", " ").splitlines()
    yield from (line.strip().removeprefix("$ ") for line in lines)


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


# Who runs each command that the documents have in a block, by its first words: a test in whose file the last of them is
# to be found. What such a test does not run as it is written, it runs with other arguments; those above parse all.
RUN_BY = {
    "archipelago serve": "tests/engine/test_command_line.py",
    "archipelago status": "tests/engine/test_command_line.py",
    "archipelago fleet": "tests/deployments/test_control_commands.py",
    "archipelago repartition": "tests/deployments/test_control_changes.py",
    "archipelago scale": "tests/deployments/test_control_changes.py",
    "archipelago remove": "tests/deployments/test_control_changes.py",
    "archipelago events": "tests/deployments/test_control_commands.py",
    "archipelago audit": "tests/deployments/test_control_commands.py",
    "archipelago check": "tests/deployments/test_cli.py",
    "archipelago islands": "tests/deployments/test_discovery_output.py",
    "archipelago keys": "tests/deployments/test_access_commands.py",
    "archipelago plan": "tests/placement/test_planner_cli.py",
    "archipelago scaling": "tests/placement/test_planner_cli.py",
    "archipelago predict": "tests/placement/test_calibrate_cli.py",
    "archipelago calibrate": "tests/placement/test_calibrate_cli.py",
    "archipelago autoscale": "tests/autoscaling/test_autoscale_commands.py",
    "archipelago decisions": "tests/autoscaling/test_autoscale_commands.py",
    "archipelago approve": "tests/autoscaling/test_autoscale_commands.py",
    "archipelago freeze": "tests/autoscaling/test_autoscale_commands.py",
    "archipelago simulate": "tests/autoscaling/simulation/test_sim_cli.py",
    "archipelago whatif": "tests/autoscaling/test_whatif_commands.py",
    "archipelago load": "tests/loadtests/test_load_run.py",
    "archipelago bench": "tests/loadtests/test_gate.py",
    "python -m loadtests.overhead": "tests/loadtests/test_overhead.py",
    "python -m deployments.crossover": "tests/engine/test_crossover.py",
    "ray up": "tests/fleet/test_ray_up.py",
    "ray exec": "tests/fleet/test_ray_up.py",
    "ray attach": "tests/fleet/test_ray_up.py",
    "ray down": "tests/fleet/test_ray_up.py",
    "ray get-auth-token": "tests/fleet/test_ray_up.py",
}
PROGRAMS = "archipelago|python|ray|serve|helm|kubectl|docker|aws|gcloud|uv|nvidia-smi"


def written_in_blocks() -> Iterator[tuple[Path, str, str]]:
    """Where it is, the program, the whole command; of a line with several, each."""
    for path in DOCUMENTS:
        for line in block_lines(path.read_text()):
            for command in re.split(r" (?:&&|\|) ", line):
                if found := re.match(rf"(?:\.venv/bin/)?({PROGRAMS}) (?=[a-z-])", command):
                    yield path, found[1], command.removeprefix(".venv/bin/")


@pytest.mark.parametrize(("path", "program", "command"), list(written_in_blocks()), ids=lambda value: str(value)[-40:])
def test_each_command_in_a_block_is_run_by_a_test_or_said_not_to_be(path: Path, program: str, command: str) -> None:
    known = next((words for words in RUN_BY if f"{command} ".startswith(f"{words} ")), None)
    if known is None:
        assert re.search(rf"[Nn]ot run here[^.]*`{program}\b", path.read_text()), f"{path.name}: {command}"
    else:
        assert re.search(rf"\b{re.split('[ .]', known)[-1]}\b", (ROOT / RUN_BY[known]).read_text()), known


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"
