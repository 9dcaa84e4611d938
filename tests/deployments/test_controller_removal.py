"""A model is removed over the control API: at any moment, with nothing left of it, and others as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest
from controller_builders import DRAIN_S, MODEL, model_record
from controller_running import Begin, Controller, begin, check_nothing_is_left_over, membership

from deployments.control.audit import AuditLog
from deployments.control.refusals import Refusal
from deployments.control.wire import Accepted, Limits, PoolsTarget
from deployments.controller.records import Store
from deployments.controller.targets import Targets
from deployments.reconcile import Phase

__all__ = ["begin"]
OTHER = "acme/other"
TURNS = 20  # more than a change takes

Hire = Callable[[Controller], Targets]


@pytest.fixture
def hire(tmp_path: Path) -> Hire:
    """What takes the targets of a controller."""

    def hire(controller: Controller) -> Targets:
        log = AuditLog(tmp_path / "audit.jsonl")
        return Targets(controller.reconciler, controller.events, log, dict, now=lambda: controller.serve.now_s)

    return hire


def asked(targets: Targets, pools: dict[str, int], **changes: object) -> Accepted:
    target = PoolsTarget.model_validate({"pools": pools, "reason": "nobody asks for it", **changes})
    answer = targets.set_pools(MODEL, target, "alice")
    assert isinstance(answer, Accepted), answer
    return answer


@pytest.mark.parametrize("pools", [{"tp2": 1}, {"tp2pp2": 1}], ids=["surge", "swap"])
@pytest.mark.parametrize("turns", range(TURNS))
def test_a_model_can_be_removed_in_the_middle_of_anything(
    turns: int, pools: dict[str, int], begin: Begin, hire: Hire
) -> None:
    controller = begin("2 tp1")
    controller.settle()
    targets = hire(controller)
    asked(targets, pools)
    for _ in range(turns):
        controller.turn()
    asked(targets, {})
    controller.settle()
    assert targets.overview().fleets == ()
    assert (controller.serve.applications(), controller.reconciler.memberships) == ({}, {})
    check_nothing_is_left_over(controller)


def test_a_model_that_never_started_can_be_removed(begin: Begin, hire: Hire) -> None:
    controller = begin("1 tp2")
    controller.serve.doomed = lambda name: True
    for _ in range(TURNS):
        controller.turn()
    asked(hire(controller), {})
    controller.serve.doomed = lambda name: False
    controller.settle()
    assert controller.store.models == {}
    check_nothing_is_left_over(controller)


def test_other_models_do_not_notice_and_get_the_room(begin: Begin, hire: Hire) -> None:
    controller = begin("2 tp1")
    controller.store.put_model(model_record("1 tp2", model=OTHER))
    controller.settle()
    before = controller.reconciler.memberships[OTHER]
    targets = hire(controller)
    asked(targets, {})
    controller.settle()
    assert [fleet.model for fleet in targets.overview().fleets] == [OTHER]
    assert controller.reconciler.memberships[OTHER] == before
    assert controller.serve.serving() == {"tp2": 1}
    assert targets.overview().cluster.free_gpus == 2
    check_nothing_is_left_over(controller)


def test_events_and_audit_say_who_and_why(begin: Begin, hire: Hire) -> None:
    controller = begin("1 tp1")
    controller.settle()
    targets = hire(controller)
    asked(targets, {})
    controller.settle()
    texts = controller.texts("target", "reached")
    assert texts[-3] == "alice wants no pools: nobody asks for it"
    assert texts[-1] == "The model is no longer served."
    targets.serve(model_record("1 tp1"))
    controller.settle()
    targets.remove(MODEL)
    assert controller.texts("target")[-1].startswith("The launcher wants no pools: `archipelago stop`")


def test_requests_may_finish_until_the_drain_is_over(begin: Begin, hire: Hire) -> None:
    for drain_s, reason in ((1.0, "drain_timeout_s = 1 is over"), (10 * DRAIN_S, "It has no requests left.")):
        controller = begin("1 tp1")
        controller.settle()
        asked(hire(controller), {}, limits=Limits(drain_timeout_s=drain_s))
        controller.turn()
        assert membership(controller).is_closing
        assert [member.leaves for member in membership(controller).members] == [False]
        controller.settle()
        assert any(reason in text for text in controller.texts("step"))


def test_the_ingress_stays_until_every_client_was_told(begin: Begin, hire: Hire) -> None:
    controller = begin("1 tp1")
    controller.settle()
    asked(hire(controller), {})
    controller.unfinished = 1
    for _ in range(3 * TURNS):
        assert controller.turn()
    assert (list(controller.serve.applications()), controller.phases()) == (["acme-tiny--ingress--0"], {})
    assert membership(controller).is_going
    controller.unfinished = 0
    controller.settle()
    assert controller.serve.applications() == {}


def test_a_model_that_comes_back_is_another_one(begin: Begin, hire: Hire) -> None:
    """A target that was decided about the first must not be taken for the second."""
    controller = begin("2 tp1")
    controller.settle()
    targets = hire(controller)
    asked(targets, {"tp1": 1})
    controller.settle()
    asked(targets, {})
    controller.settle()
    controller.begin()  # the controller's process is another one too
    controller.turn()
    targets = hire(controller)
    targets.serve(model_record("2 tp1"))
    controller.settle()
    assert controller.store.models[MODEL].desired.version == 4
    for version in (1, 2, 3):
        target = PoolsTarget(pools={"tp2": 1}, reason="decided long ago", if_version=version)
        answer = targets.set_pools(MODEL, target, "autoscaler")
        assert isinstance(answer, Refusal)
        assert answer.kind == "stale-version"
    assert Store().models[MODEL].desired.version == 4


@pytest.mark.parametrize("turns", range(TURNS))
def test_a_model_that_is_served_again_while_it_goes_serves(turns: int, begin: Begin, hire: Hire) -> None:
    controller = begin("2 tp1")
    controller.settle()
    targets = hire(controller)
    asked(targets, {})
    for _ in range(turns):
        controller.turn()
    targets.serve(model_record("1 tp2"))
    controller.settle()
    assert controller.serve.serving() == {"tp2": 1}
    assert not membership(controller).is_closing
    assert [one.phase for one in controller.reconciler.replicas] == [Phase.SERVING]
    check_nothing_is_left_over(controller)
