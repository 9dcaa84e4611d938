"""The best options once more, request by request: do the tails keep the SLO, or does the rate need another replica?"""

from collections.abc import Callable, Sequence

import numpy as np

from placement.cost.prediction import MAX_RUNNING, Question
from placement.cost.simulation import Tails, lengths, poisson_arrivals, simulate, step_table
from placement.cost.simulation_replica import StepTable, slowed
from placement.planning.chance import expected_cost
from placement.planning.option import Option, with_replicas, with_tails
from placement.workload import Slo

_CHECKED = 4  # options at least: a few milliseconds each
_REQUESTS = 400
_SETTLING = 100  # a run starts empty
_SEED = 20260101  # the same question gets the same answer
_COARSE = 8  # replicas at most for each one that is added to raise the chance
_MOST_TIMES, _MOST_ADDED = 4, 8  # replicas; where these do not help, the tail is not that of a queue


def best_assured(
    ranked: Sequence[Option], question: Question, slo: Slo, cost: Callable[[Option], tuple[float, ...]]
) -> list[Option]:
    """`ranked` without those whose tails break the SLO, ordered by `cost` again.

    Checking can only make an option dearer, so it ends when what was checked costs less than what was not; a few more
    are checked to compare with. Those that have no room for the replicas that their tails need are left out as well.
    """
    checked: list[Option] = []
    for index, option in enumerate(ranked):
        if index >= _CHECKED and checked and min(map(cost, checked)) <= cost(option):
            return sorted([*checked, *ranked[index:]], key=cost)
        most = option.most_replicas
        if option.replicas <= most and (found := assured(option, question, slo, most)).meets_slo:
            checked.append(found)
    return sorted(checked, key=cost)


def assured(option: Option, question: Question, slo: Slo, most_replicas: int | None = None) -> Option:
    """`option` with the tails of its replicas at the workload's rate, and with as many replicas more as they need.

    With room for `most_replicas`, a few more where the chance of keeping the SLO is worth them; it does not meet the
    SLO where they would need more than that. Without, the fewest. For a workload without a rate there is nothing to
    queue, and the option stays as it is.
    """
    workload = question.workload
    rate = workload.requests_per_s
    if rate is None:
        return option
    table = slowed(step_table(question, option.shape, option.prediction.region), option.load.measured_factor)

    def checked(replicas: int) -> Option:
        tails = _run(table, option, question, slo, rate / replicas)
        return with_tails(with_replicas(option, replicas, workload, slo), tails, slo)

    most = option.replicas * _MOST_TIMES + _MOST_ADDED
    if most_replicas is None:
        return _fewest(checked, option.replicas, most)
    most = min(most, most_replicas)
    return _worth_their_cost(_fewest(checked, option.replicas, most), checked, most)


def _fewest(checked: Callable[[int], Option], first: int, most: int) -> Option:
    """The fewest replicas from `first` on whose tails keep the SLO; the last one tried where none up to `most` do."""
    too_few, step, found = first - 1, 1, checked(first)
    while not found.meets_slo and found.replicas < most:
        too_few, step = found.replicas, step * 2
        found = checked(min(too_few + step // 2, most))
    while found.meets_slo and found.replicas - too_few > 1:
        middle = checked((too_few + found.replicas) // 2)
        too_few, found = (too_few, middle) if middle.meets_slo else (middle.replicas, found)
    return found


def _worth_their_cost(found: Option, checked: Callable[[int], Option], most: int) -> Option:
    """`found` with more replicas while the chance that they bring outweighs what they cost."""
    while found.meets_slo and found.replicas < most:
        replicas, cost = min(found.replicas + max(1, found.replicas // _COARSE), most), _expected_gpus(found)
        if replicas * found.shape.gpus >= cost:  # not worth it were it wholly sure: no need to simulate it
            break
        more = checked(replicas)
        if _expected_gpus(more) >= cost:
            break
        found = more
    return found


def _expected_gpus(option: Option) -> float:
    return float(expected_cost(option.gpus, option.chance))


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
