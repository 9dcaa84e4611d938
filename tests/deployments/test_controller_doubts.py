"""What the controller does not know it does not take for nothing: who is too busy to answer, what Serve forgot."""

from collections.abc import Callable

import pytest
from controller_builders import MODEL, START_S, model_record
from controller_running import Begin, Controller, begin, check_nothing_is_left_over, members, membership

from deployments.controller import observing

__all__ = ["begin"]
OTHER = "acme/other"
TURNS = 16  # more than these changes take
WAYS = [pytest.param("1 tp1", "1 tp2", id="surge"), pytest.param("2 tp2", "2 pp2", id="rolling")]


def serving(controller: Controller) -> set[str]:
    """Replicas that ingresses may use: those that drain where no other is there."""
    able = {name: member.accepts for name, member in members(controller).items() if not member.leaves}
    return {name for name, accepts in able.items() if accepts} or set(able)


def never_loses_its_last(controller: Controller, turns: int) -> None:
    """In every turn there is a replica that takes requests, and none is taken away without a drain."""
    for _ in range(turns):
        before = members(controller)
        controller.turn()
        now = members(controller)
        assert serving(controller), controller.texts()
        assert not membership(controller).holds_new
        for name, member in before.items():
            assert name in now or not member.accepts, f"{name} was cut off: {controller.texts()}"


def amid_a_change(begin: Begin, pools: str, wanted: str, turns: int) -> Controller:
    """So many turns after other pools were asked for."""
    controller = begin(pools)
    controller.settle()
    controller.ask(wanted)
    never_loses_its_last(controller, turns)
    return controller


def ends_it_well(controller: Controller) -> None:
    """The change goes on to its end as if nothing had been."""
    never_loses_its_last(controller, 3 * TURNS)
    controller.settle()
    assert not {"failure", "rollback", "stall"} & set(controller.kinds())
    check_nothing_is_left_over(controller)


@pytest.mark.parametrize(("pools", "wanted"), WAYS)
@pytest.mark.parametrize("turn", range(TURNS))
def test_a_serve_controller_that_is_started_again_stops_nobody(
    turn: int, pools: str, wanted: str, begin: Begin
) -> None:
    """It says of all replicas that they are being deployed, until it has looked at each."""
    controller = amid_a_change(begin, pools, wanted, turn)
    controller.serve.recovers = True
    never_loses_its_last(controller, 3)
    controller.serve.recovers = False
    ends_it_well(controller)
    assert serving(controller) == set(controller.phases())


@pytest.mark.parametrize(("pools", "wanted"), WAYS)
@pytest.mark.parametrize("turn", range(TURNS))
def test_a_new_controller_takes_nobody_for_dead_who_is_too_busy_to_answer(
    turn: int, pools: str, wanted: str, begin: Begin
) -> None:
    controller = amid_a_change(begin, pools, wanted, turn)
    known = serving(controller)
    controller.serve.silent = lambda name: True
    controller.begin()
    controller.turn()
    assert known <= set(members(controller))
    never_loses_its_last(controller, 3)
    controller.serve.silent = lambda name: False
    ends_it_well(controller)


def test_a_replica_whose_load_is_not_known_is_not_stopped_as_if_it_had_none(begin: Begin) -> None:
    controller = begin("2 tp1", limits={"drain_timeout_s": 20.0})
    controller.settle()
    controller.ask("1 tp1")
    controller.turn()
    (leaving,) = [name for name, phase in controller.phases().items() if phase == "draining"]
    controller.serve.silent = lambda name: name.endswith(f"--{leaving}")
    controller.begin()
    for _ in range(15):
        controller.turn()
        assert controller.phases()[leaving] == "draining"
    for _ in range(10):
        controller.turn()
    assert controller.phases()[leaving] == "moving", "the time for draining is over"
    controller.serve.silent = lambda name: False
    controller.settle()
    assert controller.serve.serving() == {"tp1": 1}


def test_a_replica_that_dies_is_gone_for_the_ingresses_at_once_and_back_when_it_serves(begin: Begin) -> None:
    controller = begin("2 tp1")
    controller.settle()
    controller.serve.apps["acme-tiny--tp1--0"].die(controller.serve.now_s)
    controller.turn()
    assert set(members(controller)) == {"1"}
    controller.begin()  # nor does the next controller believe what it said before it died
    controller.turn()
    assert set(members(controller)) == {"1"}
    controller.serve.tick(START_S)
    controller.settle()
    assert set(members(controller)) == {"0", "1"}


def long_recovery(controller: Controller) -> None:
    controller.serve.recovers = True


def not_on_record(controller: Controller) -> None:
    """It had not begun to serve when the controller died."""
    controller.begin()
    controller.serve.silent = lambda name: True


@pytest.mark.parametrize(
    ("doubt", "after_s"), [(long_recovery, observing.SERVE_RECOVERY_S), (not_on_record, 0.0)], ids=["long", "new"]
)
def test_there_is_an_end_to_believing(doubt: Callable[[Controller], None], after_s: float, begin: Begin) -> None:
    controller = begin("1 tp1")
    if after_s:
        controller.settle()
    else:
        controller.turn()
    doubt(controller)
    controller.turn()
    assert bool(members(controller)) is bool(after_s)
    controller.serve.tick(after_s)
    controller.turn()
    assert controller.phases() == {"0": "starting"}
    assert members(controller) == {}


def test_the_trouble_of_one_model_is_not_that_of_another(begin: Begin) -> None:
    """A model whose start Serve will not even take must not keep the controller from mending the others."""
    controller = begin("1 tp1")
    controller.settle()
    controller.serve.refuses = lambda name: "--tp2--" in name
    controller.ask("1 tp1, 1 tp2")
    with pytest.raises(ExceptionGroup, match="not looked after: acme/tiny"):
        controller.turn()
    controller.store.put_model(model_record("1 tp1", model=OTHER))
    for _ in range(int(START_S) + 3):
        with pytest.raises(ExceptionGroup):
            controller.turn()
    assert controller.serve.serving() == {"tp1": 2}
    assert [member.accepts for member in controller.reconciler.memberships[OTHER].members] == [True]
    assert MODEL in controller.reconciler.memberships


def test_when_what_was_to_take_over_breaks_who_drains_takes_requests_again(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    controller.ask("1 tp2")
    while controller.phases().get("0") != "draining":
        controller.turn()
    assert serving(controller) == {"1"}
    controller.serve.apps["acme-tiny--tp2--1"].die(controller.serve.now_s)
    for _ in range(int(START_S) - 1):
        controller.turn()
        assert serving(controller) == {"0"}
    assert "stall" not in controller.kinds()
    controller.settle()
    assert serving(controller) == {"1"}
    assert controller.serve.serving() == {"tp2": 1}
    check_nothing_is_left_over(controller)
