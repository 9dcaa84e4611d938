"""The autoscaler on a live system: python tests/benchmarks/live_autoscaling.py --out DIR [--case volume|shift|real]

A fleet on Ray Serve, Prometheus, and the autoscaler in mode auto, each a process as users start it; clients send
requests as they are due. The first two have a simulated engine, as fast as the planner predicts of a 72B model on
H100, and in real time: prices, SLO and clock are those of the real thing. The third has the real engine, on processors.

    volume   three times as many requests: the answer is another replica
    shift    prompts eight times as long, under a tight TTFT: no number of replicas is enough, a wider shape is
    real     three times as many requests for a model of 98.6 M parameters: the answer is another replica

Into DIR go, for each case, CASE.svg, CASE.txt (what `archipelago decisions` says) and all of it in results.json. Ends
with 1 where a request was lost or the answer was another one. Takes about 8 minutes a case; needs `prometheus`.
"""

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from live_cases import CASES, Experiment, perform
from live_plot import svg


def main() -> int:
    """Run the cases, write what happened, and say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        parser.error("no program `prometheus` is on the PATH; install it, such as with `apt install prometheus`")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Experiment] = {}
    for name in arguments.case or CASES:
        with TemporaryDirectory(prefix="archipelago-live-") as folder:
            found[name] = experiment = perform(CASES[name], Path(folder), prometheus)
        (arguments.out / f"{name}.svg").write_text(svg(experiment))
        (arguments.out / f"{name}.txt").write_text(experiment.decisions)
        _print(json.dumps(experiment.summary(), indent=2))
    results = {name: experiment.as_json() for name, experiment in found.items()}
    (arguments.out / "results.json").write_text(json.dumps(results))
    return int(not all(map(is_right, found.values())))


def is_right(experiment: Experiment) -> bool:
    """Whether the demand was answered as it must be, and nobody noticed anything but the speed."""
    kinds = [entry.decision.kind for entry in experiment.changes]
    return not experiment.lost and experiment.cured_s is not None and experiment.case.answer in kinds


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
