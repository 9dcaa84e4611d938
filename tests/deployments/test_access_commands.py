"""`archipelago keys`, from making a key to being let in with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.access.keyring import Keyring
from deployments.access.keys import id_of, read_keys
from deployments.cli import main
from deployments.run_record import STATE_DIR_ENV

Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the keys are without --file."""
    monkeypatch.setenv(STATE_DIR_ENV, str(tmp_path / "state"))
    return tmp_path / "state" / "api-keys.json"


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(["keys", *argv])
        except SystemExit as end:
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        assert "Traceback" not in output + errors
        return code, output, errors

    return run


def test_a_key_is_printed_alone_and_once_and_lets_in(ran: Ran, path: Path) -> None:
    code, output, errors = ran("add", "alice")
    assert (code, errors) == (0, f"alice is in {path}; the key is shown only now\n")
    key = output.removesuffix("\n")
    assert id_of(key) is not None
    assert key not in path.read_text()
    assert Keyring(path, now_s=lambda: 0.0).find(key) == read_keys(path)[0]


def test_the_list_has_everything_but_the_secret(ran: Ran, path: Path) -> None:
    limits = ("--requests-per-minute", "60", "--tokens-per-minute", "200000")
    key = ran("add", "batch", *limits, "--expires", "30d", "--role", "use")[1].strip()
    ran("add", "dashboard", "--role", "read")
    _, table, _ = ran("list")
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "batch", "dashboard"]
    assert "200,000" in table
    listed = json.loads(ran("list", "--json")[1])
    assert [(one["name"], one["role"], one["tokens_per_minute"]) for one in listed] == [
        ("batch", "use", 200_000),
        ("dashboard", "read", None),
    ]
    for text in (table, json.dumps(listed)):
        assert key not in text
        assert read_keys(path)[0].sha256 not in text


def test_a_key_has_the_place_of_interactive_requests_or_the_one_it_is_given(ran: Ran, path: Path) -> None:
    for name, option in (("alice", ()), ("nightly", ("--priority", "1")), ("boss", ("--priority", "-5"))):
        assert ran("add", name, *option)[0] == 0
    assert [(key.name, key.priority) for key in read_keys(path)] == [("alice", 0), ("nightly", 1), ("boss", -5)]
    header, *rows = ran("list")[1].splitlines()
    column = header.split().index("PRIORITY")
    # The limits of these keys are two words: "no limit".
    assert [row.replace("no limit", "none").split()[column] for row in rows] == ["0", "1", "-5"]


def test_a_removed_key_is_gone_and_the_others_stay(ran: Ran, path: Path) -> None:
    for name in ("one", "two", "three"):
        ran("add", name)
    assert ran("remove", "two") == (0, "", f"two has gone from {path}\n")
    assert [key.name for key in read_keys(path)] == ["one", "three"]
    code, _, errors = ran("remove", "two")
    assert (code, errors) == (1, f"archipelago: {path}: there is no key 'two'; there is one, three\n")


def test_the_file_may_be_another(ran: Ran, tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other.json"
    assert ran("add", "alice", "--file", str(other))[0] == 0
    assert not path.exists()
    assert [key.name for key in read_keys(other)] == ["alice"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a b"], "NAME: 'a b' is not accepted; give letters, digits and . _ @ -, at most 64"),
        (["x", "--requests-per-minute", "0"], "--requests-per-minute: 0 is not accepted; give a whole number"),
        (["x", "--tokens-per-minute", "-5"], "--tokens-per-minute: -5 is not accepted; give a whole number"),
        (
            ["x", "--priority", "100001"],
            "--priority: 100001 is not accepted; give a whole number from -100000",
        ),
        (["x", "--expires", "yesterday"], "--expires: 'yesterday' is not accepted; give 90m, 12h, 30d, or a date"),
        (["x", "--expires", "2001-01-01"], "--expires: '2001-01-01' is not accepted; give 90m, 12h, 30d, or a date"),
        (["x", "--expires", "0d"], "--expires: '0d' is not accepted"),
        (["taken"], "there is a key 'taken' already; give another name, or remove it"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_makes_no_key(arguments: list[str], words: str, ran: Ran, path: Path) -> None:
    ran("add", "taken")
    before = path.read_bytes()
    code, output, errors = ran("add", *arguments)
    assert (code, output) == (1, "")
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_file_that_is_none_is_not_overwritten(ran: Ran, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    code, _, errors = ran("add", "alice")
    assert code == 1
    assert errors == f"archipelago: {path}: not JSON; make it with `archipelago keys add`\n"
    assert path.read_text() == "precious"


def test_without_a_file_there_is_a_message(ran: Ran, path: Path) -> None:
    code, _, errors = ran("list")
    assert code == 1
    assert errors.startswith(f"archipelago: {path}: cannot be read (No such file or directory); make it with")
