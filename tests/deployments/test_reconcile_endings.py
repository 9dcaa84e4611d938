"""How a replica goes: when a drain or a move of its requests is over, and what is not known of them."""

from dataclasses import replace

import pytest
from reconcile_builders import (
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

from deployments.reconcile import Phase, Record, without_nodes
from deployments.reconcile.states import LEAST_MOVE_S


def test_a_drain_ends_when_no_requests_are_left_or_its_time_is_over() -> None:
    draining = replica("tp1", phase=Phase.DRAINING)
    for now_s, requests, expected in [(59, 1, []), (60, 1, ["Move tp1#0"]), (1, 0, ["Stop tp1#0"])]:
        actual = found(replace(draining, unfinished_requests=requests), replica("tp2", draining.layout.places, index=1))
        steps = look(replace(actual, now_s=now_s), wish("1 tp2")).steps
        assert [told(step) for step in steps if told(step) != "Settle"] == expected


def test_a_model_that_goes_has_nowhere_to_move_requests_to() -> None:
    steps = look(found(replica("tp1", phase=Phase.DRAINING), now_s=60), wish("")).steps
    assert [told(step) for step in steps] == ["Stop tp1#0"]


@pytest.mark.parametrize(
    ("is_held", "pools", "ends"), [(True, "1 tp2", True), (False, "1 tp2", False), (False, "", True)]
)
def test_what_cannot_move_is_waited_for_unless_others_wait_with_it(is_held: bool, pools: str, ends: bool) -> None:
    """A request that cannot move would else keep all that are held from ever going on, until they are given up."""
    moving = replica("tp2pp2", phase=Phase.MOVING)
    held = frozenset({MODEL} if is_held else ())
    for now_s, expected in [(59.0, []), (60.0, ["Stop tp2pp2#0"] if ends else [])]:
        steps = look(found(moving, now_s=now_s, held=held), wish(pools)).steps
        assert [told(step) for step in steps if not told(step).startswith(("Hold", "Release"))] == expected


def test_a_swap_away_from_a_request_that_cannot_move_ends() -> None:
    log, world, last = run(settled("1 tp2pp2"), wish("2 tp2", version=2), clinging=lambda name: "tp2pp2" in name)
    assert log == [
        "0: Hold 35",
        "0: Move tp2pp2#0",
        "60: Stop tp2pp2#0",
        "65: Start tp2#1 on 0.0+0.1",
        "65: Start tp2#2 on 1.0+1.1",
        "95: Release",
        "95: Settle",
    ]
    assert not last.blocked
    assert shapes_serving(world.actual) == {"tp2": 2}


def test_even_a_drain_of_no_time_lets_requests_move_out_of_the_way() -> None:
    moving = replica("tp2pp2", phase=Phase.MOVING)
    for now_s, expected in [(LEAST_MOVE_S - 1, []), (LEAST_MOVE_S, ["Stop tp2pp2#0"])]:
        actual = found(moving, now_s=now_s, held=frozenset({MODEL}))
        steps = look(actual, wish("2 tp2"), limits=make_limits(drain_timeout_s=0.0)).steps
        assert [told(step) for step in steps] == expected


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.MOVING])
def test_a_load_that_is_not_known_is_not_none(phase: Phase) -> None:
    going = replica("tp1", phase=phase, unfinished_requests=None)
    other = replica("tp2", going.layout.places, index=1)
    steps = look(found(going, other), wish("1 tp2")).steps
    assert [told(step) for step in steps if told(step) != "Settle"] == []
    lost = look(found(going, other), wish("1 tp2"), cluster=without_nodes(TWO_ISLANDS, frozenset({"island-0-node-0"})))
    expected = "Stop tp1#0"  # with its node all of it is gone
    assert expected in [told(step) for step in lost.steps]


@pytest.mark.parametrize("requests", [0, 1, None])
def test_who_drains_goes_on_while_what_was_to_take_over_is_broken(requests: int | None) -> None:
    """Else a new shape that breaks with its first load would take the old one with it."""
    old = replica("tp2", phase=Phase.DRAINING, unfinished_requests=requests)
    new = replica("pp2", old.layout.places, index=1, phase=Phase.STARTING, since_s=50.0)
    record = Record(version=1, last_good=pools_of("1 tp2"))
    actual = found(old, new, now_s=70.0, records={MODEL: record})  # the time for draining is over too
    assert look(actual, wish("1 pp2")).steps == ()
    back = replace(actual, replicas=(old, replace(new, phase=Phase.SERVING)))
    expected = "Stop tp2#0" if requests == 0 else "Move tp2#0"
    assert [told(step) for step in look(back, wish("1 pp2")).steps] == [expected]


def test_who_drains_makes_room_where_its_gpus_are_needed() -> None:
    old = replica("tp2pp2", phase=Phase.DRAINING)
    assert [told(step) for step in look(found(old), wish("2 tp2")).steps] == []
    held = found(old, held=frozenset({MODEL}))
    assert [told(step) for step in look(held, wish("2 tp2")).steps] == ["Move tp2pp2#0"]
