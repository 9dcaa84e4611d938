"""How far a run has come, for whoever waits for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation
from autoscaling.simulation.scenario import Policy

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A policy that says how far its run has come, at every tenth of it."""

    policy: Policy
    duration_s: float
    say: Say

    @property
    def name(self) -> str:
        return self.policy.name

    def start(self) -> Any:
        return self.policy.start(), 0

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        inner, told = state
        tenths = int(10 * observation.at_s / self.duration_s) if self.duration_s else 10
        if tenths > told:
            self.say(f"{self.name}: {10 * tenths} %")
        decision, inner = self.policy.decide(observation, inner)
        return decision, (inner, max(told, tenths))


def progress(clock: Callable[[], float]) -> Say:
    """Lines on stderr with the time since the start."""
    began_s = clock()

    def say(sentence: str) -> None:
        sys.stderr.write(f"[{clock() - began_s:5.0f} s] {sentence}\n")

    return say
