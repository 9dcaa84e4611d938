import argparse
import csv
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from record_builders import record as good
from sse_servers import HEAD, Piece, Server, obliging, serving, token

from loadtests.load_command import add_commands
from loadtests.merging import merged
from loadtests.plan import Folder, processor_s
from loadtests.prompts import token_prompts
from loadtests.records import Record, Run, read_run, write_run
from loadtests.run import LoadError, run
from loadtests.scenario import Scenario
from loadtests.schedule import requests_of

LENGTHS = {"input": {"kind": "uniform", "least": 5, "most": 20}, "output": {"kind": "uniform", "least": 2, "most": 6}}


def scenario(url: str = "http://127.0.0.1:1", **changes: Any) -> Scenario:
    given = {"name": "t", "url": url, "duration_s": 2.0, "drain_s": 10.0, "lengths": LENGTHS}
    return Scenario.model_validate({**given, "arrivals": {"kind": "poisson", "rate": 20}, **changes})


# --- with Locust -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_one_schedule_and_one_start(workers: int, tmp_path: Path) -> None:
    with serving(partial(obliging, ttft_s=0.02, tpot_s=0.005)) as server:
        events = [{"at_s": 1.0, "command": ["echo", "hello"]}]
        given = scenario(server.url, workers=workers, events=events)
        found = read_run(run(given, tmp_path))
    requests = list(requests_of(given))
    assert Counter(record.outcome for record in found.records) == {"ok": len(requests)}
    assert [record.id for record in found.records] == [each.id for each in requests]
    assert all(record.worker == record.id % workers for record in found.records)
    assert [record.scheduled_s for record in found.records] == [each.at_s for each in requests]
    _each_was_sent_once(server, given)
    assert all(record.sent_s is not None and record.sent_s >= record.scheduled_s for record in found.records)
    assert [client["requests"] for client in found.header["client"]] == [
        len(range(worker, len(requests), workers)) for worker in range(workers)
    ]
    assert [(line.kind, line.detail, line.at_s >= 1.0) for line in found.events] == [("command", "hello", True)]
    _locust_shows_rows(tmp_path, len(requests))


def _each_was_sent_once(server: Server, given: Scenario) -> None:
    prompts = token_prompts(given.seed)
    wanted = [json.loads(b"[" + prompts.of(each.id, each.input_tokens) + b"]") for each in requests_of(given)]
    assert sorted(map(str, wanted)) == sorted(str(body["prompt"]) for body in server.bodies)


def _locust_shows_rows(folder: Path, requests: int) -> None:
    with (folder / "locust_stats.csv").open(newline="") as file:
        rows = {row["Type"]: row for row in csv.DictReader(file)}
    assert {kind: int(rows[kind]["Request Count"]) for kind in ("POST", "TTFT", "TPOT")} == dict.fromkeys(
        ("POST", "TTFT", "TPOT"), requests
    )
    assert float(rows["TTFT"]["Min Response Time"]) >= 20
    # A client that a busy machine wakes late reads two tokens at once.
    assert float(rows["TPOT"]["Min Response Time"]) < 20
    assert float(rows["TPOT"]["Max Response Time"]) >= 4


@pytest.mark.slow
def test_what_is_under_way_at_the_end_is_in_the_result(tmp_path: Path) -> None:
    def script(body: dict[str, object]) -> list[Piece]:
        return [HEAD, token("a", 7), 60.0]

    with serving(script) as server:
        given = scenario(server.url, duration_s=1.0, drain_s=0.5, arrivals={"kind": "constant", "rate": 20})
        found = read_run(run(given, tmp_path))
    assert [record.outcome for record in found.records] == ["unfinished"] * 20


@pytest.mark.slow
def test_a_worker_that_dies_is_not_waited_for(tmp_path: Path) -> None:
    """The others send all that is theirs; then the run is over, and says that it is not valid."""
    kill = (
        "import psutil\n"
        "(locust,) = (each for each in psutil.Process().parent().children() if '--csv' in each.cmdline())\n"
        "locust.children()[0].kill()"
    )
    with serving(partial(obliging, ttft_s=0.02)) as server:
        events = [{"at_s": 1.0, "command": [sys.executable, "-c", kill]}]
        given = scenario(server.url, workers=2, duration_s=3.0, drain_s=2.0, events=events)
        started_s = time.monotonic()
        found = read_run(run(given, tmp_path))
    # Locust itself would find out after a minute, and what `run` allows for a slow end is another.
    assert time.monotonic() - started_s < 60
    assert [(line.kind, line.outcome) for line in found.events] == [("command", "done")]
    assert "did not come to its end" in found.header["invalid"][0]
    outcomes = {worker: Counter(each.outcome for each in found.records if each.worker == worker) for worker in (0, 1)}
    assert sorted("unfinished" in outcome for outcome in outcomes.values()) == [False, True]


# --- before anything is sent -----------------------------------------------------------------------------------------


def test_nobody_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = argparse.ArgumentParser()
    add_commands(root.add_subparsers())
    out = tmp_path / "out"
    arguments = root.parse_args(["load", "smoke", "--url", "http://127.0.0.1:1", "--out", str(out)])
    assert arguments.run(arguments) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for word in ("nothing answers at http://127.0.0.1:1", "make serve", "--url"):
        assert word in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "words"), [(None, "it needs an API key: name"), ("wrong", "the key in KEY_OF_TEST is not accepted: name")]
)
def test_a_key_that_is_asked_for_is_told_before_anything_is_sent(key: str | None, words: str, tmp_path: Path) -> None:
    named = {"api_key_env": "KEY_OF_TEST"} if key else {}
    body = b'{"error": "Unauthorized"}'
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with serving(obliging, models=answer) as server, pytest.raises(LoadError, match=words) as told:
        run(scenario(server.url, model="m", **named), tmp_path, {"KEY_OF_TEST": key} if key else {})
    assert "HTTP 401: Unauthorized" in str(told.value)
    assert server.bodies == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["no-such"], ["no-such", "smoke"]),
        (["smoke", "--duration", "-3"], ["archipelago: --duration: -3"]),
        (["smoke", "--workers", "0", "--seed", "-1"], ["archipelago: --workers: 0", "\n--seed: -1 is not accepted"]),
        (["smoke", "--url", "localhost:8000"], ["archipelago: --url: 'localhost:8000'", "http://"]),
        (["smoke", "--url", "seed --duration_s"], ["archipelago: --url: 'seed --duration_s' is not accepted"]),
        (["smoke", "--control", "ftp://x"], ["archipelago: --control: 'ftp://x'", "http://"]),
        (["smoke", "--reference", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (
            ["spike", "--reference", "ref.jsonl"],
            ["archipelago: --reference: '", "/ref.jsonl' is not", "greedy: true in the"],
        ),
        (["smoke", "--ui", "99999"], ["archipelago: --ui: nothing can listen on 99999"]),
    ],
)
def test_a_mistake_on_the_command_line_is_told_like_one_in_the_file(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = argparse.ArgumentParser()
    add_commands(root.add_subparsers())
    arguments = root.parse_args(["load", *options])
    assert arguments.run(arguments) == 1
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_another_control_api_is_asked_with_the_token_that_the_scenario_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    values = {"name": "mine", "duration_s": 1, "arrivals": {"kind": "constant", "rate": 1}, "lengths": LENGTHS}
    path.write_text(json.dumps({**values, "control": {"url": "http://127.0.0.1:1", "token_env": "MINE"}}))
    runs: list[Scenario] = []

    def kept(given: Scenario, *_: object, **__: object) -> Path:
        runs.append(given)
        raise LoadError("enough")

    monkeypatch.setattr("loadtests.load_command.run", kept)
    root = argparse.ArgumentParser()
    add_commands(root.add_subparsers())
    arguments = root.parse_args(["load", str(path), "--control", "http://127.0.0.1:2"])
    assert arguments.run(arguments) == 1
    (control,) = (given.control for given in runs)
    assert control is not None
    assert (control.url, control.token_env) == ("http://127.0.0.1:2", "MINE")


def test_a_schedule_without_requests_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no request arrives"):
        run(scenario(arrivals={"kind": "poisson", "rate": 0.0}), tmp_path)


# --- after the run ---------------------------------------------------------------------------------------------------


def record(number: int, at_s: float, **changes: Any) -> Record:
    """A request of `scenario()` that went well."""
    request = next(each for each in requests_of(scenario()) if each.id == number)
    tokens = {"input_tokens": request.input_tokens, "output_tokens": request.output_tokens}
    asked = {f"asked_{name}": count for name, count in tokens.items()}
    return good(at_s, **{"id": number, "worker": number % 2, "text_sha": "aa", **tokens, **asked, **changes})


def left_by(
    folder: Folder, workers: int, records: list[Record], *, lag_ms: float = 1.0, dead: int | None = None
) -> None:
    for worker in range(workers):
        lines = [each.to_json() + "\n" for each in records if each.worker == worker]
        folder.worker_records(worker).write_text("".join(lines) + ('{"id": 9' if worker == dead else ""))
        if worker != dead:
            folder.worker_figures(worker).write_text(json.dumps({"loop_lag_ms": {"p99": lag_ms}}))


def test_a_worker_that_died_is_a_reason_and_its_requests_are_counted(tmp_path: Path) -> None:
    folder, given = Folder(path=tmp_path), scenario(workers=2)
    requests = tuple(requests_of(given))
    left_by(folder, 2, [record(each.id, each.at_s) for each in requests[:7]], dead=1)
    header, records = merged(given, folder, requests, {})
    assert [each.id for each in records] == [each.id for each in requests]
    assert Counter(each.outcome for each in records) == {"ok": 7, "unfinished": len(requests) - 7}
    assert "worker 1" in header["invalid"][0]
    assert f"{len(requests) - 7} of {len(requests)}" in header["invalid"][1]


@pytest.mark.parametrize(
    ("sent_late_s", "woke_late_ms", "is_valid"), [(0.001, 1, True), (0.03, 1, False), (0.001, 30, False)]
)
def test_a_client_that_lags_makes_a_run_invalid(
    sent_late_s: float, woke_late_ms: float, is_valid: bool, tmp_path: Path
) -> None:
    folder, given = Folder(path=tmp_path), scenario()
    requests = tuple(requests_of(given))
    records = [record(each.id, each.at_s, worker=0, sent_s=each.at_s + sent_late_s) for each in requests]
    left_by(folder, 1, records, lag_ms=woke_late_ms)
    header, _ = merged(given, folder, requests, {})
    assert (header["invalid"] == []) == is_valid
    assert is_valid or "30.0 ms late (p99), above max_lag_ms (20)" in header["invalid"][0]


@pytest.mark.parametrize(
    ("ran_s", "waited_s", "words"),
    [(1.0, 9.0, "give this machine less to do"), (9.0, 1.0, "give the scenario more workers")],
)
def test_why_a_client_lags_is_told(ran_s: float, waited_s: float, words: str, tmp_path: Path) -> None:
    folder, given = Folder(path=tmp_path), scenario()
    left_by(folder, 1, [])
    folder.worker_figures(0).write_text(json.dumps({"loop_lag_ms": {"p99": 30}, "ran_s": ran_s, "waited_s": waited_s}))
    header, _ = merged(given, folder, (), {})
    assert f"ran for {ran_s} s and waited {waited_s} s for a processor; {words}" in header["invalid"][0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_work_counts_as_time_on_a_processor() -> None:
    until_s, before = time.thread_time() + 0.1, processor_s()
    while time.thread_time() < until_s:
        pass
    after = processor_s()
    assert before is not None
    assert after is not None
    assert 0.05 < after[0] - before[0] < 0.5
    assert after[1] >= before[1]


def test_requests_that_found_no_file_make_a_run_invalid(tmp_path: Path) -> None:
    folder, given = Folder(path=tmp_path), scenario()
    requests = tuple(requests_of(given))
    failed = {"outcome": "unreachable", "detail": "OSError: [Errno 24] Too many open files"}
    left_by(folder, 1, [record(each.id, each.at_s, worker=0, **failed) for each in requests])
    header, _ = merged(given, folder, requests, {})
    assert "ulimit -n" in header["invalid"][0]


def test_a_text_that_is_not_that_of_the_reference_is_a_failure(tmp_path: Path) -> None:
    folder, given = Folder(path=tmp_path), scenario()
    requests = tuple(requests_of(given))
    left_by(folder, 1, [record(each.id, each.at_s, worker=0) for each in requests])
    reference = {each.id: record(each.id, each.at_s) for each in requests[1:]}
    reference[2] = replace(reference[2], text_sha="bb")
    reference[3] = replace(reference[3], text_sha="bb", outcome="cut")
    header, records = merged(given, folder, requests, reference)
    assert [each.id for each in records if each.outcome == "text-differs"] == [2]
    assert header["texts_compared"] == len(requests) - 2


def test_a_reference_of_another_scenario_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.jsonl"
    for changes, words in (({"asked_input_tokens": 999}, "another scenario"), ({"text_sha": None}, "greedy: true")):
        write_run(path, Run(header={}, events=(), records=(record(0, 0.0, **changes),)))
        with pytest.raises(LoadError, match=words):
            run(scenario(greedy=True, check_text=str(path)), tmp_path / "out")
