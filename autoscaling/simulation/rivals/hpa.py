"""Kubernetes' HorizontalPodAutoscaler on a metric per replica: waiting requests, or the share of the KV cache in use.

As kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale says: ceil(replicas x metric / target), no change
within 10 %, replicas that do not serve yet count as idle when more would be wanted, at most twice as many or four more
in 15 s, and never below the highest number recommended in the last 300 s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation
from autoscaling.simulation.rivals.pool import Pool, blind

QUEUE_TARGETS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # waiting requests per replica, the grid to tune on
KV_TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)  # share of the KV cache
_TOLERANCE = 0.1
_STABILISATION_S = 300.0
_MOST_ADDED, _MOST_FACTOR = 4, 2

Recommended = tuple[tuple[float, int], ...]  # when, and how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Hpa:
    """`metric` is the mean over the replicas that serve."""

    pool: Pool
    metric: Callable[[Observation], float]
    target: float
    name: str

    def start(self) -> Any:
        return ()

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        if isinstance(observation, Blind):
            return blind(observation), state
        at_s, now, value = observation.at_s, self.pool.wanted(observation), self.metric(observation)
        wanted = self.pool.clipped(recommended(value / self.target, now, self.pool.serving(observation)))
        past: Recommended = tuple(one for one in (*state, (at_s, wanted)) if one[0] > at_s - _STABILISATION_S)
        stable = wanted if wanted > now else min(now, max(replicas for _, replicas in past))
        limited = min(stable, max(now + _MOST_ADDED, now * _MOST_FACTOR))
        reason = f"{value:.2f} per replica; {self.target:g} wanted"
        return self.pool.decided(observation, limited, reason), past


def recommended(usage: float, replicas: int, ready: int) -> int:
    """How many replicas where `ready` of `replicas` serve and use `usage` times the target on average."""
    if abs(usage - 1) <= _TOLERANCE or not ready:
        return replicas
    if usage < 1:
        return math.ceil(usage * ready - 1e-9)
    with_unready = usage * ready / max(replicas, ready)
    if with_unready <= 1 + _TOLERANCE:
        return replicas
    return math.ceil(with_unready * max(replicas, ready) - 1e-9)


def waiting(observation: Observation) -> float:
    """Requests that wait, per replica."""
    return observation.waiting / max(1, sum(pool.replicas for pool in observation.pools))


def kv_usage(observation: Observation) -> float:
    """Share of the KV cache in use."""
    replicas = sum(pool.replicas for pool in observation.pools)
    return sum(pool.kv_usage * pool.replicas for pool in observation.pools) / max(1, replicas)
