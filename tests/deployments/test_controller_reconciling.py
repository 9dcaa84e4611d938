"""The reconciler of the controller over a Serve in memory: what is started, what is stored, what becomes of losses."""

import math
from dataclasses import replace

import pytest
from controller_builders import MODEL, START_S, MemoryServe, model_record, without
from controller_running import Begin, begin, check_nothing_is_left_over, members, membership
from reconcile_builders import pools_of

from deployments.reconcile import Limits, Way
from placement import Shape

__all__ = ["begin"]
RETRY_S = 10.0  # the first of reconcile.Limits.retry_after_s


# --- to other pools --------------------------------------------------------------------------------------------------


def test_two_replicas_are_started_on_seats_of_their_own(begin: Begin) -> None:
    controller = begin("2 tp1")
    assert controller.turn()
    assert controller.serve.started == ["acme-tiny--tp1--0", "acme-tiny--tp1--1"]
    assert controller.phases() == {"0": "starting", "1": "starting"}
    assert "acme-tiny--ingress--0" in controller.serve.applications()
    controller.settle()
    assert controller.phases() == {"0": "serving", "1": "serving"}
    assert controller.store.models[MODEL].memory.last_good == pools_of("2 tp1")
    assert controller.store.models[MODEL].start_s == START_S
    check_nothing_is_left_over(controller)


def test_a_repartition_with_spare_gpus_starts_before_it_drains(begin: Begin) -> None:
    controller = begin("2 tp1")
    controller.settle()
    controller.ask("1 tp2")
    controller.turn()
    assert controller.phases() == {"0": "serving", "1": "serving", "2": "starting"}
    assert controller.reconciler.standing(controller.store.models[MODEL]).way is Way.SURGE
    while controller.phases().get("2") != "serving":
        assert {name for name, member in members(controller).items() if member.accepts} == {"0", "1"}
        controller.turn()
    controller.settle()
    assert controller.serve.serving() == {"tp2": 1}
    assert controller.kinds()[-1] == "reached"
    assert not {"stall", "failure", "rollback"} & set(controller.kinds())
    check_nothing_is_left_over(controller)


def test_a_full_cluster_swaps_and_its_stall_is_announced(begin: Begin) -> None:
    controller = begin("1 tp2pp2", limits={"floor": 0.0})
    controller.settle()
    controller.ask("2 tp2")
    controller.turn()
    assert membership(controller).holds_new
    assert members(controller)["0"].leaves
    assert not members(controller)["0"].accepts
    assert membership(controller).hold_s == 300
    (stall,) = controller.texts("stall")
    assert "Nothing serves for about 8 s" in stall
    controller.settle()
    assert not membership(controller).holds_new
    assert controller.serve.serving() == {"tp2": 2}
    check_nothing_is_left_over(controller)


def test_a_long_stall_is_held_as_long_as_it_may_last(begin: Begin) -> None:
    controller = begin("1 tp2pp2")
    controller.settle()
    controller.store.put_model(controller.store.models[MODEL].with_start(Shape.parse("tp2"), 400.0))
    controller.ask("2 tp2")
    controller.turn()
    assert membership(controller).hold_s == pytest.approx(4 * 403)


def test_a_start_that_hangs_while_requests_are_held_ends_before_they_are_given_up(begin: Begin) -> None:
    hanging = MemoryServe(silent=lambda name: "--tp2--" in name)
    controller = begin("1 tp2pp2", hanging, limits={"floor": 0.0, "start_timeout_s": 3600.0})
    controller.settle()
    controller.ask("2 tp2")
    controller.turn()
    held_since_s, hold_s = hanging.now_s, membership(controller).hold_s
    while "rolled-back" not in controller.kinds():
        controller.turn()
        assert hanging.now_s - held_since_s < hold_s
    assert not membership(controller).holds_new
    assert members(controller).keys() == {"3"}


def test_the_limits_of_a_target_hold_for_it(begin: Begin) -> None:
    controller = begin("1 tp2pp2")
    controller.settle()
    record = controller.store.models[MODEL]
    assert isinstance(record.limits, Limits)
    controller.store.put_model(replace(record, asked_limits={"floor": 0.5}))
    controller.ask("2 tp2")
    controller.settle()
    assert controller.serve.serving() == {"tp2pp2": 1}
    assert "the floor is 0.5" in controller.reconciler.blocked[MODEL]


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_shape_that_does_not_start_is_given_up_for_the_last_good_one(begin: Begin) -> None:
    controller = begin("2 tp1", MemoryServe(doomed=lambda name: "--tp2--" in name))
    controller.settle()
    controller.ask("1 tp2")
    controller.settle()
    assert controller.serve.serving() == {"tp1": 2}
    assert controller.phases() == {"0": "serving", "1": "serving"}  # they never went
    kinds = controller.kinds()
    assert kinds.index("failure") < kinds.index("rollback") < kinds.index("rolled-back")
    assert "It is failed: RuntimeError: out of memory" in controller.texts("failure")
    standing = controller.reconciler.standing(controller.store.models[MODEL])
    assert standing.pools == pools_of("2 tp1")
    assert standing.shortfall is not None
    assert "version 2 was rolled back" in standing.shortfall
    assert standing.ended == {(Way.SURGE, "reached"): 1, (Way.SURGE, "rolled-back"): 1}
    check_nothing_is_left_over(controller)


def test_a_first_start_that_fails_is_tried_again_later(begin: Begin) -> None:
    controller = begin("1 tp2", MemoryServe(doomed=lambda name: name.endswith("--0")))
    controller.settle()
    assert controller.phases() == {}
    controller.serve.tick(RETRY_S)
    controller.settle()
    assert controller.phases() == {"1": "serving"}
    assert controller.store.models[MODEL].memory.failed_at_s == ()
    ended = controller.reconciler.standing(controller.store.models[MODEL]).ended
    assert ended == {(Way.SURGE, "failed"): 1, (Way.SURGE, "reached"): 1}
    check_nothing_is_left_over(controller)


def test_a_serve_that_is_away_for_a_moment_is_nobodys_failure(begin: Begin) -> None:
    controller = begin("2 tp1")
    controller.settle()
    controller.ask("1 tp2")
    controller.serve.refuses = lambda name: True
    for _ in range(3):
        with pytest.raises(ExceptionGroup):
            controller.turn()
    controller.serve.refuses = lambda name: False
    controller.settle()
    assert controller.serve.serving() == {"tp2": 1}
    assert not {"failure", "rollback"} & set(controller.kinds())
    check_nothing_is_left_over(controller)


def test_an_application_that_somebody_deletes_is_replaced(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    controller.serve.delete("acme-tiny--tp1--0")
    controller.settle()
    assert controller.texts("failure")[0] == "It is failed: Serve has no application of it any more"
    controller.serve.tick(RETRY_S)
    controller.settle()
    assert controller.phases() == {"1": "serving"}
    check_nothing_is_left_over(controller)


# --- hardware --------------------------------------------------------------------------------------------------------


def test_a_lost_node_is_replaced_where_there_is_room(begin: Begin) -> None:
    controller = begin("1 tp2")
    controller.settle()
    (lost,) = {seat.node for seat in controller.reconciler.replicas[0].layout.seats}
    controller.serve.cluster = without(controller.serve.cluster, [lost])
    controller.settle()
    (found,) = controller.reconciler.replicas
    assert str(found.layout.shape) == "tp2"
    assert lost not in {seat.node for seat in found.layout.seats}
    assert not {"failure", "rollback"} & set(controller.kinds())
    check_nothing_is_left_over(controller)


def test_what_no_longer_fits_becomes_smaller_and_comes_back_with_the_node(begin: Begin) -> None:
    controller = begin("1 tp2pp2")
    controller.settle()
    whole = controller.serve.cluster
    controller.serve.cluster = without(whole, ["island-1-node-0"])
    controller.settle()
    (smaller,) = controller.reconciler.replicas
    assert smaller.layout.shape.gpus == 2
    assert any("instead of tp2pp2" in text for text in controller.texts("replan"))
    assert controller.store.models[MODEL].desired.pools == pools_of("1 tp2pp2")
    controller.serve.cluster = whole
    controller.settle()
    assert controller.serve.serving() == {"tp2pp2": 1}
    assert any(text.startswith("No longer: acme/tiny runs") for text in controller.texts("step"))
    assert not {"failure", "rollback"} & set(controller.kinds())
    check_nothing_is_left_over(controller)


def test_who_watches_is_told_once_of_each_node_that_goes(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    assert controller.texts("loss") == []
    controller.serve.leaving = {"island-1-node-0": math.inf}
    controller.settle()
    controller.serve.cluster, controller.serve.leaving = (
        without(controller.serve.cluster, ["island-1-node-0"]),
        {},
    )
    controller.settle()
    assert controller.texts("loss") == [
        "Node island-1-node-0 is about to go: Ray drains it.",
        "Node island-1-node-0 has gone, with 2 GPUs.",
    ]


def test_a_node_that_is_about_to_go_is_left_before_it_goes(begin: Begin) -> None:
    controller = begin("1 tp2")
    controller.settle()
    (node,) = {seat.node for seat in controller.reconciler.replicas[0].layout.seats}
    controller.serve.leaving = {node: controller.serve.now_s}
    controller.turn()
    assert members(controller)["0"].leaves
    assert controller.phases()["1"] == "starting"
    controller.settle()
    assert controller.phases() == {"1": "serving"}
    check_nothing_is_left_over(controller)


def test_a_node_that_goes_later_serves_on_until_another_does(begin: Begin) -> None:
    controller = begin("1 tp2")
    controller.settle()
    (node,) = {seat.node for seat in controller.reconciler.replicas[0].layout.seats}
    controller.serve.leaving = {node: controller.serve.now_s + 3600}
    controller.turn()
    while controller.phases()["1"] == "starting":
        assert members(controller)["0"].accepts
        controller.turn()
    controller.settle()
    assert controller.phases() == {"1": "serving"}
    assert controller.texts("stall") == []
    check_nothing_is_left_over(controller)


@pytest.mark.parametrize(("is_held", "start_timeout_s"), [(True, 180.0), (False, 600.0)])
def test_a_start_is_given_up_early_only_while_requests_wait_for_it(is_held: bool, start_timeout_s: float) -> None:
    record = model_record("2 tp1", limits={"start_timeout_s": 600.0}, stall_s=60.0, is_held=is_held)
    assert (record.limits.start_timeout_s, record.hold_s) == (start_timeout_s, 300.0)
