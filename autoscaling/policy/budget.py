"""The error budget: how many requests may still miss the SLO, and how much of the model's margin that stands for.

An SLO of p99 is over all requests: a fleet that has lately missed it for fewer than may has some left. The model has a
margin as an insurance against misses that come in clusters (`capacity.ceiling.margin`); those that are left insure too.
"""

import math
from dataclasses import replace

from autoscaling.capacity.ceiling import margin
from autoscaling.observation import Demand, Observation
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules

_AMPLE = 0.25  # of the misses of a whole lookback: so many left stand for all of the margin


def counted(memory: Memory, observation: Observation, rules: Rules, passed_s: float) -> Memory:
    """`memory` with the requests of the last `passed_s`, and those of them that missed the SLO; older ones fade."""
    fades = math.exp(-passed_s / rules.lookback_s) if rules.lookback_s else 0.0
    seen = observation.attainment
    asked = 0.0 if seen is None else observation.demand.requests_per_s * passed_s
    missed = asked * (1 - (seen or 0.0))
    return replace(memory, asked=memory.asked * fades + asked, missed=memory.missed * fades + missed)


def ease(memory: Memory, demand: Demand, rules: Rules) -> float:
    """What the rates that keep the SLO may be multiplied with: 1 with no misses left, else up to all of the margin.

    Those left are measured by what may miss in a whole lookback at the rate of now, so there are few at first and where
    demand rises. Misses of bursty traffic come in clusters: some more are taken to be on their way.
    """
    whole = (1 - rules.slo.percentile) * demand.requests_per_s * rules.lookback_s
    on_their_way = math.sqrt(max(0.0, demand.dispersion - 1) * memory.missed)
    left = (1 - rules.slo.percentile) * memory.asked - memory.missed - on_their_way
    if left <= 0 or whole <= 0:
        return 1.0
    return math.pow(margin(rules.slo.percentile), -min(1.0, left / (_AMPLE * whole)))
