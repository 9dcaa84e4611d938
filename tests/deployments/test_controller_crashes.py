"""A controller that dies at any moment is followed by one that goes on: nothing twice, nothing left over."""

import pytest
from controller_builders import Application
from controller_running import Begin, Controller, begin, check_nothing_is_left_over, membership
from deployment_builders import layout_of

__all__ = ["begin"]


def calls_of(controller: Controller, pools: str) -> tuple[int, int]:
    """From which call to which a change of the pools goes."""
    first = controller.serve.calls
    controller.ask(pools)
    controller.settle()
    return first + 1, controller.serve.calls  # the first is the target itself


def shapes(controller: Controller) -> list[str]:
    """Of all replicas that were started. A crash may cost an index, so names may differ."""
    return sorted(name.rpartition("--")[0] for name in controller.serve.started)


CHANGES = [("2 tp1", "1 tp2"), ("1 tp2pp2", "2 tp2"), ("2 tp2", "1 tp1, 1 tp2"), ("1 tp2", ""), ("4 tp1", "1 tp2pp2")]


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=[f"{a} to {b or 'nothing'}" for a, b in CHANGES])
def test_a_controller_that_dies_before_any_of_its_calls_is_followed_by_one_that_ends_in_the_same_state(
    before: str, after: str, begin: Begin
) -> None:
    undisturbed = begin(before)
    undisturbed.settle()
    first, last = calls_of(undisturbed, after)
    assert last - first >= 4
    for call in range(first, last):
        controller = begin(before)
        controller.settle()
        controller.serve.crash_before = call
        controller.ask(after)
        controller.settle()
        assert controller.crashes == 1, call
        assert controller.serve.serving() == undisturbed.serve.serving(), call
        assert shapes(controller) == shapes(undisturbed), call
        assert not {"failure", "rollback"} & set(controller.kinds()), call
        check_nothing_is_left_over(controller)


def test_a_controller_that_dies_in_every_turn_gets_there_all_the_same(begin: Begin) -> None:
    controller = begin("2 tp1")
    for _ in range(20):
        controller.begin()
        controller.turn()
    controller.ask("1 tp2")
    for _ in range(40):
        controller.begin()
        controller.turn()
    assert controller.serve.serving() == {"tp2": 1}
    check_nothing_is_left_over(controller)


def test_a_new_controller_has_newer_versions_for_the_ingresses(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    before = membership(controller)
    controller.begin()
    controller.turn()
    assert membership(controller).version > before.version
    assert membership(controller).members == before.members


@pytest.mark.parametrize("name", ["acme-tiny--tp1--9", "acme-other--ingress--1"])
def test_a_replica_or_an_ingress_that_is_not_on_record_is_deleted(name: str, begin: Begin) -> None:
    controller = begin("1 tp1")
    layout = layout_of("tp1", controller.serve.cluster) if "ingress" not in name else None
    seats = frozenset({("island-1-node-0", 1)}) if layout else frozenset()
    controller.serve.apps[name] = Application(seats=seats, layout=layout, started_s=0.0)
    controller.settle()
    assert controller.texts("controller") == ["It is not on record, so it is deleted."]
    check_nothing_is_left_over(controller)


@pytest.mark.parametrize(
    "name", ["dashboard", "acme-tiny", "a--tp1", "mine--ingress2", "mine--ingress", "mine--ingress--1"]
)
def test_what_others_run_on_the_same_serve_is_left_alone(name: str, begin: Begin) -> None:
    controller = begin("1 tp1")
    layout = layout_of("tp1", controller.serve.cluster)  # an ingress that holds a replica is none of ours
    controller.serve.apps[name] = Application(seats=frozenset(), layout=layout, started_s=0.0)
    controller.settle()
    assert controller.serve.apps[name].deleted_s is None


def test_a_replica_that_breaks_while_there_is_no_controller_has_its_whole_time_to_start_again(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    controller.serve.tick(1000.0)  # far longer than a start may take
    (name,) = controller.store.replicas
    controller.serve.apps[name].die(controller.serve.now_s)
    controller.begin()
    controller.settle()
    assert controller.serve.started == [name]
    assert not {"failure", "rollback"} & set(controller.kinds())
