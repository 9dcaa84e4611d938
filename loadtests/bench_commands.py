"""The commands `archipelago bench report`, `compare` and `gate`. They read files and ask no server."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtests.compare import NotComparableError, compare, comparison_table
from loadtests.gate import Check, GateError, check, read_limits
from loadtests.records import RecordsError
from loadtests.report import RESULT_FILE, ResultError, read_result, write_report
from loadtests.report_html import headline, verdict

FAILED, BAD_INPUT = 1, 2
NARROWEST = 140  # columns; where there is no terminal rich would wrap at 80
Command = Callable[[argparse.Namespace, Console], int]

REPORT_EXAMPLES = """\
examples:
  archipelago bench report runs/spike/records.jsonl                   beside the records
  archipelago bench report runs/spike/records.jsonl --out reports     result.json and report.html in reports
"""
COMPARE_EXAMPLES = """\
examples:
  archipelago bench compare before/result.json after/result.json
  archipelago bench compare a/result.json b/result.json --json | jq '.differences[] | select(.verdict == "worse")'
Runs with the same schedule are compared minute by minute, which sees smaller differences. Ends with 2 where the runs
are not valid or not comparable; --anyway compares them all the same.
"""
GATE_EXAMPLES = """\
example of slo.yaml:
  attainment: 99%
  ttft_p99: 2s
  tpot_p95: 50ms
  failed: 0.1%          without this line no request may fail
  lost_streams: 0
  classes:
    chat: {ttft_p95: 500ms}
Ends with 0 when all limits are kept, with 1 when one is not or the run is not valid, with 2 when a file is wrong.
"""


def add_commands(commands: Any) -> None:
    """Add `bench` to the command line; `commands` are the subparsers of argparse."""
    bench = commands.add_parser("bench", help="make, compare and judge the results of load tests")
    parts = bench.add_subparsers(title="commands", required=True, metavar="COMMAND")

    report = _part(parts, "report", "figures and a page from the records of a run", REPORT_EXAMPLES, _report)
    report.add_argument("records", metavar="RECORDS", type=Path, help="the JSONL file that `archipelago load` wrote")
    report.add_argument("--out", metavar="DIR", type=Path, help="write there (default: beside the records)")

    comparer = _part(parts, "compare", "is one run better than another, or is it chance", COMPARE_EXAMPLES, _compare)
    comparer.add_argument("a", metavar="A.json", type=Path, help="the result to compare with")
    comparer.add_argument("b", metavar="B.json", type=Path, help="the result that may be better or worse")
    comparer.add_argument("--anyway", action="store_true", help="compare runs that are not valid or not comparable")
    comparer.add_argument("--seed", metavar="N", type=int, default=0, help="of the resampling (default 0)")
    comparer.add_argument("--json", action="store_true", help="print plain values instead of a table")

    gate = _part(parts, "gate", "hold a result against limits, for a pipeline", GATE_EXAMPLES, _gate)
    gate.add_argument("result", metavar="result.json", type=Path)
    gate.add_argument("limits", metavar="slo.yaml", type=Path)


def _part(parts: Any, name: str, summary: str, examples: str, run: Command) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parts.add_parser(
        name,
        help=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_guarded(name, run))
    return command


def _guarded(name: str, run: Command) -> Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments, _console())
        except (GateError, NotComparableError, OSError, RecordsError, ResultError) as error:
            console = Console(stderr=True, highlight=False, markup=False)
            console.print(f"archipelago bench {name}: {error}", soft_wrap=True)
            return BAD_INPUT

    return guarded


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=NARROWEST)


def _report(arguments: argparse.Namespace, console: Console) -> int:
    page = write_report(arguments.records, arguments.out or arguments.records.parent)
    document = read_result(page.with_name(RESULT_FILE))
    console.print(f"[bold]{verdict(document)}[/bold]: {headline(document)}")
    for reason in document["invalid"]:
        console.print(f"  {escape(reason)}")
    console.print(f"{escape(str(page))}\n{escape(str(page.with_name(RESULT_FILE)))}", soft_wrap=True)
    return 0


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    rng = np.random.default_rng(arguments.seed)
    comparison = compare(read_result(arguments.a), read_result(arguments.b), rng, anyway=arguments.anyway)
    if arguments.json:
        console.print_json(json.dumps(asdict(comparison)))
    else:
        console.print(comparison_table(comparison))
    return 0


def _gate(arguments: argparse.Namespace, console: Console) -> int:
    checks = check(read_result(arguments.result), read_limits(arguments.limits))
    console.print(_gate_table(checks))
    return 0 if all(each.ok for each in checks) else FAILED


def _gate_table(checks: list[Check]) -> Table:
    table = Table()
    table.add_column("limit")
    table.add_column("asked", justify="right")
    table.add_column("measured", justify="right", overflow="fold")
    table.add_column("")
    for each in checks:
        word = "[green]ok[/green]" if each.ok else "[red]failed[/red]"
        table.add_row(escape(each.name), each.limit, escape(each.value), word)
    return table
