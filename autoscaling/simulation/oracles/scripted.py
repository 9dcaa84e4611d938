"""A policy that does what it was told beforehand."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation, Pools, spelled
from autoscaling.policy.options import kind_of

Steps = tuple[tuple[float, Pools], ...]  # targets, each from its time on, in the order of time


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """`steps` begin at 0 s."""

    steps: Steps
    name: str

    def start(self) -> Any:
        return None

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        at_s = observation.at_s
        at = bisect_right([from_s for from_s, _ in self.steps], at_s) - 1
        before, target = self.steps[max(0, at - 1)][1], self.steps[at][1]
        kind = kind_of(before, target) if at else "replicas"
        reason = f"{spelled(target)}, as planned"
        return Decision(at_s=at_s, kind=kind, cause="cheapest", target=target, reason=reason), state
