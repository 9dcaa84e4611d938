import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from control_builders import MODEL, READ, START, UNDER_WAY, MemoryFleet, Run, fleet_view, ran, reached, rows

from deployments.control.client import ControlClient
from deployments.control.commands import REASON


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return partial(ran, capsys)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Somebody at a terminal who answers what is given."""

    def answering(answer: str) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda *_: answer)

    return answering


def rolled_back(fleet: MemoryFleet) -> None:
    fleet.log.add(MODEL, "rolled-back", "tp4 ran out of memory")
    fleet.change(repartition=None, desired_pools={"tp2pp2": 1})


def test_a_dry_run_shows_steps_stall_and_gpus_and_asks_for_nothing(run: Run) -> None:
    fleet = MemoryFleet()
    code, output, _ = run(fleet, "repartition", MODEL, "tp4", "--dry-run")
    assert code == 0
    assert "acme/tiny (version 3) to 1 x tp4" in output
    assert rows(output) == [
        ["0.0 s", "start", "tp4 on island-1", "2 GPUs are free there"],
        ["31.5 s", "drain", "tiny-tp2pp2-0", "tp4 serves"],
    ]
    assert "way: surge; longest stall expected: 0.8 s; GPUs needed: 8" in output
    assert fleet.views[MODEL] == fleet_view()
    assert not fleet.entries


def test_a_repartition_is_followed_until_it_is_reached(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.log.add(MODEL, "step", "long ago")
    fleet.script = [None, None, lambda: reached(fleet, {"tp4": 1})]
    code, output, _ = run(fleet, "repartition", MODEL, "tp4", "--reason", "nights are quiet", "--yes")
    assert code == 0
    told = [line for line in output.splitlines() if line.startswith(START.date().isoformat())]
    assert [line.partition(f"{MODEL}: ")[2] for line in told] == ["nights are quiet (4)", "it serves"]
    assert output.splitlines()[-1] == "acme/tiny is at 1 x tp4."


def test_a_repartition_that_is_rolled_back_fails_and_says_why(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.script = [None, None, lambda: rolled_back(fleet)]
    code, output, _ = run(fleet, "repartition", MODEL, "tp4", "--yes")
    assert code == 1
    assert "was not brought to 1 x tp4; it is at 1 x tp2pp2: tp4 ran out of memory." in output


def test_an_interrupt_leaves_the_repartition_going_and_says_so(run: Run) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    fleet = MemoryFleet()
    fleet.script = [None, interrupt]
    code, _, errors = run(fleet, "repartition", MODEL, "tp4", "--yes")
    assert code == 130
    assert errors == "archipelago: the change of acme/tiny goes on; see `archipelago fleet acme/tiny --watch`\n"
    assert fleet.views[MODEL].repartition is not None


@pytest.mark.parametrize(
    ("argv", "pools"),
    [
        (("repartition", MODEL, "tp2"), {"tp2": 2}),  # the 4 GPUs of one tp2pp2
        (("repartition", MODEL, "tp8"), {"tp8": 1}),  # never none
        (("repartition", MODEL, "tp2", "--replicas", "3"), {"tp2": 3}),
        (("scale", MODEL, "tp2=2"), {"tp2": 2, "tp2pp2": 1}),
        (("scale", MODEL, "pp2tp2=0", "tp4=1"), {"tp4": 1}),
    ],
)
def test_what_is_asked_for(run: Run, argv: tuple[str, ...], pools: dict[str, int]) -> None:
    fleet = MemoryFleet()
    fleet.script = [None, lambda: reached(fleet, pools)]
    assert run(fleet, *argv, "--yes")[0] == 0
    assert fleet.entries[0].after == pools
    assert (fleet.entries[0].who, fleet.entries[0].reason) == ("alice", REASON)


def gone(fleet: MemoryFleet) -> None:
    fleet.log.add(MODEL, "reached", "The model is no longer served.")
    del fleet.views[MODEL]


@pytest.mark.parametrize("argv", [("remove", MODEL), ("scale", MODEL, "tp2pp2=0")])
def test_a_model_that_is_removed_is_followed_until_nothing_is_left_of_it(run: Run, argv: tuple[str, ...]) -> None:
    fleet = MemoryFleet()
    # Its replicas go before its ingress does.
    fleet.script = [None, lambda: fleet.change(repartition=None, effective_pools={}, replicas=()), lambda: gone(fleet)]
    code, output, _ = run(fleet, *argv, "--reason", "nobody asks for it", "--yes")
    assert code == 0
    assert output.splitlines()[-1] == f"{MODEL} is deleted."
    (entry,) = fleet.entries
    assert (entry.what, entry.after, entry.who, entry.reason) == ("delete", {}, "alice", "nobody asks for it")
    assert list(fleet.views) == ["other"]


def test_a_model_that_is_served_again_while_it_goes_ends_the_wait(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.script = [None, lambda: fleet.change(desired_pools={"tp4": 1}), lambda: reached(fleet, {"tp4": 1})]
    code, output, _ = run(fleet, "remove", MODEL, "--yes")
    assert code == 1
    assert f"{MODEL} was not brought to no pools; it is at 1 x tp4" in output


def test_a_model_can_be_removed_in_the_middle_of_a_repartition(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.change(desired_pools={"tp4": 1}, repartition=UNDER_WAY)
    fleet.script = [None, lambda: gone(fleet)]
    assert run(fleet, "remove", MODEL, "--yes")[0] == 0


def test_a_model_that_is_not_served_cannot_be_removed(run: Run) -> None:
    code, _, errors = run(MemoryFleet(), "remove", "othe", "--yes")
    assert code == 1
    assert "model: 'othe' is not known; did you mean other?" in errors


def test_a_dry_run_of_a_removal_changes_nothing(run: Run) -> None:
    fleet = MemoryFleet()
    code, output, _ = run(fleet, "remove", MODEL, "--dry-run")
    assert code == 0
    assert "acme/tiny (version 3) to no pools" in output
    assert not fleet.entries


def test_limits_and_way_are_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    set_pools = ControlClient.set_pools
    monkeypatch.setattr(ControlClient, "set_pools", lambda *args: [sent.append(args[2]), set_pools(*args)][1])
    limits = ("--way", "rolling", "--floor", "50%", "--max-stall", "500ms", "--drain-timeout", "60")
    run(MemoryFleet(), "repartition", MODEL, "tp4", "--dry-run", *limits)
    assert sent[0].way == "rolling"
    assert (sent[0].limits.floor, sent[0].limits.max_stall_s, sent[0].if_version) == (0.5, 0.5, 3)
    assert sent[0].limits.drain_timeout_s == 60.0
    run(MemoryFleet(), "remove", MODEL, "--dry-run", "--drain-timeout", "0")
    assert sent[1].limits.model_dump(exclude_none=True) == {"drain_timeout_s": 0.0}


def test_what_was_shown_is_what_is_agreed_to(run: Run, terminal: Callable[[str], None]) -> None:
    terminal("y")
    fleet = MemoryFleet()
    # Somebody else changes the fleet while the forecast is being read.
    answer = fleet.set_pools

    async def overtaken(*args: Any) -> Any:
        found = await answer(*args)
        fleet.change(version=9)
        return found

    fleet.set_pools = overtaken  # type: ignore[method-assign]
    code, _, errors = run(fleet, "repartition", MODEL, "tp4")
    assert code == 1
    assert "if_version: 3 is not the version of acme/tiny any more; it is 9" in errors


@pytest.mark.parametrize(("answer", "is_done"), [("y", True), ("Yes ", True), ("n", False), ("", False)])
def test_nothing_begins_without_a_yes(run: Run, terminal: Callable[[str], None], answer: str, is_done: bool) -> None:
    terminal(answer)
    fleet = MemoryFleet()
    fleet.script = [None, lambda: reached(fleet, {"tp4": 1})]
    assert run(fleet, "repartition", MODEL, "tp4")[0] == (0 if is_done else 1)
    assert bool(fleet.entries) is is_done


@pytest.mark.parametrize("argv", [("remove", MODEL), ("scale", MODEL, "tp2pp2=0")])
def test_who_deletes_a_model_is_told_so_and_asked(
    run: Run, terminal: Callable[[str], None], argv: tuple[str, ...]
) -> None:
    terminal("n")
    fleet = MemoryFleet()
    code, output, _ = run(fleet, *argv)
    assert code == 1
    assert "This stops every replica and deletes the model. New requests are refused; 7 run now." in output
    assert not fleet.entries


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_script_must_say_yes_itself(run: Run, form: tuple[str, ...]) -> None:
    fleet = MemoryFleet()
    code, _, errors = run(fleet, "repartition", MODEL, "tp4", *form)
    assert code == 1
    assert "give --yes to begin, or --dry-run" in errors
    assert not fleet.entries


def test_what_is_so_already_is_no_change(run: Run) -> None:
    code, output, _ = run(MemoryFleet(), "scale", MODEL, "tp2pp2=1")
    assert code == 0
    assert "that is what is wanted already" in output


def test_what_was_given_up_is_tried_again_by_who_asks_for_it_again(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.change(desired_pools={"tp4": 1}, phase="degraded", shortfall="version 3 was rolled back")
    fleet.script = [None, lambda: reached(fleet, {"tp4": 1})]
    assert run(fleet, "repartition", MODEL, "tp4", "--yes")[0] == 0
    assert [entry.outcome for entry in fleet.entries] == ["accepted"]


@pytest.mark.parametrize("form", ["--dry-run", "--yes"])
def test_what_does_not_fit_is_told_with_the_nearest(run: Run, form: str) -> None:
    code, output, _ = run(MemoryFleet(), "repartition", MODEL, "tp8", "--replicas", "2", form)
    assert code == 1
    assert "does not fit: it needs 16 GPUs; there are 8. Nearest: tp4, twice." in output


def test_a_token_that_may_only_read_changes_nothing(run: Run) -> None:
    code, _, errors = run(MemoryFleet(), "repartition", MODEL, "tp4", "--yes", token=READ)
    assert code == 1
    assert "the token 'dashboard' may only read" in errors
    assert READ not in errors


def test_progress_as_json_is_one_value_a_line(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.script = [None, lambda: reached(fleet, {"tp4": 1})]
    code, output, _ = run(fleet, "repartition", MODEL, "tp4", "--yes", "--json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert [next(iter(line)) for line in lines] == ["preview", "accepted", "event", "event", "outcome"]
    assert lines[-1]["outcome"] == {"reached": True, "sentence": "acme/tiny is at 1 x tp4."}
