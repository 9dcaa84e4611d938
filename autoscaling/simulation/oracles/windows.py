"""The true demand of a stretch of a trace, which no policy can see."""

import numpy as np

from autoscaling.observation import Array, Demand
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace
from placement import Lengths
from placement.workload import MAX_SPREAD


def demand_of(scenario: Scenario, trace: Trace, from_s: float, until_s: float) -> Demand:
    """What arrives in [from_s, until_s), as if evenly; with the lengths of the whole trace where nothing does."""
    start, end = np.searchsorted(trace.arrivals_s, (from_s, until_s)).tolist()
    seen = slice(start, end) if end > start else slice(None)
    return Demand(
        requests_per_s=(end - start) / (until_s - from_s),
        input_tokens=_lengths(trace.input_tokens[seen]),
        output_tokens=_lengths(trace.output_tokens[seen]),
        prefix_hit_rate=scenario.prefix_hit_rate,
    )


def _lengths(tokens: Array) -> Lengths:
    mean = float(tokens.mean())
    return Lengths(mean_tokens=mean, spread=min(MAX_SPREAD, float(tokens.std()) / mean))
