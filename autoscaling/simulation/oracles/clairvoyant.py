"""Policies that know the trace: the best fleet that never changes, and the best plan of changes.

The plan is the dynamic programme's, run again in the simulator for the price of a miss at which it just keeps the SLO,
and then made cheaper by hand: changes are moved in time as long as the SLO is kept. So it can be done, and need not be
the cheapest that can be; `bound` says how much cheaper another could be.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from autoscaling.capacity.performance import Performance
from autoscaling.observation import Pools, gpus_of, pools_of
from autoscaling.simulation.oracles.programme import Programme, lead
from autoscaling.simulation.oracles.scripted import Scripted, Steps
from autoscaling.simulation.oracles.trials import MINUTE_S, Trials, promising, trials
from autoscaling.simulation.rivals.tuning import rank
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace
from placement import Shape

_PRICES = (1.0, 1e5)  # GPU-seconds for a missed request: from hardly any to any
_HALVINGS = 9
_STATICS = 6  # that are run from the initial fleet
_SHIFT_TICKS = (8, 4, 2, 1)
_ROUNDS = 3
_SEED = 0
_EXACT_S = 1e-6


def best_static(scenario: Scenario, trace: Trace, performance: Performance) -> Scripted:
    """The cheapest fleet that is taken on at the first tick and kept, and keeps the SLO."""
    tried = trials(trace, scenario, promising(scenario, trace, performance))
    return Scripted(steps=min(_statics(tried, scenario), key=_Judge(scenario, trace).rank), name="best-static")


def clairvoyant(scenario: Scenario, trace: Trace, performance: Performance, *, repartition: bool = True) -> Scripted:
    """The cheapest plan that keeps the SLO; without `repartition`, of the initial shapes only.

    With it, it is also compared with that, since the programme knows more of what one shape does than of changes.
    """
    judge, initial = _Judge(scenario, trace), tuple(scenario.initial)
    choices = [initial, promising(scenario, trace, performance)] if repartition else [initial]
    plans = [plan for shapes in choices for plan in _plans(scenario, trace, shapes, judge)]
    best = _polished(min(plans, key=judge.rank), judge, scenario)
    return Scripted(steps=best, name="clairvoyant" if repartition else "clairvoyant-no-repartition")


def _plans(scenario: Scenario, trace: Trace, shapes: Sequence[Shape], judge: "_Judge") -> Iterator[Steps]:
    """Fleets of these shapes that never change, and the programme's plans around the price that just keeps the SLO."""
    tried = trials(trace, scenario, shapes)
    yield from _statics(tried, scenario)
    programme = Programme(tried, scenario)
    low, high = np.log(_PRICES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        steps = scripted(programme.plan(float(np.exp(middle))), scenario)
        yield steps
        low, high = (low, middle) if judge.keeps(steps) else (middle, high)


def scripted(plan: Sequence[Pools], scenario: Scenario) -> Steps:
    """Targets such that `plan`, which says what shall serve in every minute, does.

    A replica is wanted as long as it must serve, and before that for as long as it starts. Where both what runs and
    what is to come have no room, what comes has to wait.
    """
    shapes = {shape: lead(scenario, shape) for pools in plan for shape in pools}
    changes_s = [minute * MINUTE_S for minute in range(1, len(plan)) if plan[minute] != plan[minute - 1]]
    times_s = sorted(
        {0.0, *changes_s, *(max(0.0, at_s - early_s) for at_s in changes_s for early_s in shapes.values())}
    )
    steps: list[tuple[float, Pools]] = []
    for at_s in times_s:
        now = plan[int(at_s // MINUTE_S)]
        wanted = {
            shape: max(pools.get(shape, 0) for pools in _between(plan, at_s, at_s + early_s))
            for shape, early_s in shapes.items()
        }
        target = pools_of(wanted if gpus_of(wanted) <= scenario.max_gpus else now)
        if not steps or steps[-1][1] != target:
            steps.append((at_s, target))
    return tuple(steps)


def _between(plan: Sequence[Pools], from_s: float, until_s: float) -> Sequence[Pools]:
    """What serves in the minutes that the two times are in, with room for rounding."""
    return plan[int((from_s + _EXACT_S) // MINUTE_S) : int((until_s + _EXACT_S) // MINUTE_S) + 1]


def _statics(tried: Trials, scenario: Scenario) -> Iterator[Steps]:
    """Fleets that keep the SLO when they run from the start, cheapest first; else those that come nearest."""
    may_miss = (1 - scenario.slo.percentile) * tried.arrivals.sum()
    missed = tried.missed.sum(axis=1)
    order = sorted(
        range(len(tried.fleets)), key=lambda row: (max(0.0, missed[row] - may_miss), gpus_of(tried.fleets[row]))
    )
    for row in order[:_STATICS]:
        yield ((0.0, tried.fleets[row]),)


class _Judge:
    """Runs plans, each once."""

    def __init__(self, scenario: Scenario, trace: Trace) -> None:
        self._scenario, self._trace = scenario, trace
        self._known: dict[tuple[tuple[float, tuple[tuple[Shape, int], ...]], ...], tuple[float, float]] = {}

    def rank(self, steps: Steps) -> tuple[float, float]:
        """Lower is better."""
        key = tuple((at_s, tuple(pools.items())) for at_s, pools in steps)
        if key not in self._known:
            result = run(self._trace, self._scenario, Scripted(steps=steps, name="tried"), _SEED)
            self._known[key] = rank(result, self._scenario.slo.percentile)
        return self._known[key]

    def keeps(self, steps: Steps) -> bool:
        """Whether enough requests keep the SLO."""
        return self.rank(steps)[0] == 0


def _polished(best: Steps, judge: _Judge, scenario: Scenario) -> Steps:
    """The plan with its changes moved or left out, one by one, while that is better."""
    for _ in range(_ROUNDS):
        before = best
        for at in range(1, len(best)):
            for changed in _moved(best, at, scenario.tick_s):
                if judge.rank(changed) < judge.rank(best):
                    best = changed
                    break
        if best == before:
            break
    return best


def _moved(steps: Steps, at: int, tick_s: float) -> Iterator[Steps]:
    """The same without change `at`, or with it some ticks earlier or later, in between its neighbours."""
    if at >= len(steps):
        return
    yield steps[:at] + steps[at + 1 :]
    from_s, pools = steps[at]
    after_s = steps[at + 1][0] if at + 1 < len(steps) else float("inf")
    grows = gpus_of(pools) > gpus_of(steps[at - 1][1])
    for ticks in _SHIFT_TICKS:
        moved_s = from_s + (ticks if grows else -ticks) * tick_s
        if steps[at - 1][0] < moved_s < after_s:
            yield (*steps[:at], (moved_s, pools), *steps[at + 1 :])
