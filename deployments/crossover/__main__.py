"""The command `python -m deployments.crossover`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ray.exceptions import RayError
from rich.console import Console

from deployments.crossover.measure import ENGINE_ARGS, PASSES, PlacedElsewhereError, measure_cut, measure_links, ray_on
from deployments.crossover.namespaces import UNSHAPED, NamespaceError, Speed, SpeedError, islands, missing, parse_speed
from deployments.crossover.predict import ModelSize, compare
from deployments.crossover.record import Cut, Record, StepTime
from deployments.crossover.report import PlotError, document, plot, summary, table
from deployments.local_cluster import ClusterStartError
from deployments.tiny_models import cache_root, hf_config, make_model

# 394 MB of weights: a step takes tens of milliseconds of compute, as long as its sums need at some 100 Mbit/s. The
# smaller made models have a thirtieth of the weights or less: their steps would be communication alone.
MODEL = "bench-100m"
SPEEDS = (UNSHAPED, "2gbit", "1gbit", "500mbit", "300mbit", "100mbit", "50mbit", "20mbit")
VALUE_BYTES = 4  # float32: what the emulation's engine runs with
WIDE = 160  # columns; where there is no terminal rich would wrap the table at 80


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment, or report an earlier one again; returns the exit code."""
    arguments = parser().parse_args(argv)
    console = Console(width=WIDE, highlight=False, markup=False)
    complain = Console(stderr=True, width=WIDE, highlight=False, markup=False).print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torn down as after Ctrl-C
    try:
        if arguments.again is None:
            if (reason := missing()) is not None:
                complain(f"crossover: {reason}")
                return 1
            record = run(arguments.speeds, console)
        else:
            record = Record.from_json(arguments.again.read_text(encoding="utf-8"))
        report(record, arguments.out, console)
    except (NamespaceError, ClusterStartError, PlacedElsewhereError, PlotError, RayError, OSError) as error:
        complain(f"crossover: {error}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; islands and processes have been removed")
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m deployments.crossover",
        description="Measure and predict which cut of a model is faster at which speed of the link between two islands."
        " Takes 5 to 10 minutes on two cores; needs root, ip and tc. Keep the machine quiet.",
    )
    root.add_argument(
        "--speeds",
        type=_speeds,
        default=[parse_speed(text) for text in SPEEDS],
        metavar="S,S,...",
        help=f"speeds of the link; default {','.join(SPEEDS)}",
    )
    root.add_argument("--out", type=Path, default=Path("crossover"), metavar="DIR", help="default %(default)s")
    root.add_argument("--again", type=Path, metavar="FILE", help="report an earlier results.json; measures nothing")
    return root


def _speeds(text: str) -> list[Speed]:
    try:
        speeds = [parse_speed(part) for part in text.split(",")]
    except SpeedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if len({speed.name for speed in speeds}) < len(speeds):
        raise argparse.ArgumentTypeError(f"{text!r}: each speed only once")
    return speeds


def run(speeds: Sequence[Speed], console: Console) -> Record:
    """Measure everything.

    Raises:
        NamespaceError, ClusterStartError, PlacedElsewhereError: it could not be set up. Nothing is left.
    """
    start_s = time.monotonic()
    conditions = {
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "model": MODEL,
        "engine_args": dict(ENGINE_ARGS),
        "passes": PASSES,
    }
    say = console.print
    say(f"{os.cpu_count()} cores; load average over the minute before: {os.getloadavg()[0]:.2f}")
    model = str(make_model(MODEL, cache_root(os.environ)))
    with islands() as pair, ray_on(pair, os.environ) as where:
        say("probes of the link")
        links = tuple(measure_links(pair, where, speeds, say))
        steps: list[StepTime] = []
        for cut in Cut:
            say(f"{cut}: starting the engine")
            steps += measure_cut(cut, model, pair, where, speeds, say)
    conditions["took_s"] = round(time.monotonic() - start_s)
    return Record(conditions=conditions, links=links, steps=tuple(steps))


def report(record: Record, folder: Path, console: Console) -> None:
    """Print the table; write results.json, then crossover.png.

    Raises:
        PlotError: matplotlib is not installed; everything else has been written.
    """
    model = hf_config(record.conditions["model"])
    size = ModelSize(
        layers=model["num_hidden_layers"],
        hidden=model["hidden_size"],
        vocabulary=model["vocab_size"],
        value_bytes=VALUE_BYTES,
    )
    comparisons = compare(record, size)
    console.print(table(comparisons))
    console.print(summary(record, comparisons))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(document(record, comparisons), encoding="utf-8")
    plot(record, comparisons, folder / "crossover.png")
    console.print(f"written: {folder / 'results.json'}, {folder / 'crossover.png'}")


if __name__ == "__main__":
    sys.exit(main())
