"""A dry run: what a change would do, when, and what it would cost, by running the reconciler in a simulated world."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.reconcile.reconciler import Next, next_steps
from deployments.reconcile.simulation import Moment, World, simulate
from deployments.reconcile.states import ALL_STAY, Actual, Desired, Durations, Leaving, Limits, Way, wanted
from deployments.reconcile.steps import Hold, Release, Step
from placement.clusters.hardware import Cluster
from placement.layout import Infeasible


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A step and when it would be taken, in seconds from now."""

    at_s: float
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What would happen to one model.

    `way` is None where nothing is to be started. `stall_s` is how long the ingress would hold requests, `gpus_needed`
    the most GPUs that the model would take at once. `infeasible` says why the wish would not be reached; the timeline
    then shows how far it would get.
    """

    way: Way | None
    timeline: tuple[Timed, ...]
    duration_s: float
    stall_s: float
    gpus_needed: int
    infeasible: Infeasible | None


def forecast(
    actual: Actual,
    desired: Sequence[Desired],
    model: str,
    cluster: Cluster,
    limits: Limits,
    durations: Durations,
    *,
    leaving: Leaving = ALL_STAY,
) -> Forecast:
    """What reconciling towards `desired` would do to `model`, if every start succeeds.

    The arguments are those of `next_steps`; the steps of other models that happen on the way are in the timeline too.
    """

    def decide(found: Actual) -> Next:
        wishes = [wanted(wish, found.record(wish)) for wish in desired]
        return next_steps(found, wishes, cluster, limits, durations, leaving=leaving)

    world = World(actual=actual, durations=durations, limits=limits, leaving=leaving)
    moments = list(simulate(world, decide))
    return _summary(moments, model)


def _summary(moments: Sequence[Moment], model: str) -> Forecast:
    begin_s = moments[0].world.actual.now_s
    timeline = tuple(
        Timed(at_s=moment.world.actual.now_s - begin_s, step=step)
        for moment in moments
        for step in moment.decided.steps
    )
    ways = [moment.decided.ways[model] for moment in moments if model in moment.decided.ways]
    return Forecast(
        way=max(ways, key=list(Way).index, default=None),
        timeline=timeline,
        duration_s=timeline[-1].at_s if timeline else 0.0,
        stall_s=_stall_s(timeline, model, is_held=model in moments[0].world.actual.held),
        gpus_needed=max(_gpus(moment, model) for moment in moments),
        infeasible=moments[-1].decided.blocked.get(model),
    )


def _stall_s(timeline: Sequence[Timed], model: str, *, is_held: bool) -> float:
    holds = [0.0] if is_held else []
    holds += [timed.at_s for timed in timeline if isinstance(timed.step, Hold) and timed.step.model == model]
    releases = [timed.at_s for timed in timeline if isinstance(timed.step, Release) and timed.step.model == model]
    return sum(release - hold for hold, release in zip(holds, releases, strict=False))


def _gpus(moment: Moment, model: str) -> int:
    return sum(one.gpus for one in moment.world.actual.replicas if one.model == model)
