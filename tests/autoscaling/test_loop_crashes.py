"""The autoscaler is killed at every place where it leaves something behind, and starts again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_builders import MODEL
from loop_builders import Running, World, pools, world

from autoscaling.ledger.entries import OPEN
from autoscaling.ledger.ledger import FILE, read_ledger
from autoscaling.live.approvals import Answer, answer
from autoscaling.live.fleet_client import AwayError, Target

TWO = pools("2 x tp2")
MOST_WRITES = 10  # in the ticks of a change


class KilledError(BaseException):
    """The process is gone: nothing catches this."""


def after_writes(count: int, monkeypatch: pytest.MonkeyPatch, directory: Path, *, tear: bool) -> Callable[[], bool]:
    """Kill it at a write to the disk; with `tear` half of the line is lost, as when the power goes."""
    left = [count]
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            path = directory / FILE
            if tear and path.exists():
                lines = path.read_bytes().splitlines(keepends=True)
                path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
            raise KilledError
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: left[0] <= 0


def until_done(here: World, mode: str) -> bool:
    """Ticks, with a person that approves whatever is proposed. Whether it got to the end."""
    try:
        with Running(here, mode=mode) as running:
            for _ in range(5):
                running.tick()
                for entry in running.ledger.entries.values():
                    if entry.state == "waiting":
                        answer(here.directory, entry.number, Answer(is_approved=True, by="alice"))
                if here.asked:
                    here.serve()
    except KilledError:
        return False
    return True


def assert_done_once(here: World) -> None:
    assert here.asked == [{"tp2": 2}]
    entries = read_ledger(here.directory).entries.values()
    assert not [entry for entry in entries if entry.state in OPEN]
    assert [entry.target for entry in entries if entry.state == "acted"] == [TWO]


@pytest.mark.parametrize("mode", ["auto", "approve"])
@pytest.mark.parametrize("tear", [False, True])
def test_killed_at_any_write_the_change_is_made_once_and_the_ledger_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, tear: bool
) -> None:
    killed = 0
    for count in range(1, MOST_WRITES + 1):
        directory = tmp_path / str(count)
        here = world(directory)
        here.wanted = {MODEL: TWO}
        with monkeypatch.context() as patched:
            is_killed = after_writes(count, patched, directory, tear=tear)
            until_done(here, mode)
            killed += is_killed()
        assert until_done(here, mode)
        assert_done_once(here)
    assert killed >= MOST_WRITES - 2  # no write that leaves something behind is left out


@pytest.mark.parametrize("is_heard", [True, False])
@pytest.mark.parametrize("error", [KilledError, AwayError])
def test_killed_or_cut_off_while_the_control_api_is_asked_the_fleet_says_whether_it_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], is_heard: bool
) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here) as running:
        ask = running.control.set_pools

        def cut_off(model: str, target: Target) -> int:
            if is_heard:
                ask(model, target)
            raise error("cut off")

        monkeypatch.setattr(running.control, "set_pools", cut_off)
        if error is KilledError:
            with pytest.raises(KilledError):
                running.tick()
        else:
            running.tick()
        assert [entry.state for entry in read_ledger(tmp_path).entries.values()] == ["trying"]
    with Running(here) as running:
        running.tick()
        first = running.ledger.entries[1]
        if is_heard:
            assert (first.state, first.why) == ("acted", "The fleet has it as version 4.")
        else:
            assert (first.state, first.why) == ("failed", "It was not heard: the fleet wants 1 x tp2.")
    assert until_done(here, "auto")
    assert here.asked == [{"tp2": 2}]


def test_a_disk_that_takes_no_more_stops_all_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with Running(here) as running:
        monkeypatch.setattr(os, "fsync", full)
        here.is_disk_full = True
        running.tick()
        assert not here.asked
        assert any("nothing was done" in sentence for sentence in here.said)
        monkeypatch.undo()
        running.tick()
    assert here.asked == [{"tp2": 2}]
    assert not read_ledger(tmp_path).troubles
