"""Ray Serve's default autoscaling: requests under way over a target, when it has been so for a while.

ray/serve/autoscaling_policy.py of 2.60: `_core_replica_queue_length_policy` (334), `_apply_scaling_factors` (33) and
`_apply_delay_logic` (68), with the defaults of serve/config.py (660 and 689). Ray Serve LLM ships a target of 10^9,
with which nothing is ever added; only a tuned one is a rival.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation
from autoscaling.simulation.rivals.pool import Pool, blind

TARGETS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # requests under way per replica, the grid to tune on


class Waited(NamedTuple):
    """Loads seen in the look-back as (time, requests under way), and since when more or fewer replicas are wanted."""

    samples: tuple[tuple[float, float], ...] = ()
    direction: int = 0
    since_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServe:
    """Both scaling factors are 1, as by default."""

    pool: Pool
    target_ongoing_requests: float
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_s: float = 30.0
    name: str = "ray-serve"

    def start(self) -> Any:
        return Waited()

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        if isinstance(observation, Blind):
            return blind(observation), state
        at_s, pool = observation.at_s, self.pool
        samples = (*state.samples, (at_s, observation.running + observation.waiting))
        samples = tuple(sample for sample in samples if sample[0] > at_s - self.look_back_s)
        ongoing = sum(load for _, load in samples) / len(samples)
        now = pool.wanted(observation)
        # replicas * (ongoing / (target * replicas)): the number that runs cancels.
        desired = pool.clipped(ongoing / self.target_ongoing_requests) if pool.serving(observation) else now
        direction = (desired > now) - (desired < now)
        since_s = state.since_s if direction == state.direction else at_s
        delay_s = self.upscale_delay_s if direction > 0 else self.downscale_delay_s
        reason = f"{ongoing:.1f} requests under way; {self.target_ongoing_requests:g} per replica"
        if direction and at_s - since_s >= delay_s:
            return pool.decided(observation, desired, reason), Waited(samples)
        return pool.decided(observation, now, reason), Waited(samples, direction, since_s)
