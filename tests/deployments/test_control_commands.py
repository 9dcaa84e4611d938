import argparse
import json
from functools import partial
from typing import Any

import pytest
from control_builders import MODEL, UNDER_WAY, MemoryFleet, Run, fleet_view, ran, reached, rows

from deployments.control import commands
from deployments.control.client import ControlClient, ControlError
from deployments.control.commands import add_fleet_commands


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return partial(ran, capsys)


def test_fleet_shows_hardware_pools_progress_and_every_replica(run: Run) -> None:
    short = fleet_view(repartition=UNDER_WAY, effective_pools={"tp2": 1}, shortfall="node-1 is gone", version=7)
    code, output, _ = run(MemoryFleet(short, fleet_view("idle", replicas=())), "fleet")
    assert code == 0
    assert "2 islands, 2 nodes, 8 GPUs, 4 free" in output
    assert "acme/tiny  version 7, steady" in output
    assert "pools: 1 x tp2pp2 wanted, 1 x tp2 possible: node-1 is gone" in output
    assert "repartition by rolling: step 2 of 5, start tp4 on island-1; running for 12 s" in output
    assert "longest stall announced: 0.8 s" in output
    where = "island-0: 2 on node-0; island-1: 2 on node-1"
    assert rows(output) == [["tiny-tp2pp2-0", "tp2pp2", "serving", "61 s", where, "7", "123", "good"]]
    assert output.rstrip().endswith("no replica runs")


def test_fleet_says_what_is_wrong_with_a_replica_and_what_is_not_known(run: Run) -> None:
    replica = fleet_view().replicas[0].model_copy(update={"phase": "lost", "cause": "node-1[0] is gone"})
    unknown = replica.model_copy(update={"tokens_per_s": None})
    _, output, _ = run(MemoryFleet(fleet_view(replicas=(unknown,))), "fleet", MODEL)
    assert rows(output)[0][2] == "lost"
    assert rows(output)[0][6:] == ["?", "node-1[0] is gone"]


def test_fleet_of_one_model(run: Run) -> None:
    _, output, _ = run(MemoryFleet(), "fleet", "other")
    assert "other  version 3" in output
    assert MODEL not in output
    code, _, errors = run(MemoryFleet(), "fleet", "othr")
    assert (code, errors) == (1, "archipelago: model: 'othr' is not known; did you mean other?\n")


def test_what_others_wrote_cannot_steer_the_terminal(run: Run) -> None:
    fleet = MemoryFleet(fleet_view(shortfall="\x1b[2Jgone [bold]", effective_pools={}))
    fleet.log.add(MODEL, "failure", "a\nb\x1b[31m")
    for command in ("fleet", "events"):
        _, output, _ = run(fleet, command)
        assert "\x1b" not in output
    assert "a b [31m" in output


def test_fleet_as_json_is_one_value(run: Run) -> None:
    assert json.loads(run(MemoryFleet(), "fleet", "--json")[1])["fleets"][0]["model"] == MODEL
    assert json.loads(run(MemoryFleet(), "fleet", "other", "--json")[1])["model"] == "other"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_watch_shows_each_change_until_it_is_interrupted(
    run: Run, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "REFRESH_S", 0.01)
    fleet = MemoryFleet(fleet_view())
    fleet.script = [None, lambda: fleet.change(version=4), interrupt]
    code, output, errors = run(fleet, "fleet", "--watch", *form)
    assert (code, errors) == (0, "")
    versions = ('"version":3', '"version":4') if form else ("version 3", "version 4")
    assert [version in output for version in versions] == [True, True]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("repartition", MODEL, "tp4x"), "'tp4x' is not a shape: a shape has the parts tp, pp, ep and dp"),
        (("repartition", MODEL, "tp4", "--replicas", "0"), "--replicas: 0 is not accepted; give a whole number above"),
        (("repartition", MODEL, "tp4", "--floor", "1.5"), "--floor: '1.5' is more than the whole"),
        (("repartition", MODEL, "tp4", "--max-stall", "soon"), "--max-stall: 'soon' is not a time"),
        (("repartition", MODEL, "tp4", "--reason", ""), "reason: '' is not accepted; give one line of at most 500"),
        (("repartition", "nobody", "tp4"), "model: 'nobody' is not known; give one of acme/tiny, other."),
        (("scale", MODEL, "tp4"), "'tp4' is not accepted; give each shape once, with its replicas: tp2=3."),
        (("scale", MODEL, "tp4=-1"), "'tp4=-1' is not accepted"),
        (("scale", MODEL, "tp4=1", "tp4=2"), "'tp4=2' is not accepted; give each shape once"),
        (("scale", MODEL, "tp4=5000"), "give tp4 a whole number of replicas from 0 to 4096, not 5000"),
        (("audit", "--limit", "0"), "query.limit: '0' is not accepted; give an integer from 1 to 10000."),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, argv: tuple[str, ...], said: str) -> None:
    yes = () if argv[0] == "audit" else ("--yes",)
    fleet = MemoryFleet()
    code, output, errors = run(fleet, *argv, *yes)
    assert (code, output) == (1, "")
    assert said in errors
    assert errors.startswith("archipelago: ")
    assert errors.count("\n") == 1
    assert not fleet.entries


def test_a_control_api_that_cannot_be_reached_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def connect() -> ControlClient:
        raise ControlError("nothing is served from this directory.")

    parser = argparse.ArgumentParser()
    add_fleet_commands(parser.add_subparsers(), connect)
    arguments = parser.parse_args(["fleet"])
    assert arguments.run(arguments) == 1
    assert capsys.readouterr().err == "archipelago: nothing is served from this directory.\n"


def test_events_of_one_model_and_what_is_gone(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.log.add("other", "loss", "node-1 is draining")
    fleet.log.add(MODEL, "replica", "serves", replica="r-0")
    lines = run(fleet, "events")[1].splitlines()
    assert [line.split("  ")[1].strip() for line in lines] == ["loss", "replica"]
    assert lines[1].endswith("acme/tiny r-0: serves")
    assert len(run(fleet, "events", "other")[1].splitlines()) == 1


def test_events_are_followed_until_interrupted_and_a_gap_is_told(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.log.add(MODEL, "step", "first")
    looks: list[int | None] = []
    read = fleet.events

    async def events(after: int | None, model: str | None, wait_s: float) -> Any:
        looks.append(after)
        if len(looks) == 3:
            raise KeyboardInterrupt
        if len(looks) == 2:
            for number in range(7):
                fleet.log.add(MODEL, "step", f"burst {number}")
        return await read(after, model, wait_s)

    fleet.events = events  # type: ignore[method-assign]
    code, output, _ = run(fleet, "events", "--follow")
    assert code == 0
    assert "(events 1001 to 1002 are gone" in output
    assert [line.rpartition(": ")[2] for line in output.splitlines()[2:]] == [f"burst {n}" for n in range(2, 7)]


def test_the_audit_log_as_a_table_and_as_json(run: Run) -> None:
    fleet = MemoryFleet()
    fleet.script = [None, lambda: reached(fleet, {"tp4": 1})]
    run(fleet, "repartition", MODEL, "tp4", "--reason", "to see", "--yes", "--json", "--floor", "0")
    row = rows(run(fleet, "audit")[1])[0]
    assert row[1:] == ["alice", MODEL, "set pools", "1 x tp2pp2 -> 1 x tp4", "accepted", "to see"]
    assert json.loads(run(fleet, "audit", "--json")[1])["reason"] == "to see"


@pytest.mark.parametrize("command", ["fleet", "repartition", "scale", "events", "audit"])
def test_help_has_examples(run: Run, command: str) -> None:
    code, output, _ = run(MemoryFleet(), command, "--help")
    assert code == 0
    assert "examples:\n" in output
    assert f"  archipelago {command}" in output
