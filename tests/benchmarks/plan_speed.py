"""How long a plan takes, and how much memory: python tests/benchmarks/plan_speed.py [--peer-python PATH]

Everything is measured in one run on one machine: a cold process with the command line, warm plans as a library, and
NVIDIA aiconfigurator (`pip install archipelago[peers]`, or another interpreter that has it) asked for a plan of the
same model, GPUs, lengths and limit: `peer_plan.py` tells what that plan is. Its step engine alone, for the shapes and
batches of our plan, is timed beside it: it gives no memory, no replicas, no layouts, no tails.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
_PEER_ROUNDS = {"plan": 3, "command": 2, "steps": 5}  # the first of them cold
_PEER_SCRIPT = Path(__file__).with_name("peer_plan.py")
_PEER_PLANS = (
    ("plan", "aiconfigurator-core, plan"),
    ("command", "aiconfigurator, its command's plan"),
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What both planners are asked for; `peer_model` is the name of the config that the peer ships."""

    model: str
    peer_model: str
    machine: str
    system: str
    machines: int
    requests_per_s: float
    tpot_ms: float

    @property
    def gpus(self) -> int:
        return 8 * self.machines


_DENSE = Case(
    model="meta-llama/Llama-3.1-70B",
    peer_model="meta-llama/Meta-Llama-3.1-70B",
    machine="dgx-h100",
    system="h100_sxm",
    machines=4,
    requests_per_s=8.0,
    tpot_ms=30.0,
)
_EXPERTS = Case(
    model="deepseek-ai/DeepSeek-V3",
    peer_model="deepseek-ai/DeepSeek-V3",
    machine="dgx-h200",
    system="h200_sxm",
    machines=128,
    requests_per_s=100.0,
    tpot_ms=50.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    """The interpreter that has aiconfigurator."""

    python: str

    def missing(self, package: str) -> bool:
        """Whether `package` cannot be imported there."""
        return (
            subprocess.run([self.python, "-c", f"import {package}"], capture_output=True, check=False).returncode != 0
        )

    def rounds_s(self, what: str, case: Case, **more: object) -> Sequence[float]:
        """Seconds of each round of `what`, one of the words of `peer_plan.py`; the first is a cold process's."""
        question = {
            "what": what,
            "rounds": _PEER_ROUNDS[what],
            "model": case.peer_model,
            "system": case.system,
            "engine": "vllm",
            "gpus": case.gpus,
            "tokens_in": _TOKENS_IN,
            "tokens_out": _TOKENS_OUT,
            "tpot_ms": case.tpot_ms,
            **more,
        }
        done = subprocess.run(
            [self.python, str(_PEER_SCRIPT)], input=json.dumps(question), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"The peer failed: {done.stderr.strip()[-500:]}")
        answer: Sequence[float] = json.loads(done.stdout.strip().splitlines()[-1])["rounds_s"]
        return answer


def main() -> int:
    """Measure, print the table, and end with 1 when a bar is missed."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--peer-python", metavar="PATH", default=sys.executable, help="one that has the peer")
    arguments.add_argument("--rounds", metavar="N", type=int, default=20, help="of warm plans (default 20)")
    given = arguments.parse_args()
    dense, dense_s = _warm(_DENSE, given.rounds)
    experts, experts_s = _warm(_EXPERTS, max(3, given.rounds // 4))
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
    peer = _Peer(python=given.peer_python)
    if peer.missing("aiconfigurator_core"):
        _say(f"aiconfigurator_core: not installed for {peer.python}; see --peer-python")
    else:
        for text in _beside_peer(peer, dense, dense_s, experts_s, cold_s):
            _say(text)
    return 1 if any(line.bar is not None and line.value > line.bar for line in lines) else 0


def _warm(case: Case, rounds: int) -> tuple[Plan, float]:
    """A plan, and the median of seconds that it takes once everything is loaded."""
    model = ModelSpec.from_hf_config(config(case.model) or {}, name=case.model)
    cluster = cluster_of(case.machine, case.machines)
    workload = Workload(
        input_tokens=Lengths(mean_tokens=_TOKENS_IN),
        output_tokens=Lengths(mean_tokens=_TOKENS_OUT),
        requests_per_s=case.requests_per_s,
    )

    def make() -> Plan:
        return plan(model, cluster, workload, Slo(tpot_s=case.tpot_ms / _MS))

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


def _beside_peer(peer: _Peer, dense: Plan, dense_s: float, experts_s: float, cold_s: float) -> Iterator[str]:
    """Lines of the second table, each as soon as it is measured."""
    yield ""
    yield f"{'beside the peer':<66}{'peer':>12}{'ours':>10}{'ratio':>7}"
    for what, title in _PEER_PLANS:
        if what == "command" and peer.missing("aiconfigurator"):
            yield f"{title}: not installed for {peer.python}"
            continue
        for case, warm_s in ((_DENSE, dense_s), (_EXPERTS, experts_s)):
            name = f"{case.model.partition('/')[2]} on {case.gpus} GPUs"
            rounds_s = peer.rounds_s(what, case)
            if case is _DENSE:
                yield _ratio(f"{title}, {name}, cold", rounds_s[0], cold_s)
            yield _ratio(f"{title}, {name}, warm", statistics.median(rounds_s[1:]), warm_s)
    shapes = [
        (prediction.shape.tp, prediction.shape.pp, [max(1, round(load.running)) for load in prediction.loads])
        for prediction in dense.predictions
        if prediction.fits
    ]
    rounds_s = peer.rounds_s("steps", _DENSE, shapes=shapes)
    yield _ratio("aiconfigurator-core, steps of our shapes and batches, cold", rounds_s[0], cold_s)
    yield _ratio("aiconfigurator-core, steps of our shapes and batches, warm", statistics.median(rounds_s[1:]), dense_s)


def _ratio(what: str, peer_s: float, ours_s: float) -> str:
    return f"{what:<66}{f'{peer_s * _MS:.0f} ms':>12}{f'{ours_s * _MS:.0f} ms':>10}{peer_s / ours_s:>7.1f}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
