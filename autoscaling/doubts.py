"""Where the fleet does worse than the model says, what is seen is believed: its rates count for less.

This is a safety net for what the slow corrections of step times have not learnt yet. A doubt fades within hours.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from autoscaling.estimates import Estimates
from autoscaling.memory import Memory
from autoscaling.observation import Observation, PoolLoad
from autoscaling.rules import Rules
from placement import Shape

_LEAST_TRUST = 0.5
_FORGOTTEN = 0.99
_FADES_IN_S = 3600.0
_FAR_BELOW = 0.05  # of attainment, and below the SLO: less is noise
_FEWEST_ARRIVALS = 50.0
_SEEN_FOR = 3.0  # times the patience for more GPUs: a backlog of the past is gone by then
_LOAD_STEP = 0.05
_HIGHEST_LOAD = 2.0


def doubting(memory: Memory, observation: Observation, model: Estimates, rules: Rules, passed_s: float) -> Memory:
    """`memory` with the doubts after this tick. `model` is without any."""
    is_missing = _is_missing(memory, observation, model, rules)
    missed_s = memory.missed_s + passed_s if is_missing else 0.0
    doubts = _faded(memory.doubts, passed_s)
    if missed_s >= _SEEN_FOR * rules.up_after_s:
        trust = _trust(observation, model)
        doubts |= {pool.shape: min(trust, doubts.get(pool.shape, 1.0)) for pool in _late(observation, rules)}
    return replace(memory, missed_s=missed_s, doubts=doubts)


def _is_missing(memory: Memory, observation: Observation, model: Estimates, rules: Rules) -> bool:
    """Whether far fewer requests keep the SLO than should, with nothing going on that explains it."""
    fleet, demand, seen = observation.fleet, observation.demand, observation.attainment
    if seen is None or fleet.changing or not fleet.serving:
        return False
    if memory.change is not None and memory.change.took_s is not None:
        reached_s = memory.change.at_s + memory.change.took_s
        if observation.at_s < reached_s + observation.window_s + rules.up_after_s:
            return False
    if demand.requests_per_s * observation.window_s < _FEWEST_ARRIVALS or not model.keeps(fleet.serving, (demand,)):
        return False
    return seen < rules.slo.percentile - _FAR_BELOW


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
