"""What people are shown: whole lines in a pipe, folded ones on a terminal, none of them lost."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.shown import folded, show


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("", [""]),
        ("tp8  1   8", ["tp8  1   8"]),
        ("    costs more than tp8", ["    costs more", "    than tp8"]),
        ("half-hearted: microsoft/vidur/profiling", ["half-hearted:", "microsoft/vidur/profiling"]),
    ],
)
def test_a_line_keeps_its_indent_and_its_words(line: str, lines: list[str]) -> None:
    assert folded(line, 15).split("\n") == lines


@given(st.lists(st.text("abc-/", min_size=1, max_size=10), min_size=1), st.integers(14, 80), st.integers(0, 4))
def test_no_word_is_lost_or_cut(words: list[str], width: int, indent: int) -> None:
    found = folded(" " * indent + " ".join(words), width)
    assert found.split() == words
    assert all(len(each) <= width and each.startswith(" " * indent) for each in found.splitlines())


@pytest.mark.parametrize(("is_terminal", "count"), [(True, 2), (False, 1)])
def test_only_a_terminal_gets_folded_lines(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, count: int) -> None:
    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("COLUMNS", "40")
    show("word " * 10)
    assert output.getvalue().count("\n") == count
