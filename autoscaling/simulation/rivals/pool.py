"""What the rivals share that only change how many replicas of one shape there are."""

import math
from dataclasses import dataclass

from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation
from autoscaling.simulation.scenario import Scenario
from placement import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Replicas of one shape, at least one and as many as `max_gpus` hold."""

    shape: Shape
    max_gpus: int

    @property
    def most(self) -> int:
        """Replicas."""
        return max(1, self.max_gpus // self.shape.gpus)

    def clipped(self, replicas: float) -> int:
        """As many as there may be."""
        return min(max(1, math.ceil(replicas)), self.most)

    def wanted(self, observation: Observation) -> int:
        """Replicas that are the target now."""
        return observation.fleet.desired.get(self.shape, 0)

    def serving(self, observation: Observation) -> int:
        """Replicas that serve now."""
        return observation.fleet.serving.get(self.shape, 0)

    def decided(self, observation: Observation, replicas: int, reason: str) -> Decision:
        """`replicas` are the target from now on."""
        changes = observation.fleet.desired != {self.shape: replicas}
        return Decision(
            at_s=observation.at_s,
            kind="replicas" if changes else "hold",
            cause="cheapest",
            target={self.shape: replicas},
            reason=reason,
        )


def pool_of(scenario: Scenario) -> Pool:
    """Of the initial shape, that with most GPUs where there are several."""
    shape = max(scenario.initial, key=lambda one: one.gpus * scenario.initial[one])
    return Pool(shape=shape, max_gpus=scenario.max_gpus)


def blind(at: Blind) -> Decision:
    """Nothing is known: whatever runs stays."""
    return Decision(at_s=at.at_s, kind="hold", cause="blind", target={}, reason=at.why)
