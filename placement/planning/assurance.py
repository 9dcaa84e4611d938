"""The best options once more, request by request: do the tails keep the SLO, or does the rate need another replica?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from placement.cost.prediction import MAX_RUNNING, Question
from placement.cost.simulation import Tails, lengths, poisson_arrivals, simulate, step_table
from placement.cost.simulation_replica import StepTable, slowed
from placement.planning.option import Option
from placement.workload import Slo

_CHECKED = 4  # options at least: a few milliseconds each
_REQUESTS = 400
_SETTLING = 100  # a run starts empty
_SEED = 20260101  # the same question gets the same answer
_MOST_TIMES, _MOST_ADDED = 4, 8  # replicas; where these do not help, the tail is not that of a queue


def best_assured(
    ranked: Sequence[Option],
    question: Question,
    slo: Slo,
    cost: Callable[[Option], tuple[float, ...]],
    most_replicas: Callable[[Option], int],
) -> list[Option]:
    """`ranked` without those whose tails break the SLO, ordered by `cost` again.

    Checking can only make an option dearer, so it ends when what was checked costs less than what was not; a few more
    are checked to compare with. Those that have no room for the replicas that their tails need are left out as well.
    """
    checked: list[Option] = []
    for index, option in enumerate(ranked):
        if index >= _CHECKED and checked and min(map(cost, checked)) <= cost(option):
            return sorted([*checked, *ranked[index:]], key=cost)
        most = most_replicas(option)
        if option.replicas <= most and (found := assured(option, question, slo, most)).meets_slo:
            checked.append(found)
    return sorted(checked, key=cost)


def assured(option: Option, question: Question, slo: Slo, most_replicas: float = math.inf) -> Option:
    """`option` with the tails of its replicas at the workload's rate, and with as many replicas more as they need.

    It does not meet the SLO where more than `most_replicas` would be needed. For a workload without a rate there is
    nothing to queue, and the option stays as it is.
    """
    rate = question.workload.requests_per_s
    if rate is None:
        return option
    table = slowed(step_table(question, option.shape, option.prediction.region), option.load.measured_factor)

    def checked(replicas: int) -> Option:
        tails = _run(table, option, question, slo, rate / replicas)
        return replace(option, replicas=replicas, tails=tails, meets_slo=keeps(tails, slo))

    most = min(most_replicas, option.replicas * _MOST_TIMES + _MOST_ADDED)
    too_few, step, found = option.replicas - 1, 1, checked(option.replicas)
    while not found.meets_slo and found.replicas < most:
        too_few, step = found.replicas, step * 2
        found = checked(int(min(too_few + step // 2, most)))
    while found.meets_slo and found.replicas - too_few > 1:
        middle = checked((too_few + found.replicas) // 2)
        too_few, found = (too_few, middle) if middle.meets_slo else (middle.replicas, found)
    return found


def keeps(tails: Tails, slo: Slo) -> bool:
    """Whether enough requests of a run met the SLO, and the replica kept up."""
    return not tails.overloaded and not tails.unfinished_share and (tails.attainment or 0.0) >= slo.percentile


def _run(table: StepTable, option: Option, question: Question, slo: Slo, requests_per_s: float) -> Tails:
    generator = np.random.default_rng(_SEED)
    workload = question.workload
    return simulate(
        table,
        poisson_arrivals(requests_per_s, _REQUESTS, generator),
        lengths(workload.input_tokens, _REQUESTS, generator),
        lengths(workload.output_tokens, _REQUESTS, generator),
        room_tokens=option.prediction.room.tokens,
        max_running=MAX_RUNNING,
        slo=slo,
        settling=_SETTLING,
    )
