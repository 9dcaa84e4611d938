"""The worked example in placement/README.md is run, so that it stays true."""

import doctest
from pathlib import Path

import placement


def test_the_worked_example_of_the_readme_is_true() -> None:
    readme = Path(placement.__file__).parent / "README.md"
    result = doctest.testfile(str(readme), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0
