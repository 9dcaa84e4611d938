"""How long questions about capacity and transitions take: python tests/benchmarks/capacity_speed.py

Llama-3.1-70B on 4x dgx-h100. CPU time of one core, so that other load on the machine counts for little. Cold is a
point of the lattice that nobody has asked for; a question between points needs two to five of them once.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoscaling_builders import TP2, TP4, TP4PP2, TP8, demand, site, slo

from autoscaling.capacity.performance import PlannedPerformance
from autoscaling.capacity.times import times_of
from autoscaling.capacity.transitions import transition
from placement.shape import Shape

_SHAPES = (TP2, TP4, TP8, TP4PP2)
_US, _MS = 1e6, 1e3
_ROUNDS = 4


def main() -> None:
    """Print one line per kind of question, with the share of its limit that it takes."""
    fresh = [PlannedPerformance(site()) for _ in range(_ROUNDS)]
    sys.stdout.write(f"{'question':<58}{'best':>12}{'limit':>10}{'ratio':>8}\n")
    for replicas in (1, 2, 4, 8):
        cold = [min(_spent_s(_capacity(each, shape, replicas)) for each in fresh) for shape in _SHAPES]
        _print(f"capacity, cold, among {replicas} replicas, median of shapes", statistics.median(cold) * _MS, "ms", 40)
    performance = fresh[0]
    again = demand(4)
    performance.capacity(TP4, again, slo(), replicas=2)
    warm = [_spent_s(lambda: performance.capacity(TP4, again, slo(), replicas=2), 1000) for _ in range(9)]
    _print("capacity, asked before", min(warm) * _US, "us", 20)
    _between_points(performance)
    pools = {TP4: 3, TP8: 1}
    performance.attainment(pools, demand(20), slo())
    shared = [_spent_s(lambda: performance.attainment(pools, demand(20), slo()), 300) for _ in range(9)]
    _print("attainment of two pools", min(shared) * _US, "us", 100)
    _transitions()


def _between_points(performance: PlannedPerformance) -> None:
    asked = [demand(4, 1100 + step / 10, 250) for step in range(900)]
    performance.capacity(TP4, asked[0], slo(), replicas=2)
    iterator = iter(asked)
    target = slo()
    near = [_spent_s(lambda: performance.capacity(TP4, next(iterator), target, replicas=2), 100) for _ in range(9)]
    _print("capacity, new lengths between known points", min(near) * _US, "us", 100)


def _transitions() -> None:
    times = times_of(site())
    islands = (8,) * 128
    counts = iter(range(65, 10_000))
    more = [
        _spent_s(lambda: transition({TP4: 64}, {TP4: next(counts)}, gpus=1024, times=times, floor=0.5, islands=islands))
        for _ in range(9)
    ]
    _print("transition, 64 replicas on 1,024 GPUs", min(more) * _MS, "ms", 5)


def _capacity(performance: PlannedPerformance, shape: Shape, replicas: int) -> Callable[[], object]:
    return lambda: performance.capacity(shape, demand(4), slo(), replicas=replicas)


def _spent_s(question: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of one `question`."""
    begin_s = time.process_time()
    for _ in range(times):
        question()
    return (time.process_time() - begin_s) / times


def _print(what: str, value: float, unit: str, limit: float) -> None:
    sys.stdout.write(f"{what:<58}{f'{value:.1f} {unit}':>12}{f'{limit:g} {unit}':>10}{value / limit:>8.2f}\n")


if __name__ == "__main__":
    main()
