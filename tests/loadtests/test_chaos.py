import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loadtests.chaos import Actor, Chaos
from loadtests.control import ControlError, gpus_by_shape
from loadtests.records import RunEvent
from loadtests.scenario import Control, Event

TOKEN = {"TOKEN_OF_TEST": "secret"}


class ControlApi(ThreadingHTTPServer):
    """Stands for the control API: reaches a target at the second look, and refuses shapes that begin with pp."""

    daemon_threads = True
    asked: list[tuple[str, str | None, Any]]
    looks = 0


def replica(shape: str, phase: str = "serving") -> dict[str, Any]:
    return {"shape": shape, "phase": phase, "seats": [{"rank": rank} for rank in range(int(shape[-1]))]}


class Handler(BaseHTTPRequestHandler):
    server: ControlApi

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        refused = any(shape.startswith("pp") for shape in body["pools"])
        self._answer(409, {"title": "no room for pp9"}) if refused else self._answer(200, {"version": 7})

    def do_GET(self) -> None:
        self.server.looks += 1
        pools = self.server.asked[-1][2]["pools"] if self.server.asked else {"tp1": 1}
        under_way = None if self.server.looks > 1 else {"stage": "starting"}
        replicas = [replica(shape) for shape, count in pools.items() for _ in range(count)]
        replicas += [replica("tp1", phase="failed"), replica("tp2", phase="lost")]
        self._answer(200, {"repartition": under_way, "effective_pools": pools, "replicas": replicas})

    def _answer(self, status: int, values: object) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def control_api() -> Iterator[tuple[ControlApi, Control]]:
    api = ControlApi(("127.0.0.1", 0), Handler)
    api.asked = []
    thread = threading.Thread(target=api.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield api, Control(url=f"http://127.0.0.1:{api.server_port}", token_env="TOKEN_OF_TEST")
    api.shutdown()
    api.server_close()


def carried_out(*events: dict[str, Any], control: Control | None = None, run_s: float = 10.0) -> tuple[RunEvent, ...]:
    """What became of events in a run that lasts until all are over, or `run_s`."""
    given = [Event.model_validate(event) for event in events]
    with Chaos(given, lambda wait: Actor(model="org/m", control=control, environ=TOKEN, wait=wait)) as chaos:
        chaos.start(time.time())
        until_s = time.monotonic() + run_s
        while time.monotonic() < until_s and not all(done.done() for done in chaos._done):
            time.sleep(0.01)
        return chaos.finish()


def test_a_process_is_killed_at_its_time() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        (line,) = carried_out({"at_s": 0.2, "kill_pid": victim.pid})
        assert victim.wait(10) == -9
    assert (line.kind, line.what, line.outcome) == ("kill", f"process {victim.pid}", "done")
    assert 0.2 <= line.at_s < 2


def test_a_process_that_is_not_there_is_a_failure_of_the_event_and_not_of_the_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(30)
    (line,) = carried_out({"at_s": 0, "kill_pid": gone.pid})
    assert (line.outcome, line.detail) == ("failed", f"process {gone.pid}: No such process")


@pytest.mark.parametrize(
    ("command", "outcome", "detail"),
    [
        (["echo", "drained"], "done", "drained"),
        (["true"], "done", None),
        ([sys.executable, "-c", "print('no such node'); exit(3)"], "failed", "ended with 3: no such node"),
        (["/no/such/program"], "failed", "/no/such/program cannot be run: No such file or directory"),
    ],
)
def test_a_command_is_run_and_its_last_words_are_kept(command: list[str], outcome: str, detail: str | None) -> None:
    (line,) = carried_out({"at_s": 0, "command": command})
    assert (line.kind, line.outcome, line.detail) == ("command", outcome, detail)


def test_a_command_without_end_is_ended() -> None:
    (line,) = carried_out({"at_s": 0, "command": ["sleep", "60"], "timeout_s": 0.3})
    assert (line.outcome, line.detail) == ("failed", "not at its end within 0.3 s")
    (line,) = carried_out({"at_s": 0, "command": ["sleep", "60"]}, run_s=0.5)
    assert (line.outcome, line.detail) == ("failed", "under way when the run ended")


def test_pools_are_set_through_the_control_api_and_followed_until_they_are_there() -> None:
    with control_api() as (api, control):
        found = carried_out({"at_s": 0.1, "repartition": {"pools": {"tp2": 1, "tp1": 2}}}, control=control)
    begun, reached = (line for line in found if line.kind != "gpus")
    assert api.asked == [
        (
            "/v1/fleet/org%2Fm/pools",
            "Bearer secret",
            {"pools": {"tp2": 1, "tp1": 2}, "reason": "a load test's scenario"},
        )
    ]
    assert (begun.kind, begun.what, begun.outcome) == ("repartition", "tp2=1, tp1=2", "done")
    assert reached.kind == "repartitioned"
    assert reached.at_s > begun.at_s


def test_a_refusal_is_told_in_the_words_of_the_control_api() -> None:
    with control_api() as (_, control):
        found = carried_out({"at_s": 0, "repartition": {"pools": {"pp9": 1}}}, control=control)
        (line,) = (line for line in found if line.kind == "repartition")
        nobody = control.model_copy(update={"token_env": "NONE"})
        _, no_token = carried_out({"at_s": 0, "repartition": {"pools": {"tp1": 1}}}, control=nobody)
    assert line.outcome == "failed"
    assert "HTTP 409" in str(line.detail)
    assert "no room for pp9" in str(line.detail)
    assert "NONE" in str(no_token.detail)


def test_a_control_api_that_is_not_there_is_a_failure_of_the_event() -> None:
    lines = carried_out(
        {"at_s": 0, "repartition": {"pools": {"tp1": 1}}},
        control=Control(url="http://127.0.0.1:1", token_env="TOKEN_OF_TEST"),
    )
    assert {(line.kind, line.outcome) for line in lines} == {("repartition", "failed"), ("control", "failed")}
    assert all("http://127.0.0.1:1" in str(line.detail) for line in lines)


@pytest.mark.parametrize("answer", [{}, {"data": []}, {"replicas": None}, {"replicas": [3]}, {"replicas": [{}]}])
def test_what_is_no_fleet_is_told_and_ends_no_run(answer: dict[str, Any]) -> None:
    with pytest.raises(ControlError, match="the answer is no fleet"):
        gpus_by_shape(answer)


def test_gpus_by_shape_are_told_when_they_change_and_only_then() -> None:
    with control_api() as (api, control):

        def until_the_fourth_look(_: float) -> bool:
            if api.looks == 2:
                api.asked.append(("", None, {"pools": {"tp2": 3, "tp1": 2}}))
            return api.looks == 4

        lines = Actor(model="org/m", control=control, environ=TOKEN, wait=until_the_fourth_look).watch(time.time())
    assert [(line.kind, line.what, line.outcome) for line in lines] == [
        ("gpus", "tp1=1", "done"),
        ("gpus", "tp1=2, tp2=6", "done"),
    ]


def test_events_come_in_the_order_of_time_and_what_did_not_begin_is_told() -> None:
    late, early = {"at_s": 60, "command": ["true"]}, {"at_s": 0.1, "command": ["true"]}
    lines = carried_out(late, early, run_s=1.0)
    assert [(line.at_s >= 60, line.outcome) for line in lines] == [(False, "done"), (True, "failed")]
    assert lines[1].detail == "the run ended before"
