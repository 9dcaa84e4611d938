"""Fleets, wishes and limits for the tests of the reconciler, and a loop that checks what must always hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from placement_builders import cluster_of

from deployments.reconcile import (
    Actual,
    CountFailure,
    Desired,
    Durations,
    Hold,
    Leaving,
    Limits,
    Next,
    Phase,
    Pool,
    Release,
    ReplicaState,
    RollBack,
    Settle,
    Start,
    Step,
    World,
    carry_out,
    next_steps,
    simulate,
    wanted,
)
from deployments.reconcile.states import ALL_STAY
from placement import Cluster, Shape, place
from placement.layout import Infeasible, Place

TWO_ISLANDS = cluster_of(2, 2)
DURATIONS = Durations(start_s=30, drain_s=20, stop_s=5)
MODEL = "acme/tiny"


def make_limits(**changes: Any) -> Limits:
    return Limits(**{"start_timeout_s": 100.0, "drain_timeout_s": 60.0} | changes)


def pools_of(text: str) -> tuple[Pool, ...]:
    """`2 tp1, 1 pp2`; empty for no pools."""
    parts = [part.split() for part in text.split(",") if part.strip()]
    return tuple(Pool(shape=Shape.parse(shape), replicas=int(count)) for count, shape in parts)


def wish(pools: str, version: int = 1, model: str = MODEL, **changes: Any) -> Desired:
    return Desired(model=model, pools=pools_of(pools), version=version, **changes)


def replica(
    shape: str, taken: frozenset[Place] = frozenset(), *, cluster: Cluster = TWO_ISLANDS, index: int = 0, **changes: Any
) -> ReplicaState:
    layout = place(Shape.parse(shape), cluster, taken)
    assert not isinstance(layout, Infeasible)
    name = f"acme-tiny--{shape}--{index}"
    fields: dict[str, Any] = {"phase": Phase.SERVING, "since_s": 0.0, "unfinished_requests": 1, "model": MODEL}
    return ReplicaState(name=name, layout=layout, **fields | changes)


def found(*replicas: ReplicaState, now_s: float = 0.0, **changes: Any) -> Actual:
    next_index = max((one.index + 1 for one in replicas), default=0)
    fields: dict[str, Any] = {"now_s": now_s, "next_index": next_index, "replicas": replicas}
    return Actual(**fields | changes)


def look(
    actual: Actual, *wishes: Desired, cluster: Cluster = TWO_ISLANDS, limits: Limits | None = None, **changes: Any
) -> Next:
    effective = [wanted(one, actual.record(one)) for one in wishes]
    return next_steps(actual, effective, cluster, limits or make_limits(), DURATIONS, **changes)


def run(
    actual: Actual,
    *wishes: Desired,
    cluster: Cluster = TWO_ISLANDS,
    limits: Limits | None = None,
    doomed: Callable[[str], bool] = lambda name: False,
    clinging: Callable[[str], bool] = lambda name: False,
    broken: frozenset[Place] = frozenset(),
    leaving: Leaving = ALL_STAY,
) -> tuple[list[str], World, Next]:
    """Reconcile until nothing happens any more: the steps as `at: step`, the world then, and the last decision."""
    limits = limits or make_limits()
    start = World(
        actual=actual,
        durations=DURATIONS,
        limits=limits,
        doomed=doomed,
        clinging=clinging,
        broken=broken,
        leaving=leaving,
    )
    moments = list(simulate(start, lambda seen: look(seen, *wishes, cluster=cluster, limits=limits, leaving=leaving)))
    log = [
        f"{moment.world.actual.now_s - actual.now_s:g}: {told(step)}"
        for moment in moments
        for step in moment.decided.steps
    ]
    for moment in moments:
        check_seats(moment.world, moment.decided.steps)
    return log, moments[-1].world, moments[-1].decided


def settled(pools: str) -> Actual:
    """A fleet that is fully there, at version 1."""
    _, world, last = run(found(), wish(pools))
    assert not last.blocked
    return world.actual


def told(step: Step) -> str:
    """A step in two words: what, and which replica."""
    kind = type(step).__name__
    match step:
        case Hold():
            return f"{kind} {step.stall_s:g}"
        case Release() | RollBack() | CountFailure() | Settle():
            return kind
        case Start():
            places = "+".join(f"{seat.island[-1]}.{seat.slot}" for seat in step.layout.seats)
            return f"{kind} {short(step.name)} on {places}"
        case _:
            return f"{kind} {short(step.name)}"


def short(name: str) -> str:
    """`tp1#0` for `acme-tiny--tp1--0`."""
    _, shape, index = name.rsplit("--", 2)
    return f"{shape}#{index}"


def check_seats(world: World, steps: Sequence[Step]) -> None:
    """No seat is used twice after any of the steps; `carry_out` refuses steps for unknown replicas."""
    for step in steps:
        world = carry_out(world, step)
        seats = [place for one in world.actual.replicas for place in one.layout.places]
        assert len(seats) == len(set(seats)), step


def shapes_serving(actual: Actual, model: str = MODEL) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for one in actual.replicas:
        if one.model == model:
            assert one.phase is Phase.SERVING, one
            counts[str(one.layout.shape)] = counts.get(str(one.layout.shape), 0) + 1
    return counts
