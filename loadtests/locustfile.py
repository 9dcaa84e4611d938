"""What each Locust process does. `archipelago load` starts Locust with it; it is not for use by hand.

The one user of a worker only starts requests. All workers make the same schedule, tell the master when they are ready,
and start at the wall-clock time that it answers.
"""

import csv
import gc
import json
import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
import gevent.event  # type: ignore[import-untyped]
import psutil
from locust import User, events, runners, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV

from loadtests.client import StreamClient, wording
from loadtests.dispatch import Dispatcher
from loadtests.plan import PLAN_ENV, Folder, Plan, milliseconds, plan_of, processor_s
from loadtests.records import Record
from loadtests.schedule import requests_of, share_of

_READY, _START, _DONE = "archipelago-ready", "archipelago-start", "archipelago-done"
_LOOK_S = 0.1
_HEAD_START_S = 0.5  # from the master's message to the start: longer than any message takes

# Locust takes a worker for dead that is silent for 3 s, and ends the run with its last one (locust/runners.py,
# heartbeat_worker). On a busy machine a worker is silent for longer while it makes its schedule. A minute later it
# would let another worker do the dead one's part, which that one has no schedule for: the part stays undone.
runners.HEARTBEAT_LIVENESS, runners.HEARTBEAT_DEAD_INTERNAL = 60, -sys.maxsize

_folder = Folder(path=Path(os.environ[PLAN_ENV]))
_plan: Plan = plan_of(_folder.plan.read_text(encoding="utf-8"))
_start_at = gevent.event.AsyncResult()


@events.init.add_listener  # type: ignore[untyped-decorator]  # Locust does not type its events
def _arrange(environment: Environment, **_: Any) -> None:
    """Let the master wait for all workers, twice: before the start and at the end."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(_START, lambda msg, **_: _start_at.set(msg.data["at"]))
        return
    environment.events.quit.add_listener(  # type: ignore[no-untyped-call]
        lambda **_: _write_rows(environment)
    )
    if isinstance(runner, MasterRunner):
        ready: set[str] = set()
        done: set[int] = set()

        def on_ready(msg: Any, **_: Any) -> None:
            ready.add(msg.node_id)
            if len(ready) == _plan.scenario.workers:
                runner.send_message(_START, {"at": _start()})

        runner.register_message(_READY, on_ready)
        runner.register_message(_DONE, lambda msg, **_: done.add(msg.data))
        gevent.spawn(_end_after, psutil.Process().children(), done, environment)


class Worker(User):
    """Starts the requests of one worker and writes down what became of them."""

    @task
    def run_all(self) -> None:
        """The whole run."""
        runner = self.environment.runner
        is_worker = isinstance(runner, WorkerRunner)
        index = runner.worker_index if isinstance(runner, WorkerRunner | LocalRunner) else 0
        scenario = _plan.scenario
        requests = share_of(requests_of(scenario), index, scenario.workers) if scenario.is_open else []
        words = wording(scenario, _plan.model, _plan.base_path, _api_key())
        gc.collect()
        gc.freeze()  # a full collection would otherwise look through all modules and requests, for tens of milliseconds
        if is_worker:
            runner.send_message(_READY)
            at = _start_at.get()
        else:
            at = _start()
        start_s = time.perf_counter() + at - time.time()
        client = StreamClient(scenario, words, worker=index, start_s=start_s)
        before = processor_s()
        # A line is written when it ends: what a worker found is not lost with the worker, nor ("x") if it began anew.
        with _folder.worker_records(index).open("x", encoding="utf-8", buffering=1) as file:

            def keep(record: Record) -> None:
                file.write(record.to_json() + "\n")
                self._show(record)

            dispatcher = Dispatcher(scenario=scenario, client=client, start_s=start_s, keep=keep)
            if scenario.closed_loop:
                clients = scenario.closed_loop.clients
                dispatcher.closed_loop(range(index, clients, scenario.workers), clients)
            else:
                dispatcher.open_loop(requests)
        figures = {"loop_lag_ms": milliseconds(dispatcher.loop_lags_s), **_processor_use(before)}
        _folder.worker_figures(index).write_text(json.dumps(figures), encoding="utf-8")
        if is_worker:
            runner._send_stats()  # else they come when Locust ends, which does not wait for them for long
            runner.send_message(_DONE, os.getpid())
        else:
            _end(self.environment)
        gevent.event.Event().wait()  # Locust would begin the task anew; what ends this greenlet is Locust's own end

    def _show(self, record: Record) -> None:
        """Rows for Locust's own page and CSV, in milliseconds."""
        name = record.class_name or _plan.scenario.name
        is_ok = record.outcome == "ok"
        from_s = record.scheduled_s if _plan.scenario.is_open else record.sent_s or record.scheduled_s
        rows = [("POST", record.ended_s - from_s, None if is_ok else RuntimeError(record.outcome))]
        if record.first_s is not None:
            rows.append(("TTFT", record.first_s - from_s, None))
        if is_ok and record.first_s is not None and record.last_s is not None and (record.output_tokens or 0) > 1:
            rows.append(("TPOT", (record.last_s - record.first_s) / ((record.output_tokens or 0) - 1), None))
        for kind, seconds, error in rows:
            self.environment.events.request.fire(
                request_type=kind,
                name=name,
                response_time=1e3 * seconds,
                response_length=0,
                exception=error,
                context={},
            )


def _processor_use(before: tuple[float, float] | None) -> dict[str, float]:
    """Since `before`, which `processor_s` has told; empty where it does not tell."""
    if before is None or (after := processor_s()) is None:
        return {}
    return {"ran_s": round(after[0] - before[0], 3), "waited_s": round(after[1] - before[1], 3)}


def _start() -> float:
    at = time.time() + _HEAD_START_S
    part = _folder.started.with_suffix(".part")
    part.write_text(json.dumps({"at": at}), encoding="utf-8")
    part.replace(_folder.started)
    return at


def _write_rows(environment: Environment) -> None:
    """Write Locust's CSV once more: what Locust itself wrote last can be seconds old."""
    with _folder.rows.open("w", newline="", encoding="utf-8") as file:
        StatsCSV(environment, PERCENTILES_TO_REPORT).requests_csv(csv.writer(file))


def _end_after(workers: Sequence[psutil.Process], done: Collection[int], environment: Environment) -> None:
    """End Locust once each worker is done or dead. `done` has process ids; one that died does not come to be in it."""
    while any(worker.pid not in done and worker.is_running() for worker in workers):
        gevent.sleep(_LOOK_S)
    _end(environment)


def _end(environment: Environment) -> None:
    """End Locust, from a greenlet that ending it does not end."""
    environment.process_exit_code = 0  # what became of the requests is in the records

    def end() -> None:
        if environment.runner:
            environment.runner.quit()
        if environment.web_ui:
            environment.web_ui.stop()  # type: ignore[no-untyped-call]

    gevent.spawn(end)


def _api_key() -> str | None:
    return os.environ.get(_plan.scenario.api_key_env) if _plan.scenario.api_key_env else None
