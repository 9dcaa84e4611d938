"""A trace under several policies, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autoscaling.capacity.performance import PlannedPerformance
from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation
from autoscaling.simulation.oracles.scripted import Scripted, Steps
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.result import Result
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Policy, Scenario
from autoscaling.simulation.traces import Trace

OURS = "archipelago"
AS_RUN = "as-run"  # what really ran, in the simulator: how far that is from what was measured is the simulator's error
DEFAULT = (OURS, "no-repartition", "ray-serve", "best-static")
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


def replayed(
    trace: Trace, scenario: Scenario, names: Sequence[str], *, ran: Steps, seed: int, say: Say
) -> tuple[Result, ...]:
    """A result for what ran (`ran`, targets over time; none where that is unknown) and for each policy of `names`."""
    performance = PlannedPerformance(scenario.site)

    def result(policy: Policy) -> Result:
        return run(trace, scenario, Watched(policy=policy, duration_s=trace.duration_s, say=say), seed)

    found = [result(Scripted(steps=ran, name=AS_RUN))] if ran else []
    for name in names:
        say(f"{name}: made ready, which takes several runs where it is tuned or looks ahead")
        policy = POLICIES[name](scenario, trace, performance)
        say(f"{name}: {len(trace):,} requests")
        found.append(result(policy))
    return tuple(found)
