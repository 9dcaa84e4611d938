"""Lost and leaving nodes. Node names are those of `cluster_of`: island-0-node-0 and so on."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from placement_builders import cluster_of
from reconcile_builders import MODEL, TWO_ISLANDS, found, look, pools_of, replica, run, shapes_serving, told, wish

from deployments.reconcile import Adjusted, Phase, Way, count_shapes, survive, without_nodes
from placement import Cluster, Shape
from placement.layout import Infeasible

FIRST, SECOND = "island-0-node-0", "island-1-node-0"
ONE_ISLAND = without_nodes(TWO_ISLANDS, frozenset({SECOND}))
SHAPES = [Shape.parse(text) for text in ("tp1", "tp2", "pp2", "tp2pp2")]


def kinds(log: Sequence[str]) -> list[str]:
    return [line.split(": ")[1].split()[0] for line in log]


# --- the steps -------------------------------------------------------------------------------------------------------


def test_a_leaving_node_is_emptied_at_once_while_another_replica_takes_over() -> None:
    one = replica("tp2", index=0)
    two = replica("tp2", one.layout.places, index=1)
    cluster = cluster_of(2, 2, 2)
    log, world, last = run(found(one, two), wish("2 tp2"), cluster=cluster, leaving=frozenset({FIRST}))
    assert log == ["0: Move tp2#0", "0: Start tp2#2 on 2.0+2.1", "0: Stop tp2#0", "30: Settle"]
    assert shapes_serving(world.actual) == {"tp2": 2}
    assert not last.blocked


def test_one_shard_on_a_leaving_node_is_enough() -> None:
    wide = replica("tp2pp2")
    steps = look(found(wide), wish("1 tp2"), leaving=frozenset({SECOND})).steps
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


def test_a_drain_on_a_leaving_node_is_cut_short() -> None:
    one = replica("tp2", phase=Phase.DRAINING)
    two = replica("tp2", one.layout.places, index=1)
    steps = look(found(one, two), wish("1 tp2"), leaving=frozenset({FIRST})).steps
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
