"""Lost and leaving nodes. Node names are those of `cluster_of`: island-0-node-0 and so on."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from placement_builders import cluster_of
from reconcile_builders import (
    DURATIONS,
    MODEL,
    TWO_ISLANDS,
    found,
    look,
    make_limits,
    pools_of,
    replica,
    run,
    shapes_serving,
    told,
    wish,
)

from deployments.reconcile import Adjusted, Phase, Way, World, count_shapes, simulate, survive, without_nodes
from deployments.reconcile.states import LEAVING_MARGIN_S
from placement import Cluster, Shape
from placement.layout import Infeasible

FIRST, SECOND = "island-0-node-0", "island-1-node-0"
ONE_ISLAND = without_nodes(TWO_ISLANDS, frozenset({SECOND}))
SHAPES = [Shape.parse(text) for text in ("tp1", "tp2", "pp2", "tp2pp2")]


def kinds(log: Sequence[str]) -> list[str]:
    return [line.split(": ")[1].split()[0] for line in log]


# --- the steps -------------------------------------------------------------------------------------------------------


def test_a_leaving_node_drains_at_once_where_another_replica_serves() -> None:
    one = replica("tp2", index=0)
    two = replica("tp2", one.layout.places, index=1)
    cluster = cluster_of(2, 2, 2)
    log, world, last = run(found(one, two), wish("2 tp2"), cluster=cluster, leaving={FIRST: math.inf})
    assert log == ["0: Drain tp2#0", "0: Start tp2#2 on 2.0+2.1", "20: Stop tp2#0", "30: Settle"]
    assert shapes_serving(world.actual) == {"tp2": 2}
    assert not last.blocked


@pytest.mark.parametrize(
    ("goes_at_s", "kinds_of_steps"), [(math.inf, ["Drain", "Stop"]), (60.0, ["Drain", "Move", "Stop"])]
)
def test_a_drain_from_a_leaving_node_ends_before_the_node_does(goes_at_s: float, kinds_of_steps: list[str]) -> None:
    one = replica("tp2", index=0)
    two = replica("tp2", one.layout.places, index=1)
    durations = replace(DURATIONS, drain_s=50)
    start = World(actual=found(one, two), durations=durations, limits=make_limits(), leaving={FIRST: goes_at_s})
    moments = simulate(start, lambda seen: look(seen, wish("1 tp2"), leaving={FIRST: goes_at_s}))
    steps = {told(step): moment.world.actual.now_s for moment in moments for step in moment.decided.steps}
    assert [step.split()[0] for step in steps if step.endswith("tp2#0")] == kinds_of_steps
    assert goes_at_s == math.inf or steps["Move tp2#0"] == goes_at_s - LEAVING_MARGIN_S


def test_the_only_replica_serves_on_a_leaving_node_until_its_successor_does() -> None:
    log, world, _ = run(found(replica("tp2")), wish("1 tp2"), leaving={FIRST: 3600.0})
    assert log == ["0: Start tp2#1 on 1.0+1.1", "30: Drain tp2#0", "50: Stop tp2#0", "55: Settle"]
    assert shapes_serving(world.actual) == {"tp2": 1}


@pytest.mark.parametrize(("goes_at_s", "moved_at_s"), [(45.0, 25), (LEAVING_MARGIN_S, 0), (0.0, 0)])
def test_it_serves_until_there_is_just_time_to_move_where_the_start_takes_longer(
    goes_at_s: float, moved_at_s: int
) -> None:
    log, world, _ = run(found(replica("tp2")), wish("1 tp2"), leaving={FIRST: goes_at_s})
    holding = [f"{moved_at_s}: {step}" for step in ("Hold 35", "Move tp2#0", "Stop tp2#0")]
    assert sorted(log) == sorted(["0: Start tp2#1 on 1.0+1.1", *holding, "30: Release", "30: Settle"])
    assert not world.actual.held


def test_the_only_replica_serves_as_long_as_its_node_is_there_where_nothing_can_take_over() -> None:
    one = replica("tp2")
    log, _, last = run(found(one), wish("1 tp2"), cluster=cluster_of(2), leaving={FIRST: 3600.0})
    assert log == ["3580: Move tp2#0", "3580: Stop tp2#0"]
    log, world, last = run(found(one), wish("1 tp2"), cluster=cluster_of(2), leaving={FIRST: math.inf})
    assert (log, world.actual.replicas) == ([], (one,))
    assert "tp2 needs 2 free GPUs" in last.blocked[MODEL].constraint


def test_a_successor_that_fails_is_tried_again_while_the_replica_serves() -> None:
    log, world, _ = run(
        found(replica("tp2")), wish("1 tp2"), leaving={FIRST: 3600.0}, doomed=lambda name: name.endswith("--1")
    )
    assert kinds(log) == ["Start", "CountFailure", "Stop", "Start", "Drain", "Stop", "Settle"]
    assert shapes_serving(world.actual) == {"tp2": 1}


def test_a_replica_on_a_leaving_node_that_has_not_been_heard_may_have_requests() -> None:
    draining = replica("tp2", phase=Phase.DRAINING, unfinished_requests=None)
    other = replica("tp2", draining.layout.places, index=1)
    actual = found(draining, other)
    assert look(actual, wish("1 tp2"), leaving={FIRST: 3600.0}).steps[:-1] == ()
    assert [told(step) for step in look(actual, wish("1 tp2"), leaving={FIRST: 0.0}).steps][:1] == ["Stop tp2#0"]


def test_one_shard_on_a_leaving_node_is_enough() -> None:
    """And nothing waits for the successor: it needs GPUs of the replica that stay."""
    wide = replica("tp2pp2")
    steps = look(found(wide), wish("1 tp2"), leaving={SECOND: math.inf}).steps
    assert [told(step) for step in steps] == ["Hold 35", "Move tp2pp2#0"]


def test_the_only_replica_is_lost_and_the_ingress_holds_until_its_successor_serves() -> None:
    log, world, _ = run(found(replica("tp2")), wish("1 tp2"), cluster=without_nodes(TWO_ISLANDS, frozenset({FIRST})))
    assert log == [
        "0: Hold 35",
        "0: Move tp2#0",
        "0: Start tp2#1 on 1.0+1.1",
        "0: Stop tp2#0",
        "30: Release",
        "30: Settle",
    ]
    assert not world.actual.held


def test_nothing_is_held_when_nothing_will_serve() -> None:
    answer = look(found(replica("tp2")), wish("1 tp2"), cluster=cluster_of(1))
    assert [told(step) for step in answer.steps] == ["Move tp2#0"]
    assert "tp2 needs 2 free GPUs in one island" in answer.blocked[MODEL].constraint


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.FAILED])
def test_a_start_that_its_node_took_along_counts_as_no_failure(phase: Phase) -> None:
    started = replica("tp2", phase=phase, unfinished_requests=0)
    actual = found(started, now_s=1000.0)
    steps = look(actual, wish("1 tp2"), cluster=without_nodes(TWO_ISLANDS, frozenset({FIRST}))).steps
    assert [told(step) for step in steps] == ["Stop tp2#0", "Start tp2#1 on 1.0+1.1"]


def test_a_drain_on_a_node_that_goes_at_once_is_cut_short() -> None:
    one = replica("tp2", phase=Phase.DRAINING)
    two = replica("tp2", one.layout.places, index=1)
    steps = look(found(one, two), wish("1 tp2"), leaving={FIRST: 0.0}).steps
    assert [told(step) for step in steps] == ["Move tp2#0"]


# --- what a fleet can still be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pools", "cluster", "expected", "change"),
    [
        pytest.param("1 tp2", ONE_ISLAND, "1 tp2", "", id="the same shape elsewhere"),
        pytest.param("1 tp2pp2", ONE_ISLAND, "1 tp2", "tp2 instead of tp2pp2", id="a smaller shape"),
        pytest.param("4 tp1", ONE_ISLAND, "2 tp1", "one tp1 fewer, one tp1 fewer", id="fewer replicas"),
        pytest.param("1 tp2, 1 pp2", ONE_ISLAND, "1 tp2", "one pp2 fewer", id="the wider group first"),
        pytest.param("1 tp2pp2, 1 tp1", ONE_ISLAND, "2 tp1", "tp1 instead of tp2pp2", id="what has room stays"),
        pytest.param("2 tp2", cluster_of(2, 1), "1 tp2, 1 tp1", "tp1 instead of tp2", id="one of each"),
    ],
)
def test_what_survives(pools: str, cluster: Cluster, expected: str, change: str) -> None:
    answer = survive(wish(pools), cluster, lambda shape: True, SHAPES)
    assert isinstance(answer, Adjusted)
    assert count_shapes(answer.pools) == count_shapes(pools_of(expected))
    assert f"({change})" in answer.reason if change else answer.reason == ""


def test_a_smaller_shape_must_hold_the_model() -> None:
    answer = survive(wish("1 tp2pp2"), ONE_ISLAND, lambda shape: shape.gpus > 2, SHAPES)
    assert isinstance(answer, Infeasible)
    assert "tp2pp2 needs 2 groups of 2 free GPUs" in answer.constraint


def test_gpus_of_other_models_are_not_counted_on() -> None:
    other = replica("tp1")
    answer = survive(wish("1 tp2pp2"), TWO_ISLANDS, lambda shape: True, SHAPES, taken=other.layout.places)
    assert isinstance(answer, Adjusted)
    assert answer.pools == pools_of("1 tp2")


def test_a_fleet_shrinks_with_the_hardware_and_grows_back_with_it() -> None:
    asked = wish("1 tp2pp2")
    _, world, _ = run(found(), asked)
    adjusted = survive(asked, ONE_ISLAND, lambda shape: True, SHAPES)
    assert isinstance(adjusted, Adjusted)
    log, world, _ = run(world.actual, adjusted.applied_to(asked), cluster=ONE_ISLAND)
    assert kinds(log) == ["Hold", "Move", "Stop", "Start", "Release", "Settle"]
    assert shapes_serving(world.actual) == {"tp2": 1}
    back = survive(asked, TWO_ISLANDS, lambda shape: True, SHAPES)
    assert isinstance(back, Adjusted)
    assert back.applied_to(asked) == asked
    _, world, last = run(world.actual, asked)
    assert shapes_serving(world.actual) == {"tp2pp2": 1}
    assert not last.blocked


def test_forced_pools_do_not_keep_to_a_way_that_was_asked_for() -> None:
    asked = wish("1 tp2pp2", way=Way.SURGE)
    adjusted = survive(asked, ONE_ISLAND, lambda shape: True, SHAPES)
    assert isinstance(adjusted, Adjusted)
    assert adjusted.applied_to(asked) == replace(asked, pools=pools_of("1 tp2"), way=None)
