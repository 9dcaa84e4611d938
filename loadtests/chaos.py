"""What is done to the system while requests arrive: repartitions, faults, commands. Each leaves a line of its own.

Where the scenario says how to reach the control API, a line is left for every change of the fleet's GPUs as well.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from loadtests.control import ControlApi, ControlError, gpus_by_shape
from loadtests.records import RunEvent
from loadtests.scenario import Control, DrainNode, Event, Repartition

_POLL_S = 0.2
_LOOK_S = 1.0
_SHOWN_CHARACTERS = 300


class EventError(Exception):
    """An event that could not be brought about; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Carries events out. `environ` has the token of the control API, under the name that `control` gives."""

    model: str
    control: Control | None
    environ: Mapping[str, str]
    wait: Callable[[float], bool]  # for so many seconds; True when the run is over

    def act(self, event: Event) -> str | None:
        """Do one thing and wait for its end; returns what is worth knowing of it. Raises EventError."""
        if event.kill_pid is not None:
            _kill(event.kill_pid)
            return None
        if event.repartition is not None:
            return self._repartition(event.repartition, event.timeout_s)
        command = _drain_command(event.drain_node) if event.drain_node else event.command
        assert command is not None
        return _run(command, event.timeout_s, self.wait)

    def watch(self, started_at: float) -> list[RunEvent]:
        """Look at the fleet until the run is over: a line for every change of the GPUs that its shapes hold.

        Where it cannot be read there is one line that says so, until it can.
        """
        assert self.control is not None
        lines: list[RunEvent] = []
        try:
            with ControlApi(self.control, self.model, self.environ) as api:
                while True:
                    seen = _seen(api, max(0.0, time.time() - started_at))
                    if not lines or (seen.kind, seen.what) != (lines[-1].kind, lines[-1].what):
                        lines.append(seen)
                    if self.wait(_LOOK_S):
                        return lines
        except ControlError as error:
            return [_not_seen(error, 0.0)]

    def _repartition(self, target: Repartition, timeout_s: float) -> str:
        assert self.control is not None
        until_s = time.monotonic() + timeout_s
        try:
            with ControlApi(self.control, target.model or self.model, self.environ) as api:
                version = api.set_pools(target.pools)
                while time.monotonic() < until_s:
                    fleet = api.fleet()
                    if fleet.get("repartition") is None and fleet.get("effective_pools") == target.pools:
                        return f"version {version} is reached"
                    if self.wait(_POLL_S):
                        raise EventError("accepted; not reached when the run ended")
        except ControlError as error:
            raise EventError(str(error)) from error
        raise EventError(f"accepted; not reached within {timeout_s:g} s")


class Chaos:
    """Carries out the events of a run, each at its time; a context, whose end gives up what has not begun."""

    def __init__(self, events: Sequence[Event], actor_of: Callable[[Callable[[float], bool]], Actor]) -> None:
        self._events = events
        self._over = threading.Event()
        self._actor = actor_of(self._over.wait)
        self._threads = ThreadPoolExecutor(max_workers=len(events) + 1)
        self._done: list[Future[list[RunEvent]]] = []
        self._watched: list[Future[list[RunEvent]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads.shutdown()

    def start(self, started_at: float) -> None:
        """The run starts at this wall-clock time."""
        self._done = [self._threads.submit(self._carry_out, event, started_at) for event in self._events]
        if self._actor.control is not None:
            self._watched = [self._threads.submit(self._actor.watch, started_at)]

    def finish(self) -> tuple[RunEvent, ...]:
        """The run is over: what was done and seen, in the order of time."""
        self._over.set()
        found = (line for done in (*self._done, *self._watched) for line in done.result())
        return tuple(sorted(found, key=lambda line: line.at_s))

    def _carry_out(self, event: Event, started_at: float) -> list[RunEvent]:
        kind, what = _named(event)
        if self._over.wait(max(0.0, started_at + event.at_s - time.time())):
            return [RunEvent(at_s=event.at_s, kind=kind, what=what, outcome="failed", detail="the run ended before")]
        at_s = time.time() - started_at
        try:
            detail = self._actor.act(event)
        except EventError as error:
            return [RunEvent(at_s=at_s, kind=kind, what=what, outcome="failed", detail=str(error))]
        if event.repartition is None:
            return [RunEvent(at_s=at_s, kind=kind, what=what, outcome="done", detail=detail)]
        reached_s = time.time() - started_at
        return [
            RunEvent(at_s=at_s, kind=kind, what=what, outcome="done"),
            RunEvent(at_s=reached_s, kind="repartitioned", what=what, outcome="done", detail=detail),
        ]


def _named(event: Event) -> tuple[str, str]:
    """The kind of an event and what it is done to, for people."""
    if event.kill_pid is not None:
        return "kill", f"process {event.kill_pid}"
    if event.repartition is not None:
        return "repartition", _counts(event.repartition.pools)
    if event.drain_node is not None:
        return "drain-node", event.drain_node.node_id
    return "command", " ".join(event.command or ())


def _seen(api: ControlApi, at_s: float) -> RunEvent:
    """The GPUs of the fleet now, or why they are not known."""
    try:
        return RunEvent(at_s=at_s, kind="gpus", what=_counts(gpus_by_shape(api.fleet())), outcome="done")
    except ControlError as error:
        return _not_seen(error, at_s)


def _not_seen(error: ControlError, at_s: float) -> RunEvent:
    return RunEvent(at_s=at_s, kind="control", what="read the fleet", outcome="failed", detail=str(error))


def _counts(by_shape: Mapping[str, int]) -> str:
    return ", ".join(f"{shape}={count}" for shape, count in by_shape.items())


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        raise EventError(f"process {pid}: {error.strerror}") from error


def _drain_command(node: DrainNode) -> tuple[str, ...]:
    # Not `ray`, which is on no path unless the environment of this Python is activated.
    return (
        *(sys.executable, "-m", "ray.scripts.scripts"),
        *("drain-node", "--address", node.address, "--node-id", node.node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a load test's scenario"),
        *("--deadline-remaining-seconds", f"{node.deadline_s:.0f}"),
    )


def _run(command: Sequence[str], timeout_s: float, wait: Callable[[float], bool]) -> str | None:
    """Run a program to its end; returns the last thing that it printed."""
    until_s = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as printed:
        try:
            program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT)
        except OSError as error:
            raise EventError(f"{command[0]} cannot be run: {error.strerror}") from error
        while program.poll() is None:
            if (is_over := wait(_POLL_S)) or time.monotonic() > until_s:
                program.kill()
                program.wait()
                raise EventError(
                    "under way when the run ended" if is_over else f"not at its end within {timeout_s:g} s"
                )
        printed.seek(0)
        last = printed.read().decode(errors="replace").strip()[-_SHOWN_CHARACTERS:]
    if program.returncode:
        raise EventError(f"ended with {program.returncode}: {last}")
    return last or None
