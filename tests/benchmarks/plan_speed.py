"""How long a plan takes, and how much memory: python tests/benchmarks/plan_speed.py [--peer-python PATH]

Everything is measured in one run on one machine: a cold process with the command line, warm plans as a library, and
NVIDIA aiconfigurator's step engine (`pip install archipelago[peers]`, or another interpreter that has it) asked for the
same shapes and batches. The peer's engine gives times of steps only: no memory, no replicas, no layouts, no tails.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.clusters.machines import cluster_of
from placement.models.catalogue import config
from placement.models.model import ModelSpec
from placement.planning.plan import Plan, plan
from placement.workload import Lengths, Slo, Workload

_ROOT = Path(__file__).parents[2]
_TOKENS_IN, _TOKENS_OUT = 1024, 256
_COMMAND = ["plan", "meta-llama/Llama-3.1-70B", "--cluster", "4x dgx-h100", "--rate", "8/s", "--tpot", "30ms"]
_CLI = "import sys; from deployments.cli import main; sys.exit(main(sys.argv[1:]))"
_MS = 1e3
_KIB = 1024

# Reads shapes and their batches, and prints seconds: of the first compilation, and of each round over all of them.
_PEER = """
import json, sys, time
question = json.load(sys.stdin)
started = time.perf_counter()
from aiconfigurator_core.sdk.engine import EngineHandle
def compiled(tp, pp):
    return EngineHandle.compile(question["model"], "h100_sxm", "vllm", tp_size=tp, pp_size=pp)
compiled(*question["shapes"][0][:2])
first_s = time.perf_counter() - started
rounds = []
for _ in range(question["rounds"]):
    started = time.perf_counter()
    for tp, pp, batches in question["shapes"]:
        engine = compiled(tp, pp)
        for batch in batches:
            engine.mixed_step_latency(question["tokens_in"], batch, question["tokens_in"], question["tokens_out"])
            engine.decode_step_latency(batch, question["tokens_in"], question["tokens_out"])
    rounds.append(time.perf_counter() - started)
print(json.dumps({"first_s": first_s, "rounds": rounds}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table; `bar` is the most that is accepted, None where nothing is."""

    what: str
    value: float
    unit: str
    bar: float | None = None

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{self.bar:.0f} {self.unit}"
        ratio = "" if self.bar is None else f"{self.value / self.bar:.2f}"
        return f"{self.what:<66}{f'{self.value:.1f} {self.unit}':>12}{bar:>10}{ratio:>7}"


def main() -> int:
    """Measure, print the table, and end with 1 when a bar is missed."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--peer-python", metavar="PATH", default=sys.executable, help="one that has the peer")
    arguments.add_argument("--rounds", metavar="N", type=int, default=20, help="of warm plans (default 20)")
    given = arguments.parse_args()
    dense, dense_s = _warm("meta-llama/Llama-3.1-70B", "dgx-h100", 4, 8.0, 0.03, given.rounds)
    experts, experts_s = _warm("deepseek-ai/DeepSeek-V3", "dgx-h200", 128, 100.0, 0.05, max(3, given.rounds // 4))
    cold_s, cold_bytes = _cold()
    lines = [
        Line(what="cold process: archipelago plan, Llama 70B, 32 GPUs", value=cold_s * _MS, unit="ms", bar=1500),
        Line(what="cold process: peak resident memory", value=cold_bytes / 2**20, unit="MiB", bar=200),
        Line(what=f"warm plan: Llama 70B, 32 GPUs ({_size(dense)})", value=dense_s * _MS, unit="ms", bar=100),
        Line(what=f"warm plan: DeepSeek-V3, 1,024 GPUs ({_size(experts)})", value=experts_s * _MS, unit="ms", bar=1000),
    ]
    _say(f"{'':<66}{'measured':>12}{'bar':>10}{'ratio':>7}")
    for line in lines:
        _say(str(line))
    for text in _peer_lines(dense, dense_s, cold_s, given.peer_python):
        _say(text)
    return 1 if any(line.bar is not None and line.value > line.bar for line in lines) else 0


def _warm(name: str, machine: str, count: int, rate: float, tpot_s: float, rounds: int) -> tuple[Plan, float]:
    """A plan, and the median of seconds that it takes once everything is loaded."""
    model = ModelSpec.from_hf_config(config(name) or {}, name=name)
    cluster = cluster_of(machine, count)
    workload = Workload(
        input_tokens=Lengths(mean_tokens=_TOKENS_IN),
        output_tokens=Lengths(mean_tokens=_TOKENS_OUT),
        requests_per_s=rate,
    )

    def make() -> Plan:
        return plan(model, cluster, workload, Slo(tpot_s=tpot_s))

    return make(), _median_s(make, rounds)


def _median_s(run: Callable[[], object], rounds: int) -> float:
    times_s = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s)


def _cold(rounds: int = 5) -> tuple[float, int]:
    """Median of seconds and the most bytes of processes that make one plan."""
    times_s, most_bytes = [], 0
    for _ in range(rounds):
        started_s = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", _CLI, *_COMMAND], cwd=_ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        times_s.append(time.perf_counter() - started_s)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, _COMMAND)
        most_bytes = max(most_bytes, usage.ru_maxrss * _KIB)
    return statistics.median(times_s), most_bytes


def _size(found: Plan) -> str:
    fitting = [prediction for prediction in found.predictions if prediction.fits]
    return f"{len(fitting)} shapes, {sum(len(prediction.loads) for prediction in fitting)} batches"


def _peer_lines(found: Plan, warm_s: float, cold_s: float, python: str) -> Sequence[str]:
    peer = _peer(found, python)
    if peer is None:
        return [f"aiconfigurator_core: not installed for {python}; see --peer-python"]
    rounds_s = statistics.median(peer["rounds"])
    first_s = peer["first_s"] + peer["rounds"][0]
    return [
        "",
        f"{'the same shapes and batches':<66}{'peer':>12}{'ours':>10}{'ratio':>7}",
        f"{'aiconfigurator step engine, cold (its import to the first answer)':<66}"
        f"{f'{first_s * _MS:.0f} ms':>12}{f'{cold_s * _MS:.0f} ms':>10}{first_s / cold_s:>7.2f}",
        f"{'aiconfigurator step engine, warm (compile each shape, two steps)':<66}"
        f"{f'{rounds_s * _MS:.0f} ms':>12}{f'{warm_s * _MS:.0f} ms':>10}{rounds_s / warm_s:>7.2f}",
    ]


def _peer(found: Plan, python: str) -> dict[str, Any] | None:
    """Seconds that the peer takes for the shapes and batches of `found`; None where it is not installed."""
    if subprocess.run([python, "-c", "import aiconfigurator_core"], capture_output=True, check=False).returncode:
        return None
    question = {
        "model": "meta-llama/Meta-Llama-3.1-70B",  # the name of the config that the peer ships
        "tokens_in": _TOKENS_IN,
        "tokens_out": _TOKENS_OUT,
        "rounds": 5,
        "shapes": [
            (prediction.shape.tp, prediction.shape.pp, [max(1, round(load.running)) for load in prediction.loads])
            for prediction in found.predictions
            if prediction.fits
        ],
    }
    done = subprocess.run(
        [python, "-c", _PEER], input=json.dumps(question), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"The peer failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
