"""The command `archipelago load`."""

import argparse
import os
import socket
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests.records import RecordsError, read_run
from loadtests.report import RESULT_FILE, read_result, write_report
from loadtests.run import LoadError, run
from loadtests.scenario import Scenario
from loadtests.scenario_reading import ScenarioError, parse_scenario, read_scenario, shipped_names
from loadtests.traces import TraceError

_MAX_PORT = 65535
_OPTIONS = {
    "url": "--url",
    "model": "--model",
    "duration_s": "--duration",
    "workers": "--workers",
    "seed": "--seed",
    "control.url": "--control",
    "check_text": "--reference",
}


def add_commands(commands: Any) -> None:
    """Add `load` to the command line."""
    load = commands.add_parser("load", help="send requests as a scenario says, and judge the answers")
    load.add_argument("scenario", metavar="SCENARIO", help=f"a YAML file, or one of {', '.join(shipped_names())}")
    load.add_argument("--url", metavar="URL", help="the endpoint, without /v1 (default: the scenario's)")
    load.add_argument("--model", metavar="M", help="the model to ask for (default: the first that /v1/models names)")
    load.add_argument(
        "--duration", metavar="S", type=float, help="seconds that requests arrive, instead of the scenario's"
    )
    load.add_argument("--workers", metavar="N", type=int, help="processes of the client")
    load.add_argument("--seed", metavar="N", type=int, help="other arrivals, lengths and prompts of the same kind")
    load.add_argument("--reference", metavar="RECORDS", help="the records of a run whose texts these must equal")
    load.add_argument("--control", metavar="URL", help="Archipelago's control API, to show the fleet's GPUs over time")
    load.add_argument("--out", metavar="DIR", type=Path, help="where the results go (default: load/NAME-TIME)")
    load.add_argument("--ui", metavar="PORT", type=int, help="show Locust's own page on this port meanwhile")
    load.set_defaults(run=_load)


def _load(arguments: argparse.Namespace) -> int:
    try:
        scenario = _changed(read_scenario(arguments.scenario, os.environ), arguments)
        _check_ui(arguments.ui)
        out_dir = arguments.out or Path("load", f"{scenario.name}-{datetime.now():%Y%m%d-%H%M%S}")
        _say(f"{scenario.name}: {scenario.duration_s:g} s against {scenario.url}; results in {out_dir}")
        records = run(scenario, out_dir, ui_port=arguments.ui)
    except (LoadError, ScenarioError, TraceError, RecordsError) as error:
        _complain(str(error))
        return 1
    return _told(records, out_dir)


def _changed(scenario: Scenario, arguments: argparse.Namespace) -> Scenario:
    """The scenario with what the command line says instead; it is looked at again as a whole. Raises ScenarioError."""
    told = scenario.model_dump(exclude_unset=True)
    given = {
        "url": arguments.url,
        "model": arguments.model,
        "duration_s": arguments.duration,
        "workers": arguments.workers,
        "seed": arguments.seed,
        "control": arguments.control and {**(told.get("control") or {}), "url": arguments.control},
        "check_text": arguments.reference and str(Path(arguments.reference).resolve()),
    }
    values = told | {name: value for name, value in given.items() if value is not None}
    path = Path(arguments.scenario).resolve()
    try:
        return parse_scenario(values, path, {})
    except ScenarioError as error:  # the scenario itself has been read: it is an option that is wrong
        lines = (f"{_OPTIONS.get(field, f'{path}: {field}')}: {problem}" for field, problem in error.problems)
        raise ScenarioError("\n".join(lines)) from error


def _check_ui(port: int | None) -> None:
    """Whether Locust could show its page there; it would tell of it with a traceback. Raises LoadError."""
    if port is not None and not (0 < port <= _MAX_PORT and _is_free(port)):
        raise LoadError(f"--ui: nothing can listen on {port} now; give a free port from 1 to {_MAX_PORT}")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _told(path: Path, out_dir: Path) -> int:
    """Print what came of it; 1 where the client could not keep up, so that its figures are worth nothing."""
    found = read_run(path)
    counts = Counter(record.outcome for record in found.records)
    _say(f"{len(found.records)} requests: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    if "texts_compared" in found.header:
        _say(f"  texts compared with those of the reference run: {found.header['texts_compared']}")
    for event in found.events:
        _say(f"  at {event.at_s:.1f} s {event.kind} {event.what}: {event.outcome}; {event.detail or ''}".rstrip("; "))
    page = write_report(path, out_dir)
    doubts = read_result(page.with_name(RESULT_FILE))["invalid"]
    for doubt in doubts:
        _complain(f"this run is invalid: {doubt}")
    _say(f"report: {page}")
    return 1 if doubts else 0


def _say(text: str) -> None:
    Console(highlight=False, markup=False).print(text, soft_wrap=True)


def _complain(text: str) -> None:
    Console(stderr=True, highlight=False, markup=False).print(f"archipelago: {text}", soft_wrap=True)
