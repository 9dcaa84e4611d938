"""Dry runs, the simulated world they run in, and the values that both refuse."""

import sys
from types import FrameType

import pytest
from placement_builders import cluster_of
from reconcile_builders import (
    DURATIONS,
    MODEL,
    TWO_ISLANDS,
    check_seats,
    found,
    look,
    make_limits,
    replica,
    settled,
    wish,
)

from deployments.reconcile import Durations, Phase, Pool, ReplicaState, Start, Way, World, forecast
from placement import Shape
from placement.layout import Infeasible


@pytest.mark.parametrize(
    ("before", "after", "way", "duration_s", "stall_s", "gpus"),
    [
        ("1 tp1", "1 tp2", Way.SURGE, 55, 0, 3),
        ("2 tp2", "2 pp2", Way.ROLLING, 110, 0, 4),
        ("1 tp2pp2", "1 tp2", Way.SWAP, 35, 35, 4),
        ("1 tp2", "1 tp2", None, 0, 0, 2),
    ],
)
def test_a_forecast_tells_the_way_and_its_price(
    before: str, after: str, way: Way | None, duration_s: float, stall_s: float, gpus: int
) -> None:
    wishes = [wish(after, version=2)]
    told_before = forecast(settled(before), wishes, MODEL, TWO_ISLANDS, make_limits(), DURATIONS)
    assert (told_before.way, told_before.duration_s) == (way, duration_s)
    assert (told_before.stall_s, told_before.gpus_needed) == (stall_s, gpus)
    assert told_before.infeasible is None


def test_a_forecast_says_what_will_not_work() -> None:
    answer = forecast(settled("1 tp1"), [wish("3 tp2", version=2)], MODEL, TWO_ISLANDS, make_limits(), DURATIONS)
    assert isinstance(answer.infeasible, Infeasible)
    assert answer.timeline == ()


@pytest.mark.parametrize(
    ("before", "after"), [("32 tp8", "64 tp4"), ("32 tp8", "20 tp8, 48 tp2"), ("64 tp4", "32 tp8")]
)
def test_a_look_at_a_large_fleet_takes_few_calls(before: str, after: str) -> None:
    """The controller answers nobody meanwhile, and a forecast has hundreds: no pass over the fleet for each replica."""
    cluster = cluster_of(*[8] * 32)
    starts = [step for step in look(found(), wish(before), cluster=cluster).steps if isinstance(step, Start)]
    actual = found(
        *(
            ReplicaState(name=start.name, model=MODEL, layout=start.layout, phase=Phase.SERVING, since_s=0.0)
            for start in starts
        )
    )
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        answer = look(actual, wish(after, version=2), cluster=cluster, limits=make_limits(floor=0.5))
    finally:
        sys.setprofile(None)
    assert answer.ways == {MODEL: Way.ROLLING}
    assert calls < 50_000


# --- values that mean nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_limits(floor=1.5), "floor is 1.5; it must be from 0 to 1"),
        (lambda: make_limits(drain_timeout_s=-1.0), "drain_timeout_s is -1.0; it must be at least 0"),
        (lambda: make_limits(retry_after_s=(5.0, -2.0)), "retry_after_s is -2.0; it must be at least 0"),
        (lambda: Pool(shape=Shape(), replicas=-1), "Pool tp1: replicas is -1; it must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_a_simulated_world_refuses_steps_that_match_nothing() -> None:
    world = World(actual=found(), durations=Durations(start_s=1, drain_s=1, stop_s=1), limits=make_limits())
    steps = look(found(replica("tp1")), wish("")).steps
    with pytest.raises(ValueError, match="acme-tiny--tp1--0 is not there"):
        check_seats(world, steps)
