"""Like the planner of NVIDIA Dynamo for an SLA: a forecast of the load sets a floor, the latencies add to it.

docs.nvidia.com/dynamo, planner design: every 180 s the requests, prompts and answers to come are forecast and divided
by what one engine was profiled to do within the SLA; in between a loop adds an engine where the latencies are beyond
it, and takes one back, never below the floor, where they are far within. The cut of the model is fixed.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from autoscaling.capacity.performance import Performance
from autoscaling.decision import Decision
from autoscaling.forecasting.forecast import forecast
from autoscaling.observation import Blind, Demand, Observation
from autoscaling.simulation.rivals.pool import Pool, blind
from placement import Slo

LOADS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # share of the profiled capacity to plan for, the grid to tune on
_INTERVAL_S = 180.0
_FAR_WITHIN = 0.8  # of the SLA: one engine fewer may do (`loadbased_scaling_down_sensitivity`, 80 %)


class Planned(NamedTuple):
    """The floor, and when it was set."""

    floor: int = 1
    at_s: float = -_INTERVAL_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamo:
    """`load` is the share of an engine's capacity that is planned with."""

    pool: Pool
    slo: Slo
    performance: Performance
    load: float = 1.0
    name: str = "dynamo"

    def start(self) -> Any:
        return Planned()

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        if isinstance(observation, Blind):
            return blind(observation), state
        now = self.pool.wanted(observation)
        if observation.at_s - state.at_s >= _INTERVAL_S:
            state = Planned(self._floor(observation), observation.at_s)
            return self.pool.decided(observation, state.floor, "by the forecast"), state
        wanted = max(state.floor, now)
        if not observation.fleet.changing:
            wanted = max(state.floor, self.pool.clipped(now + self._step(observation)))
        return self.pool.decided(observation, wanted, "by the latencies"), state

    def _floor(self, observation: Observation) -> int:
        coming = expected(observation, _INTERVAL_S)
        able_per_s = self.performance.capacity(self.pool.shape, coming, self.slo).requests_per_s * self.load
        if not able_per_s:
            return self.pool.most
        return self.pool.clipped(coming.requests_per_s / able_per_s)

    def _step(self, observation: Observation) -> int:
        seen = ((observation.ttft_s, self.slo.ttft_s), (observation.tpot_s, self.slo.tpot_s))
        shares = [value / most for value, most in seen if value is not None and most]
        if not shares:
            return 0
        return 1 if max(shares) > 1 else -1 if max(shares) < _FAR_WITHIN else 0


def expected(observation: Observation, horizon_s: float) -> Demand:
    """The highest demand that is likely within `horizon_s`; that of now where there is nothing to forecast from."""
    history = observation.history
    series = (history.requests_per_s, history.input_tokens_per_s, history.output_tokens_per_s)
    if not all(np.isfinite(one).any() for one in series):
        return observation.demand
    return forecast(history, horizon_s=horizon_s, quantile=0.5).peak(
        observation.demand, until_s=horizon_s, quantile=False
    )
