import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from control_builders import MODEL, rows
from loop_builders import SETTLE_S, START_S, TICK_S, TWO, WIDE, Running, world

from autoscaling.cli import _terms, add_commands
from autoscaling.ledger.ledger import FILE, read_ledger
from autoscaling.live.approvals import frozen, take_answer
from autoscaling.live.fleet_client import FleetClient, RefusedError
from autoscaling.settings.settings import parse_settings

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


def connect() -> FleetClient:
    raise RefusedError("nothing is served from this directory")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty directory; the ledger is in `ledger`."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Ran:
        parser = argparse.ArgumentParser(prog="archipelago")
        add_commands(parser.add_subparsers(required=True), connect, lambda name: None)
        directory = [] if argv[0] == "autoscale" else ["--directory", "ledger"]
        arguments = parser.parse_args([*argv, *directory])
        code = arguments.run(arguments)
        output, errors = capsys.readouterr()
        return code, output, errors

    return run


def proposed(tmp_path: Path) -> None:
    """A proposal waits in the ledger."""
    here = world(tmp_path / "ledger")
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick()


def judged(tmp_path: Path) -> None:
    """A repartition, and its outcome."""
    here = world(tmp_path / "ledger")
    here.wanted, here.kind = {MODEL: WIDE}, "repartition"
    with Running(here) as running:
        running.tick(1, serving=True)
        running.tick(int((SETTLE_S + 3 * 60) / TICK_S))


def test_decisions_are_a_table_with_what_became_of_them(run: Run, tmp_path: Path) -> None:
    judged(tmp_path)
    code, output, errors = run("decisions")
    assert (code, errors) == (0, "")
    first, *_ = rows(output)
    assert first[0] == "1"
    assert first[2:5] == ["1 x tp2 -> 1 x tp4", "acted, as predicted", "cheapest: for 1 x tp4"]


def test_decisions_on_several_models_say_which(run: Run, tmp_path: Path) -> None:
    with Running(world(tmp_path / "ledger", "other", MODEL), mode="advise") as running:
        running.tick()
    _, output, _ = run("decisions")
    assert [row[2] for row in rows(output)] == ["other", MODEL]


def test_why_shows_every_option_with_its_price_and_what_came_of_the_best(run: Run, tmp_path: Path) -> None:
    judged(tmp_path)
    _, output, _ = run("decisions", "--why", "1")
    shown = [line for line in output.splitlines() if not line.startswith(("│", "┏", "┃", "┡", "└", "├"))]
    assert shown[1] == "cheapest: for 1 x tp4"
    assert shown[2].startswith("acted at ")
    assert shown[2].endswith("Version 4 of the fleet.")
    option, predicted, realised, without = rows(output)
    assert option == ["repartition", "1 x tp4", "98.0%", "99.0%", "1234", "0", "0 s", "0.0 s", "it is cheapest"]
    assert predicted[0] == "1 x tp4, predicted"
    assert realised == ["1 x tp4, realised", "2.00", "99.0%", "300.0 ms", "30.0 ms", "4"]
    assert without[0] == "1 x tp2, had they stayed"


def test_json_is_one_value_a_line(run: Run, tmp_path: Path) -> None:
    judged(tmp_path)
    _, output, _ = run("decisions", "--json", "-n", "1")
    (entry,) = map(json.loads, output.splitlines())
    assert entry["number"] == max(read_ledger(tmp_path / "ledger").entries)
    _, output, _ = run("decisions", "--json", "--why", "1")
    assert json.loads(output)["outcome"]["verdict"] == "as predicted"


def test_decisions_of_one_model_are_found_among_others(run: Run, tmp_path: Path) -> None:
    here = world(tmp_path / "ledger", "other", MODEL)
    with Running(here, mode="advise") as running:
        running.tick()
    _, output, _ = run("decisions", "--model", MODEL, "--json")
    assert [json.loads(line)["model"] for line in output.splitlines()] == [MODEL]


def test_what_cannot_be_read_is_told_beside_the_rest(run: Run, tmp_path: Path) -> None:
    proposed(tmp_path)
    with (tmp_path / "ledger" / FILE).open("a") as file:
        file.write("half a li")
    code, output, errors = run("decisions")
    assert code == 0
    assert len(rows(output)) == 1
    assert errors.startswith("archipelago: ledger/ledger.jsonl line 2 is left out")


def test_there_is_nothing_to_show(run: Run) -> None:
    assert run("decisions") == (0, "No decisions in ledger yet.\n", "")
    assert run("decisions", "--why", "3") == (1, "", "archipelago: There is no decision 3: ledger has none yet.\n")
    assert run("decisions", "-n", "0")[2] == "archipelago: -n: 0 is not accepted; give a number of decisions above 0.\n"


@pytest.mark.parametrize(("arguments", "is_approved"), [((), True), (("--reject", "--reason", "a demo"), False)])
def test_an_answer_reaches_the_autoscaler(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], is_approved: bool
) -> None:
    proposed(tmp_path)
    assert run("approve", "1", *arguments)[0] == 0
    answer = take_answer(tmp_path / "ledger", 1)
    assert answer is not None
    assert (answer.is_approved, answer.why) == (is_approved, "" if is_approved else "a demo")
    assert answer.by


def test_only_what_waits_can_be_approved(run: Run, tmp_path: Path) -> None:
    judged(tmp_path)
    code, _, errors = run("approve", "1")
    assert code == 1
    assert errors.startswith("archipelago: Decision 1 is acted, not waiting to be approved.")
    assert run("approve", "99")[2].startswith("archipelago: There is no decision 99: the newest is ")


def test_freeze_and_thaw(run: Run, tmp_path: Path) -> None:
    code, output, _ = run("freeze", "--reason", "a demo")
    assert code == 0
    assert "No autoscaler has decided anything in " in output  # in another directory nobody would be frozen
    now = frozen(tmp_path / "ledger")
    assert now is not None
    assert (now.why, now.since_s > START_S) == ("a demo", True)
    assert "said so" in run("freeze")[1]
    assert run("freeze", "--off")[1] == "Changes are allowed again.\n"
    assert frozen(tmp_path / "ledger") is None
    assert run("freeze", "--off")[1] == "Changes were allowed already.\n"


def test_a_freeze_that_cannot_be_read_still_freezes(tmp_path: Path) -> None:
    (tmp_path / "freeze.json").write_text("{")
    assert frozen(tmp_path) is not None


def test_fields_are_described(run: Run) -> None:
    code, output, _ = run("autoscale", "--fields")
    assert code == 0
    assert "models[].slo.ttft" in output


@pytest.mark.parametrize("tick_s", [1, 15, 600])
def test_a_lease_outlasts_the_longest_tick(tick_s: int, tmp_path: Path) -> None:
    """Else another autoscaler would act while this one is alive; the first look at a model takes seconds."""
    least = "models: [{model: m, source: meta-llama/Llama-3.1-70B, slo: {ttft: 500ms}}]\n"
    assert _terms(parse_settings(f"{least}tick_s: {tick_s}"), tmp_path).lease_ttl_s >= 2 * tick_s + 30


def test_what_is_missing_to_start_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("autoscale")[2].startswith("archipelago: autoscaler.yaml: cannot be read")
    least = "models: [{model: m, source: meta-llama/Llama-3.1-70B, slo: {ttft: 500ms}}]\n"
    (tmp_path / "autoscaler.yaml").write_text(least)
    assert run("autoscale")[2] == "archipelago: nothing is served from this directory\n"
    (tmp_path / "my.yaml").write_text(least + "control: {url: http://127.0.0.1:1, token_env: NO_SUCH_TOKEN}\n")
    assert (
        run("autoscale", "my.yaml")[2]
        == "archipelago: control.token_env: $NO_SUCH_TOKEN is not set; give it the token\n"
    )
    (tmp_path / "my.yaml").write_text(least + "prometheus: {user: reader, password_env: NO_SUCH_PASSWORD}\n")
    assert (
        "prometheus.password_env: $NO_SUCH_PASSWORD is not set; give it the password" in run("autoscale", "my.yaml")[2]
    )
    monkeypatch.setenv("CONTROL", "secret")
    control = "control: {url: http://127.0.0.1:1, token_env: CONTROL}\n"
    (tmp_path / "my.yaml").write_text(least.replace("slo:", "cluster: c.yaml, slo:") + control)
    told = "archipelago: models[0].cluster: c.yaml cannot be read: No such file or directory.\n"
    assert run("autoscale", "my.yaml")[2] == told


def test_once_with_nobody_there_says_so_and_ends(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL", "secret")
    (tmp_path / "my.yaml").write_text(
        "models: [{model: m, source: meta-llama/Llama-3.1-70B, slo: {ttft: 500ms}}]\n"
        "control: {url: http://127.0.0.1:1, token_env: CONTROL}\ndirectory: ledger\n"
    )
    code, output, _ = run("autoscale", "my.yaml", "--once")
    assert code == 1
    assert "http://127.0.0.1:1 cannot be reached" in output
    assert "secret" not in output
