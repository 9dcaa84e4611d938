"""Where the fleet does worse than the model says, what is seen is believed: its rates count for less.

This is a safety net for what the slow corrections of step times have not learnt yet. A doubt fades within hours.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from autoscaling.observation import Observation, PoolLoad
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from placement import Shape

_LEAST_TRUST = 0.5
_FORGOTTEN = 0.99
_FADES_IN_S = 3600.0
_FAR_BELOW = 0.05  # of attainment, and below the SLO: seen within minutes. Less must last to be more than noise
_COUNTED_OVER_S = 600.0
_OFTENER = 1.3
_FEWEST_ARRIVALS = 50.0
_SEEN_FOR = 3.0  # times the patience for more GPUs: a backlog of the past is gone by then
# Before that nobody knows how bursty the arrivals are. What is missed may be for that, and so with every shape.
_KNOWN_AFTER_S = 360.0
_LOAD_STEP = 0.05
_HIGHEST_LOAD = 2.0


def doubting(
    memory: Memory, observation: Observation, model: Estimates, rules: Rules, passed_s: float, *, is_lopsided: bool
) -> Memory:
    """`memory` with the doubts after this tick. `model` is without any.

    `is_lopsided`: one replica has the queue, and the others have room.
    """
    spare_per_s = _spare_per_s(observation, model)
    # A peak leaves a queue, and the last window shows who was in it: that is not the model's fault.
    caught_up = -max(0.0, spare_per_s) * observation.window_s
    owed = max(caught_up, memory.owed - spare_per_s * passed_s)
    step_s, known_s = observation.history.step_s, _known_s(observation)
    doubts = {} if known_s - step_s < _KNOWN_AFTER_S <= known_s else _faded(memory.doubts, passed_s)
    memory = replace(memory, doubts=doubts, owed=owed)
    seen, demand = observation.attainment, observation.demand
    if not _is_settled(memory, observation, rules):
        return replace(memory, missed_s=0.0, arrived=0.0, late=0.0)
    if owed > caught_up:
        return replace(memory, missed_s=0.0)
    many = demand.requests_per_s * observation.window_s >= _FEWEST_ARRIVALS
    if seen is None or not many or is_lopsided or not model.keeps(observation.fleet.serving, (demand,)):
        return replace(memory, missed_s=0.0)  # nothing to hold against the model
    fades, arrivals = math.exp(-passed_s / _COUNTED_OVER_S), demand.requests_per_s * passed_s
    memory = replace(
        memory,
        missed_s=memory.missed_s + passed_s if seen < rules.slo.percentile - _FAR_BELOW else 0.0,
        arrived=memory.arrived * fades + arrivals,
        late=memory.late * fades + arrivals * (1 - seen),
    )
    if memory.missed_s >= _SEEN_FOR * rules.up_after_s:
        return _with_doubt(memory, observation, model, rules)
    if _are_too_many(memory.late, memory.arrived * (1 - rules.slo.percentile)):
        usual = replace(observation, attainment=1 - memory.late / memory.arrived)
        return replace(_with_doubt(memory, usual, model, rules), arrived=0.0, late=0.0)
    return memory


def _known_s(observation: Observation) -> float:
    """How much of the past is known."""
    return float(np.isfinite(observation.history.requests_per_s).sum()) * observation.history.step_s


def _spare_per_s(observation: Observation, model: Estimates) -> float:
    """Requests per second that the fleet could answer and that nobody asks."""
    serving, demand = observation.fleet.serving, observation.demand
    return (model.saturation_per_s(serving, demand) if serving else 0.0) - demand.requests_per_s


def _is_settled(memory: Memory, observation: Observation, rules: Rules) -> bool:
    """Whether no change is going on, or was so short ago that it explains what is seen."""
    if observation.fleet.changing or not observation.fleet.serving:
        return False
    change = memory.change
    if change is None or change.took_s is None:
        return True
    return observation.at_s >= change.at_s + change.took_s + observation.window_s + rules.up_after_s


def _are_too_many(late: float, allowed: float) -> bool:
    """Whether more requests were late than may be, by more than chance; late requests come in clusters."""
    return late > _OFTENER * allowed + 2 * math.sqrt(allowed)


def _with_doubt(memory: Memory, observation: Observation, model: Estimates, rules: Rules) -> Memory:
    trust = _trust(observation, model)
    shapes = {pool.shape for pool in _late(observation, rules)}
    if _known_s(observation) < _KNOWN_AFTER_S:
        shapes |= {*rules.shapes}
    doubted = {shape: min(trust, memory.doubts.get(shape, 1.0)) for shape in shapes}
    return replace(memory, doubts={**memory.doubts, **doubted})


def _late(observation: Observation, rules: Rules) -> tuple[PoolLoad, ...]:
    """Pools whose own times are over the SLO; all where that is not known."""
    slo = rules.slo
    late = tuple(
        pool
        for pool in observation.pools
        if (slo.ttft_s is not None and pool.ttft_s is not None and pool.ttft_s > slo.ttft_s)
        or (slo.tpot_s is not None and pool.tpot_s is not None and pool.tpot_s > slo.tpot_s)
    )
    return late or observation.pools


def _trust(observation: Observation, model: Estimates) -> float:
    """The factor at which the model would have said what is seen."""
    pools, demand, seen = observation.fleet.serving, observation.demand, observation.attainment or 0.0
    load = model.load(pools, demand)
    if load <= 0:
        return 1.0
    apparent = 1.0
    while apparent < _HIGHEST_LOAD:
        rate = demand.requests_per_s * apparent / load
        if model.attainment(pools, replace(demand, requests_per_s=rate)) <= seen:
            break
        apparent += _LOAD_STEP
    return min(1.0, max(_LEAST_TRUST, load / apparent))


def _faded(doubts: Mapping[Shape, float], passed_s: float) -> dict[Shape, float]:
    share = math.exp(-passed_s / _FADES_IN_S)
    return {shape: trust**share for shape, trust in doubts.items() if trust**share < _FORGOTTEN}
