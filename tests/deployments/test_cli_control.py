"""Which control API the command line asks, with which token, and what it says where it cannot."""

from pathlib import Path

import pytest
from cli_builders import Ran, no_network, ran, record

from deployments.cli import CONTROL_TOKEN_ENV, CONTROL_URL_ENV
from deployments.local_cluster import free_port
from deployments.run_record import STATE_DIR_ENV, token_path, write, write_token

__all__ = ["no_network", "ran"]


@pytest.fixture(autouse=True)
def record_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the record of what is served would be; nothing is at first."""
    monkeypatch.setenv(STATE_DIR_ENV, str(tmp_path / "state"))
    monkeypatch.delenv(CONTROL_URL_ENV, raising=False)
    monkeypatch.delenv(CONTROL_TOKEN_ENV, raising=False)
    return tmp_path / "state" / "run.json"


ASKING = [["fleet"], ["events"], ["audit"], ["scale", "tiny-llama", "tp1=2"], ["repartition", "tiny-llama", "tp2"]]


@pytest.mark.parametrize("argv", ASKING, ids=" ".join)
def test_asking_the_fleet_where_nothing_is_served_says_how_to_start_or_where_to_ask(argv: list[str], ran: Ran) -> None:
    assert ran(*argv) == (
        1,
        "",
        "archipelago: nothing is served from this directory; start with `archipelago serve`, or set "
        "ARCHIPELAGO_CONTROL_URL and ARCHIPELAGO_CONTROL_TOKEN\n",
    )


@pytest.mark.parametrize("argv", ASKING, ids=" ".join)
def test_a_control_api_that_is_away_is_named_and_its_token_is_not(
    argv: list[str], ran: Ran, tmp_path: Path, record_file: Path
) -> None:
    away = record(tmp_path)
    write(record_file, away)
    write_token(token_path(record_file), "s3cret")
    code, output, errors = ran(*argv)
    assert (code, output) == (1, "")
    assert errors.startswith(f"archipelago: {away.control_url} cannot be reached")
    assert "s3cret" not in errors


def test_the_environment_names_another_control_api(
    ran: Ran, tmp_path: Path, record_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(record_file, record(tmp_path))
    write_token(token_path(record_file), "s3cret")
    monkeypatch.setenv(CONTROL_URL_ENV, f"http://127.0.0.1:{free_port()}/elsewhere")
    assert ran("fleet") == (
        1,
        "",
        "archipelago: ARCHIPELAGO_CONTROL_URL is set and ARCHIPELAGO_CONTROL_TOKEN is not; give its token too\n",
    )
    monkeypatch.setenv(CONTROL_TOKEN_ENV, "other")
    _, _, errors = ran("fleet")
    assert "/elsewhere cannot be reached" in errors
    assert "other" not in errors


def test_a_token_that_is_missing_beside_its_record_is_a_message(ran: Ran, tmp_path: Path, record_file: Path) -> None:
    write(record_file, record(tmp_path))
    code, _, errors = ran("fleet")
    assert code == 1
    assert errors == (
        f"archipelago: {token_path(record_file)} cannot be read (No such file or directory); it is written by "
        "`archipelago serve`\n"
    )


def test_stop_leaves_no_token(ran: Ran, tmp_path: Path, record_file: Path) -> None:
    write(record_file, record(tmp_path))
    write_token(token_path(record_file), "s3cret")
    assert ran("stop")[0] == 0
    assert list(record_file.parent.iterdir()) == []
