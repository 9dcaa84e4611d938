"""Like DynamoLLM (Stojkovic et al., HPCA 2025): every epoch another width and number of groups.

The paper minimises energy; here it is GPUs, its frequencies are left out, and its epochs of 5 minutes for the cut of
the model apply to the number of instances too (30 minutes there). Each change is paid for in the simulator.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoscaling.capacity.performance import Performance
from autoscaling.decision import Decision
from autoscaling.observation import Blind, Demand, Observation, Pools
from autoscaling.policy.options import kind_of
from autoscaling.simulation.rivals.pool import blind
from placement import Shape, Slo

LOADS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # share of the capacity to plan for, the grid to tune on
_EPOCH_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoLlm:
    """The shape and number of replicas with fewest GPUs for the highest minute of the last epoch."""

    shapes: tuple[Shape, ...]
    max_gpus: int
    slo: Slo
    performance: Performance
    load: float = 1.0
    name: str = "dynamollm"

    def start(self) -> Any:
        return 0.0

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        if isinstance(observation, Blind):
            return blind(observation), state
        desired = observation.fleet.desired
        if observation.at_s - state < _EPOCH_S:
            return _decision(observation, desired, "the epoch is not over"), state
        return _decision(observation, self._fewest(_seen(observation), desired), "a new epoch"), observation.at_s

    def _fewest(self, demand: Demand, otherwise: Pools) -> Pools:
        able = [(shape, self._replicas(shape, demand)) for shape in self.shapes]
        fitting = [(shape, count) for shape, count in able if count and count * shape.gpus <= self.max_gpus]
        if not fitting:
            return otherwise
        shape, count = min(fitting, key=lambda one: (one[0].gpus * one[1], one[0] not in otherwise, one[0].gpus))
        return {shape: count}

    def _replicas(self, shape: Shape, demand: Demand) -> int:
        """As few as keep the SLO; 0 where none do."""
        able_per_s = self.performance.capacity(shape, demand, self.slo).requests_per_s * self.load
        return max(1, math.ceil(demand.requests_per_s / able_per_s)) if able_per_s else 0


def _seen(observation: Observation) -> Demand:
    """The demand of now, at the highest rate of the last epoch."""
    rates = observation.history.requests_per_s[-round(_EPOCH_S / observation.history.step_s) :]
    known = rates[np.isfinite(rates)]
    most = max(observation.demand.requests_per_s, float(known.max()) if len(known) else 0.0)
    return replace(observation.demand, requests_per_s=most)


def _decision(observation: Observation, pools: Pools, reason: str) -> Decision:
    return Decision(
        at_s=observation.at_s,
        kind=kind_of(observation.fleet.desired, pools),
        cause="cheapest",
        target=pools,
        reason=reason,
    )
