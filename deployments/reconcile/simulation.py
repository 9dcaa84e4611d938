"""A pretend world for the reconciler's steps: what each one leads to, and how long that takes. Pure.

`forecast` loops the real `next_steps` against it, and so do the tests; nothing here decides.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from deployments.reconcile.reconciler import Next
from deployments.reconcile.states import (
    LEAVING_MARGIN_S,
    Actual,
    Durations,
    Leaving,
    Limits,
    Phase,
    ReplicaState,
)
from deployments.reconcile.steps import (
    CountFailure,
    Drain,
    Hold,
    Move,
    Release,
    RollBack,
    Settle,
    Start,
    Step,
    Stop,
)
from placement.layout import Place

_PHASE_AFTER = {Drain: Phase.DRAINING, Move: Phase.MOVING, Stop: Phase.STOPPING}


class UnknownReplicaError(ValueError):
    """A step names a replica that does not exist, or starts one that does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is, and what will come of it. Replicas in `doomed` (by name), or on `broken` GPUs, fail to become ready.

    Those in `clinging` have a request that cannot move, and lasts. Nodes that are `leaving` do not go; the
    reconciler has to be done with them in time.
    """

    actual: Actual
    durations: Durations
    limits: Limits
    leaving: Leaving = field(default_factory=dict)
    doomed: Callable[[str], bool] = field(default=lambda name: False)
    broken: frozenset[Place] = frozenset()
    clinging: Callable[[str], bool] = field(default=lambda name: False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was decided at `world.actual.now_s`, before it was carried out."""

    world: World
    decided: Next


def simulate(world: World, decide: Callable[[Actual], Next], *, max_looks: int = 10_000) -> Iterator[Moment]:
    """Look, act, wait for the next thing to happen, and so on until nothing will.

    Raises:
        RuntimeError: it still goes on after `max_looks`: the reconciler does not converge.
    """
    for _ in range(max_looks):
        decided = decide(world.actual)
        yield Moment(world=world, decided=decided)
        for step in decided.steps:
            world = carry_out(world, step)
        later = wait(world) if not decided.steps else world
        if later is None:
            return
        world = later
    raise RuntimeError(f"the fleet has not settled after {max_looks} looks, at {world.actual.now_s:g} s")


def carry_out(world: World, step: Step) -> World:
    """The world right after one step: the phase changes at once, and what it leads to comes later.

    Raises:
        UnknownReplicaError: the step does not match the replicas there are.
    """
    actual = world.actual
    match step:
        case Start():
            after = _started(actual, step)
        case Drain() | Move() | Stop():
            after = _in_phase(actual, step.name, _PHASE_AFTER[type(step)])
        case Hold():
            after = replace(actual, held=actual.held | {step.model})
        case Release():
            after = replace(actual, held=actual.held - {step.model})
        case RollBack() | CountFailure() | Settle():
            after = replace(actual, records={**actual.records, step.model: step.record})
    return replace(world, actual=after)


def wait(world: World) -> World | None:
    """The world when the next thing happens or the next deadline passes; None where nothing will."""
    actual = world.actual
    ends = {one.name: None if _lasts(one, world) else _end_s(one, world.durations) for one in actual.replicas}
    due = [max(end, actual.now_s) for end in ends.values() if end is not None]
    due += [at_s for at_s in _deadlines(world) if at_s > actual.now_s]
    if not due:
        return None
    now_s = min(due)
    replicas = []
    for one in actual.replicas:
        end = ends[one.name]
        after = one if end is None or end > now_s else _after(one, now_s, world)
        replicas += [after] if after else []
    return replace(world, actual=replace(actual, now_s=now_s, replicas=tuple(replicas)))


def _started(actual: Actual, step: Start) -> Actual:
    if any(one.name == step.name for one in actual.replicas):
        raise UnknownReplicaError(f"{step.name} is there already")
    new = ReplicaState(name=step.name, model=step.model, layout=step.layout, phase=Phase.STARTING, since_s=actual.now_s)
    index = max(actual.next_index, new.index + 1)
    return replace(actual, replicas=(*actual.replicas, new), next_index=index)


def _in_phase(actual: Actual, name: str, phase: Phase) -> Actual:
    if all(one.name != name for one in actual.replicas):
        raise UnknownReplicaError(f"{name} is not there")
    changed = (replace(one, phase=phase, since_s=actual.now_s) if one.name == name else one for one in actual.replicas)
    return replace(actual, replicas=tuple(changed))


def _lasts(one: ReplicaState, world: World) -> bool:
    return one.phase in (Phase.DRAINING, Phase.MOVING) and one.unfinished_requests != 0 and world.clinging(one.name)


def _end_s(one: ReplicaState, durations: Durations) -> float | None:
    """When the replica's phase ends by itself, or its requests are done."""
    match one.phase:
        case Phase.STARTING:
            return one.since_s + durations.start_s
        case Phase.DRAINING if one.unfinished_requests != 0:
            return one.since_s + durations.drain_s
        case Phase.MOVING if one.unfinished_requests != 0:
            return one.since_s
        case Phase.STOPPING:
            return one.since_s + durations.stop_s
        case _:
            return None


def _after(one: ReplicaState, now_s: float, world: World) -> ReplicaState | None:
    if one.phase is Phase.STOPPING:
        return None
    if one.phase is not Phase.STARTING:
        return replace(one, unfinished_requests=0)
    if world.doomed(one.name) or one.layout.places & world.broken:
        return replace(one, phase=Phase.FAILED, since_s=now_s, cause="simulated")
    return replace(one, phase=Phase.SERVING, since_s=now_s, unfinished_requests=1)


def _deadlines(world: World) -> Iterator[float]:
    """When the reconciler would act although nothing has happened."""
    actual, limits = world.actual, world.limits
    yield from (goes_at_s - LEAVING_MARGIN_S for goes_at_s in world.leaving.values() if goes_at_s < math.inf)
    for one in actual.replicas:
        if one.phase is Phase.STARTING:
            yield one.since_s + limits.start_timeout_s
        elif one.phase is Phase.DRAINING:
            yield one.since_s + limits.drain_timeout_s
        elif one.phase is Phase.MOVING:
            yield one.since_s + limits.move_timeout_s
    for record in actual.records.values():
        tries = len(record.failed_at_s)
        if 0 < tries <= len(limits.retry_after_s):
            yield record.failed_at_s[-1] + limits.retry_after_s[tries - 1]
