"""Starts that fail: on two islands of two GPUs, where island 0 has seats 0.0 and 0.1, island 1 has 1.0 and 1.1."""

from dataclasses import replace

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

from deployments.reconcile import Phase, Record, Settle, next_steps


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
