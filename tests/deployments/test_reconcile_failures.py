"""Starts that fail: on islands of two GPUs, where island 0 has seats 0.0 and 0.1, island 1 has 1.0 and 1.1."""

from dataclasses import replace

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
    settled,
    shapes_serving,
    told,
    wish,
)

from deployments.reconcile import Phase, Record, Settle, Start, next_steps
from deployments.reconcile.stock import Room
from placement import Shape
from placement.layout import Layout, Place


def test_a_failed_start_rolls_back_to_the_last_good_pools() -> None:
    log, world, last = run(settled("1 tp1"), wish("1 tp2", version=2), doomed=lambda name: "tp2" in name)
    assert log == ["0: Start tp2#1 on 1.0+1.1", "30: RollBack", "30: Stop tp2#1", "35: Settle"]
    assert shapes_serving(world.actual) == {"tp1": 1}
    assert last.blocked[MODEL].constraint == "version 2 was rolled back: acme-tiny--tp2--1 did not start: simulated"


def test_a_start_that_takes_too_long_rolls_back_too() -> None:
    log, _, _ = run(settled("1 tp1"), wish("1 tp2", version=2), limits=make_limits(start_timeout_s=10.0))
    assert log == ["0: Start tp2#1 on 1.0+1.1", "10: RollBack", "10: Stop tp2#1", "15: Settle"]


def test_a_swap_that_fails_brings_the_old_replica_back_before_it_releases() -> None:
    log, world, _ = run(settled("1 tp2pp2"), wish("1 tp2", version=2), doomed=lambda name: "--tp2--" in name)
    assert log[3:] == [
        "5: Start tp2#1 on 0.0+0.1",
        "35: RollBack",
        "35: Stop tp2#1",
        "40: Start tp2pp2#2 on 0.0+0.1+1.0+1.1",
        "70: Release",
        "70: Settle",
    ]
    assert shapes_serving(world.actual) == {"tp2pp2": 1}
    assert world.actual.records[MODEL].last_good == pools_of("1 tp2pp2")


def test_attempts_are_bounded_and_wait_longer_each_time() -> None:
    log, world, last = run(
        found(), wish("2 tp1"), doomed=lambda name: True, limits=make_limits(retry_after_s=(10.0, 100.0))
    )
    starts = [line for line in log if "Start" in line]
    assert [line.split(":")[0] for line in starts] == ["0", "0", "40", "40", "170", "170"]
    assert [line for line in log if "Count" in line] == ["30: CountFailure", "70: CountFailure", "200: CountFailure"]
    assert world.actual.replicas == ()
    assert "3 attempts to start 2 x tp1 have failed" in last.blocked[MODEL].constraint


def test_a_swap_whose_roll_back_fails_too_stops_holding() -> None:
    """Nothing will serve: whoever waits gets an answer instead of waiting for ever."""
    old = settled("1 tp2pp2")
    _, world, last = run(old, wish("1 tp2", version=2), doomed=lambda name: True)
    assert world.actual.replicas == ()
    assert not world.actual.held
    assert "attempts to start 1 x tp2pp2" in last.blocked[MODEL].constraint


def test_a_new_version_is_tried_afresh() -> None:
    _, world, _ = run(settled("1 tp1"), wish("1 tp2", version=2), doomed=lambda name: "tp2" in name)
    _, world, last = run(world.actual, wish("1 tp2", version=3))
    assert shapes_serving(world.actual) == {"tp2": 1}
    assert not last.blocked


def test_a_crash_between_the_roll_back_and_the_stop_counts_the_failure_once() -> None:
    failed = replica("tp2", phase=Phase.FAILED, index=4, cause="out of memory")
    record = Record(version=2, last_good=pools_of("1 tp2"), given_up="x", counted_below=5)
    steps = look(found(failed, records={MODEL: record}), wish("1 tp1", version=2)).steps
    assert [told(step).split()[0] for step in steps] == ["Hold", "Stop", "Start"]


def test_a_fleet_that_was_rolled_back_and_shrunk_by_a_loss_is_not_rolled_back_again() -> None:
    """It would be for ever: each roll-back starts the count of attempts afresh."""
    failed = replica("tp1", phase=Phase.FAILED, index=7)
    record = Record(version=2, last_good=pools_of("1 tp2pp2"), given_up="x", counted_below=5)
    shrunk = wish("1 tp1", version=2)
    answer = next_steps(found(failed, records={MODEL: record}), [shrunk], TWO_ISLANDS, make_limits(), DURATIONS)
    assert [told(step).split()[0] for step in answer.steps] == ["CountFailure", "Hold", "Stop"]


def test_a_lone_replica_that_breaks_is_replaced_while_its_requests_are_held() -> None:
    actual = settled("1 tp2")
    broken = replace(actual.replicas[0], phase=Phase.FAILED, cause="EngineDeadError")
    log, world, _ = run(replace(actual, replicas=(broken,)), wish("1 tp2"))
    assert [line.split()[1] for line in log] == ["CountFailure", "Hold", "Stop", "Start", "Release", "Settle"]
    assert not world.actual.held


def test_what_a_loss_makes_of_a_fleet_that_was_rolled_back_is_not_the_last_good_one() -> None:
    """Or the pools would not come back with the hardware."""
    record = Record(version=2, last_good=pools_of("1 tp2pp2"), given_up="x")
    actual = found(replica("tp2"), records={MODEL: record})
    (step,) = next_steps(actual, [wish("1 tp2", version=2)], TWO_ISLANDS, make_limits(), DURATIONS).steps
    assert step == Settle(model=MODEL, record=replace(record, reached=True), reason="acme/tiny has 1 x tp2.")


def test_what_was_reached_is_not_given_up_when_a_later_start_fails() -> None:
    """A loss has left one of two replicas: a start that fails once the hardware is back is tried again."""
    shrunk = found(replica("tp2"), records={MODEL: Record(version=1, last_good=pools_of("1 tp2"), reached=True)})
    failures = iter([True])
    log, world, last = run(shrunk, wish("2 tp2"), doomed=lambda name: name.endswith("--1") and next(failures, False))
    assert [line.split()[1] for line in log] == ["Start", "CountFailure", "Stop", "Start", "Settle"]
    assert shapes_serving(world.actual) == {"tp2": 2}
    assert not last.blocked


# --- which GPUs ------------------------------------------------------------------------------------------------------


def starts(log: list[str]) -> list[str]:
    return [line.split(" ", 1)[1] for line in log if "Start" in line]


def test_a_gpu_that_breaks_while_ray_counts_it_is_left_alone_where_there_is_another() -> None:
    """Ray goes on counting it, so every attempt would take the same seats: those of the fullest island."""
    cluster = cluster_of(2, 2, 2)
    bad = replica("tp2", phase=Phase.FAILED, cause="CUDA error: device-side", index=0)
    good = replica("tp2", bad.layout.places, index=1)
    record = Record(version=1, last_good=pools_of("2 tp2"), reached=True)
    actual = found(bad, good, records={MODEL: record})
    log, world, last = run(actual, wish("2 tp2"), cluster=cluster, broken=frozenset({("island-0-node-0", 1)}))
    assert log == ["0: CountFailure", "0: Stop tp2#0", "10: Start tp2#2 on 2.0+2.1", "40: Settle"]
    assert world.actual.records[MODEL] == replace(record, counted_below=2), "forgotten once all is well"
    assert not last.blocked


def test_the_start_says_where_it_does_not_go_and_why() -> None:
    bad = replica("tp2", index=0).layout.places
    record = Record(version=1, failed_at_s=(0.0,), failed_on=bad)
    (start,) = look(found(now_s=10.0, records={MODEL: record}), wish("1 tp2")).steps
    assert isinstance(start, Start)
    assert start.reason == "1 x tp2 wanted (surge). Not on GPUs 0, 1 of island-0-node-0, where a start has failed."
    (start,) = look(found(now_s=10.0, records={MODEL: record}), wish("1 tp2pp2")).steps
    assert start.reason == "1 x tp2pp2 wanted (surge)."


def test_a_node_where_all_starts_fail_costs_one_attempt() -> None:
    """They fail one after the other, and only the first is counted."""
    first = frozenset({("island-0-node-0", slot) for slot in (0, 1)})
    one = replica("tp1", index=0, phase=Phase.FAILED, unfinished_requests=0)
    two = replica("tp1", one.layout.places, index=1, phase=Phase.STARTING, unfinished_requests=0)
    log, world, _ = run(found(one, two), wish("2 tp1"), broken=first)
    assert starts(log) == ["Start tp1#2 on 1.0", "Start tp1#3 on 1.1"]
    assert shapes_serving(world.actual) == {"tp1": 2}


def test_where_starts_have_failed_everywhere_they_are_tried_anywhere() -> None:
    """The configuration is at fault, and no GPU: attempts are as many, and as far apart, as with one island."""
    log, _, last = run(found(), wish("1 tp2"), doomed=lambda name: True)
    assert starts(log) == [
        f"Start tp2#{n} on {seats}" for n, seats in enumerate(["0.0+0.1", "1.0+1.1"] + 2 * ["0.0+0.1"])
    ]
    assert "4 attempts to start 1 x tp2 have failed" in last.blocked[MODEL].constraint


def test_of_several_replicas_as_many_as_possible_keep_off_gpus_that_failed() -> None:
    record = Record(
        version=1, failed_at_s=(0.0,), failed_on=frozenset({("island-0-node-0", 0), ("island-0-node-0", 1)})
    )
    steps = look(found(now_s=10.0, records={MODEL: record}), wish("3 tp1")).steps
    assert [told(step) for step in steps] == ["Start tp1#0 on 1.0", "Start tp1#1 on 1.1", "Start tp1#2 on 0.0"]


def test_to_keep_off_a_gpu_that_failed_never_costs_a_replica_its_room() -> None:
    """On the larger island the tp3 would leave both islands too small for the second tp2."""
    record = Record(version=1, failed_at_s=(0.0,), failed_on=frozenset({("island-0-node-0", 0)}))
    actual = found(now_s=10.0, records={MODEL: record})
    answer = look(actual, wish("1 tp3, 2 tp2"), cluster=cluster_of(3, 4))
    assert [told(step).split(" on ")[1][0] for step in answer.steps] == ["0", "1", "1"]


def test_nor_does_the_first_to_start_take_the_room_of_those_that_start_later() -> None:
    nothing, island = frozenset[Place](), cluster_of(1, 2)
    suspect = frozenset({("island-0-node-0", 0)})
    room = Room(cluster=island, taken=nothing, lasting=nothing, min_memory_bytes=0, suspect=suspect)
    layout = room.seat_first((Shape.parse("tp1"), Shape.parse("tp2")), nothing, nothing)
    assert isinstance(layout, Layout)
    assert layout.places == suspect
