"""The best options once more, request by request: do the tails keep the SLO, or does the rate need another replica?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from placement.option import Option
from placement.prediction import MAX_RUNNING, Question
from placement.simulation import Tails, lengths, poisson_arrivals, simulate, step_table
from placement.simulation_replica import StepTable, slowed
from placement.workload import Slo

_REQUESTS = 400
_SETTLING = 100  # a run starts empty
_SEED = 20260101  # the same question gets the same answer
_MOST_ADDED = 8  # replicas; where these do not help, the tail is not that of a queue


def best_assured(options: Sequence[Option], question: Question, slo: Slo) -> list[Option]:
    """Those of `options` whose tails keep the SLO, each with the replicas that this takes."""
    return [checked for option in options if (checked := assured(option, question, slo)).meets_slo]


def assured(option: Option, question: Question, slo: Slo) -> Option:
    """`option` with the tails of its replicas at the workload's rate, and with as many replicas more as they need.

    For a workload without a rate there is nothing to queue, and the option stays as it is.
    """
    rate = question.workload.requests_per_s
    if rate is None:
        return option
    table = slowed(step_table(question, option.shape, option.prediction.region), option.load.measured_factor)
    checked = option
    for added in range(_MOST_ADDED + 1):
        replicas = option.replicas + added
        tails = _run(table, option, question, slo, rate / replicas)
        checked = replace(option, replicas=replicas, tails=tails)
        if keeps(tails, slo):
            return checked
    return replace(checked, meets_slo=False)


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
