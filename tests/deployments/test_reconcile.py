"""Exact step sequences on two islands of two GPUs: island 0 has seats 0.0 and 0.1, island 1 has 1.0 and 1.1."""

from itertools import permutations

import pytest
from placement_builders import GIB, cluster_of
from reconcile_builders import (
    MODEL,
    found,
    look,
    make_limits,
    pools_of,
    replica,
    run,
    settled,
    shapes_serving,
    told,
    wish,
)

from deployments.reconcile import Limits, Phase, Way

OTHER = "acme/other"


# --- the three ways --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        pytest.param(
            "1 tp1",
            "1 tp2",
            ["0: Start tp2#1 on 1.0+1.1", "30: Drain tp1#0", "50: Stop tp1#0", "55: Settle"],
            id="surge: the new replica serves before the old one drains",
        ),
        pytest.param(
            "2 tp2",
            "2 pp2",
            [
                "0: Drain tp2#1",
                "20: Stop tp2#1",
                "25: Start pp2#2 on 1.0+1.1",
                "55: Drain tp2#0",
                "75: Stop tp2#0",
                "80: Start pp2#3 on 0.0+0.1",
                "110: Settle",
            ],
            id="rolling: one after the other, one always serves",
        ),
        pytest.param(
            "2 tp2",
            "4 tp1",
            [
                "0: Drain tp2#1",
                "20: Stop tp2#1",
                "25: Start tp1#2 on 1.0",
                "25: Start tp1#3 on 1.1",
                "55: Drain tp2#0",
                "75: Stop tp2#0",
                "80: Start tp1#4 on 0.0",
                "80: Start tp1#5 on 0.1",
                "110: Settle",
            ],
            id="rolling: all that has room in what one replica leaves",
        ),
        pytest.param(
            "4 tp1",
            "1 tp2, 2 tp1",
            [
                "0: Drain tp1#2",
                "0: Drain tp1#3",
                "20: Stop tp1#2",
                "20: Stop tp1#3",
                "25: Start tp2#4 on 1.0+1.1",
                "55: Settle",
            ],
            id="rolling: the two that drain are of one island, and the others stay",
        ),
        pytest.param(
            "1 tp2pp2",
            "1 tp2",
            [
                "0: Hold 35",
                "0: Move tp2pp2#0",
                "0: Stop tp2pp2#0",
                "5: Start tp2#1 on 0.0+0.1",
                "35: Release",
                "35: Settle",
            ],
            id="swap: one replica fills the cluster",
        ),
        pytest.param(
            "2 tp1",
            "3 tp1",
            ["0: Start tp1#2 on 1.0", "30: Settle"],
            id="replication up: nothing but a start",
        ),
        pytest.param(
            "3 tp1",
            "1 tp1",
            ["0: Drain tp1#1", "0: Drain tp1#2", "20: Stop tp1#1", "20: Stop tp1#2", "25: Settle"],
            id="replication down: the oldest stays",
        ),
        pytest.param("1 tp2, 1 pp2", "", None, id="the model goes"),
    ],
)
def test_the_steps_of_each_way(before: str, after: str, steps: list[str] | None) -> None:
    log, world, last = run(settled(before), wish(after, version=2))
    if steps is None:
        steps = ["0: Drain tp2#0", "0: Drain pp2#1", "20: Stop tp2#0", "20: Stop pp2#1", "25: Settle"]
    assert log == steps
    assert not last.blocked
    assert shapes_serving(world.actual) == {str(pool.shape): pool.replicas for pool in pools_of(after)}


def test_scattered_gpus_are_gathered_by_moving_one_replica() -> None:
    """Two tp1 on different islands leave no island whole for a tp2: one starts again beside the other, then yields."""
    one = replica("tp1", index=0)
    two = replica("tp1", one.layout.places | replica("tp2").layout.places, index=1)
    log, world, _ = run(found(one, two), wish("2 tp1, 1 tp2"))
    assert log == [
        "0: Start tp1#2 on 0.1",
        "30: Drain tp1#1",
        "50: Stop tp1#1",
        "55: Start tp2#3 on 1.0+1.1",
        "85: Settle",
    ]
    assert shapes_serving(world.actual) == {"tp1": 2, "tp2": 1}


def test_a_free_seat_stays_free_where_a_wider_replica_will_need_it() -> None:
    """0.1 is free, but a tp1 there would leave no island for the tp2."""
    cluster = cluster_of(2, 1, 1)
    first_two = frozenset({("island-0-node-0", 0), ("island-0-node-0", 1), ("island-1-node-0", 0)})
    lone = replica("tp1", first_two, cluster=cluster, index=0)
    old = replica("pp2", lone.layout.places | {("island-0-node-0", 1)}, cluster=cluster, index=1)
    log, _, _ = run(found(lone, old), wish("1 tp2, 2 tp1"), cluster=cluster)
    assert log == [
        "0: Drain pp2#1",
        "20: Stop pp2#1",
        "25: Start tp2#2 on 0.0+0.1",
        "25: Start tp1#3 on 1.0",
        "55: Settle",
    ]


def test_twenty_repartitions_in_a_row() -> None:
    shapes = ["tp1", "tp2", "pp2", "tp2pp2"]
    order = [after for pair in permutations(shapes, 2) for after in pair][:21]
    actual = settled("1 tp2")
    for version, shape in enumerate(order, start=2):
        _, world, last = run(actual, wish(f"1 {shape}", version=version))
        actual = world.actual
        assert not last.blocked
        assert not actual.held
        assert shapes_serving(actual) == {shape: 1}


@pytest.mark.parametrize(
    ("before", "after", "way", "kinds"),
    [
        ("1 tp1", "1 pp2", Way.SWAP, ["Hold", "Move", "Start", "Stop", "Release", "Settle"]),
        ("1 tp1", "1 pp2", Way.ROLLING, ["Start", "Drain", "Stop", "Settle"]),
        ("2 tp1", "2 pp2", Way.ROLLING, ["Start", "Drain", "Drain", "Stop", "Stop", "Start", "Settle"]),
        ("1 tp2pp2", "1 tp2", Way.SURGE, []),
        ("1 tp2pp2", "1 tp2", Way.ROLLING, []),
    ],
)
def test_a_way_that_is_asked_for_is_taken_or_refused(before: str, after: str, way: Way, kinds: list[str]) -> None:
    actual = settled(before)
    log, world, last = run(actual, wish(after, version=2, way=way))
    if kinds:
        assert not last.blocked
    else:
        assert str(last.blocked[MODEL]).startswith(f"{way}: ")
        assert world.actual.replicas == actual.replicas
    assert [line.split(": ")[1].split()[0] for line in log] == kinds


def test_a_swap_that_is_asked_for_needs_no_hold_while_another_replica_serves() -> None:
    log, _, _ = run(settled("1 tp2, 1 tp1"), wish("1 tp2, 1 pp2", version=2, way=Way.SWAP))
    assert [line.split(": ")[1].split()[0] for line in log] == ["Move", "Stop", "Start", "Settle"]


@pytest.mark.parametrize(
    ("limits", "nearest"),
    [
        (make_limits(floor=0.5), "floor 0"),
        (make_limits(max_stall_s=10.0), "max_stall_s 35"),
    ],
)
def test_a_swap_that_costs_too_much_is_refused_and_nothing_is_touched(limits: Limits, nearest: str) -> None:
    actual = settled("1 tp2pp2")
    log, world, last = run(actual, wish("2 tp2", version=2), limits=limits)
    assert log == []
    assert world.actual.replicas == actual.replicas
    assert nearest in last.blocked[MODEL].nearest
    assert "swap: nothing serves for about 35 s" in last.blocked[MODEL].constraint


@pytest.mark.parametrize(("floor", "goes"), [(0.5, True), (0.51, False)])
def test_rolling_stops_at_the_floor(floor: float, goes: bool) -> None:
    log, _, last = run(settled("2 tp2"), wish("2 pp2", version=2), limits=make_limits(floor=floor))
    assert bool(log) is goes
    assert bool(last.blocked) is not goes
    if not goes:
        assert "leaves 2; at least 1 and 0.51 of 4 must keep serving" in last.blocked[MODEL].constraint


def test_what_has_no_room_is_refused_with_the_nearest_shape() -> None:
    _, _, last = run(settled("1 tp1"), wish("1 tp4", version=2))
    assert (
        last.blocked[MODEL].constraint
        == "tp4 needs 4 free GPUs in one island; the largest free island has 2 (island-0)"
    )
    assert last.blocked[MODEL].nearest.startswith("tp2pp2")


def test_a_gpu_with_too_little_memory_is_no_seat() -> None:
    answer = look(found(), wish("1 tp1", min_memory_bytes=81 * GIB))
    assert not answer.steps
    assert "of at least 81.0 GiB" in answer.blocked[MODEL].constraint


# --- one look --------------------------------------------------------------------------------------------------------


def test_what_is_starting_is_not_started_again() -> None:
    assert look(found(replica("tp2", phase=Phase.STARTING, unfinished_requests=0)), wish("1 tp2")).steps == ()


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.MOVING, Phase.STOPPING, Phase.FAILED])
def test_a_seat_is_free_only_when_its_replica_is_gone(phase: Phase) -> None:
    """With the other model on the other three GPUs, the only way on is to wait for the seat."""
    mine = replica("tp1", phase=phase)
    others = replica("tp1pp3", mine.layout.places, index=1, model=OTHER)
    steps = look(found(mine, others), wish("1 tp1"), wish("1 tp1pp3", model=OTHER)).steps
    assert not any(told(step).startswith("Start") for step in steps)


def test_pools_without_replicas_are_no_pools() -> None:
    assert wish("0 tp1, 2 tp2") == wish("2 tp2")
    steps = look(found(replica("tp1", phase=Phase.DRAINING), now_s=60), wish("0 tp1")).steps
    assert [told(step) for step in steps] == ["Stop tp1#0"]


def test_a_start_that_is_no_longer_wanted_is_stopped_at_once() -> None:
    starting = replica("tp2", phase=Phase.STARTING)
    serving = replica("tp1", starting.layout.places, index=1)
    steps = look(found(starting, serving), wish("1 tp1")).steps
    assert [told(step) for step in steps] == ["Stop tp2#0"]


def test_replicas_of_a_model_that_nobody_asked_about_are_left_alone() -> None:
    stranger = replica("tp2", model=OTHER)
    log, world, last = run(found(stranger), wish("1 tp2"))
    assert log == ["0: Start tp2#1 on 1.0+1.1", "30: Settle"]
    assert stranger in world.actual.replicas
    assert not last.blocked


# --- several models --------------------------------------------------------------------------------------------------


def test_one_model_starts_on_what_another_gives_up() -> None:
    first, second = replica("tp2pp2", index=0), wish("1 tp2", model=OTHER)
    _, world, last = run(found(first), second, wish("1 tp2"), limits=make_limits())
    assert shapes_serving(world.actual) == shapes_serving(world.actual, OTHER) == {"tp2": 1}
    assert not last.blocked


def test_what_a_model_frees_for_itself_is_not_taken_by_another() -> None:
    _, world, last = run(settled("2 tp2"), wish("1 tp2", model=OTHER), wish("2 pp2", version=2))
    assert shapes_serving(world.actual) == {"pp2": 2}
    assert "tp2 needs 2 free GPUs" in last.blocked[OTHER].constraint
