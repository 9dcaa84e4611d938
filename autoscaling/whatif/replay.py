"""A trace under several policies, one after the other."""

from collections.abc import Sequence

from autoscaling.capacity.performance import PlannedPerformance
from autoscaling.simulation.oracles.scripted import Scripted, Steps
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.progress import Say, Watched
from autoscaling.simulation.result import Result
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Policy, Scenario
from autoscaling.simulation.traces import Trace

OURS = "archipelago"
AS_RUN = "as-run"  # what really ran, in the simulator: how far that is from what was measured is the simulator's error
DEFAULT = (OURS, "no-repartition", "ray-serve", "best-static")


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
