"""Other settings of an endpoint: ingresses with them start beside those that have the clients, and take over."""

from pathlib import Path
from typing import Any

import pytest
from controller_builders import MODEL, MemoryServe, model_record, plan
from controller_running import Begin, Controller, begin, check_nothing_is_left_over, membership
from reconcile_builders import pools_of

from deployments.control.audit import AuditLog
from deployments.controller.targets import Targets
from deployments.routing import Limits as AdmissionLimits

__all__ = ["begin"]

OLD, NEW = "acme-tiny--ingress--0", "acme-tiny--ingress--1"
STRICTER = AdmissionLimits(max_queued_requests=8, max_ttft_s=1.0)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl")


@pytest.fixture
def served(begin: Begin, log: AuditLog) -> Controller:
    return serve(begin, log)


def serve(begin: Begin, log: AuditLog) -> Controller:
    """A model that serves, as its launcher asked for it."""
    controller = begin("1 tp1", MemoryServe())
    controller.store.drop_model(MODEL)
    launch(controller, log)
    controller.settle()
    return controller


def launch(controller: Controller, log: AuditLog, pools: str = "1 tp1", **settings: Any) -> str:
    """`archipelago serve` with these settings of the endpoint."""
    targets = Targets(controller.reconciler, controller.events, log, dict, now=lambda: controller.serve.now_s)
    return targets.serve(model_record(pools, plan=plan(**settings), ingress=""))


def ingresses(controller: Controller) -> set[str]:
    return {name for name in controller.serve.applications() if "--ingress--" in name}


def test_new_ingresses_have_the_clients_when_they_are_ready_and_the_others_end_with_their_last_one(
    served: Controller, log: AuditLog
) -> None:
    served.staying, served.unconnected = {OLD}, {NEW}
    assert launch(served, log, admission=STRICTER, ingresses=1) == NEW
    for _ in range(5):
        served.turn()
    assert (ingresses(served), membership(served).leaving_ingresses) == ({OLD, NEW}, frozenset())
    served.unconnected.clear()
    for _ in range(5):
        served.turn()
    assert (ingresses(served), membership(served).leaving_ingresses) == ({OLD, NEW}, {OLD})
    served.staying.clear()
    served.settle()
    check_nothing_is_left_over(served)
    assert ingresses(served) == {NEW}
    assert served.store.models[MODEL].plan.admission == STRICTER
    assert served.texts("ingress") == [
        "The launcher wants other settings of the endpoint.",
        "New connections come here.",
        "Its last client has gone, and so does it.",
    ]


def test_the_same_settings_or_other_times_to_wait_start_no_ingress(served: Controller, log: AuditLog) -> None:
    assert launch(served, log) == OLD
    assert launch(served, log, drain_timeout_s=5.0, hold_s=9.0) == OLD
    served.settle()
    assert (ingresses(served), served.store.models[MODEL].hold_s) == ({OLD}, 9.0)
    assert [entry.outcome for entry in log.latest(2)] == ["unchanged", "unchanged"]


def test_other_settings_do_not_bring_back_pools_that_have_changed_since(served: Controller, log: AuditLog) -> None:
    served.ask("2 tp1")
    served.settle()
    launch(served, log, admission=STRICTER)
    served.settle()
    assert served.serve.serving() == {"tp1": 2}
    assert served.store.models[MODEL].configured == pools_of("1 tp1")
    launch(served, log, "1 tp2", admission=STRICTER)
    served.settle()
    assert served.serve.serving() == {"tp2": 1}
    assert ingresses(served) == {NEW}


@pytest.mark.parametrize("how", ["it fails", "it reaches no replica"])
def test_ingresses_that_do_not_get_ready_are_given_up_and_clients_stay_where_they_are(
    how: str, served: Controller, log: AuditLog
) -> None:
    before = served.store.models[MODEL]
    if how == "it fails":
        served.serve.doomed = lambda name: name == NEW
    else:
        served.unconnected = {NEW}
    launch(served, log, admission=STRICTER, drain_timeout_s=1.0)
    for _ in range(120):
        served.turn()
        assert OLD not in membership(served).leaving_ingresses
    served.settle()
    check_nothing_is_left_over(served)
    assert served.store.models[MODEL] == before
    why = "RuntimeError: out of memory" if how == "it fails" else "not ready after limits.start_timeout_s = 100 s"
    assert served.texts("failure") == [
        f"The other settings of the endpoint are given up, and clients stay where they are: {why}."
    ]


def test_settings_that_change_again_before_they_hold(served: Controller, log: AuditLog) -> None:
    served.unconnected = {NEW}
    assert launch(served, log, admission=STRICTER) == NEW
    served.turn()
    assert launch(served, log) == OLD, "as it was"
    served.settle()
    assert ingresses(served) == {OLD}
    second = launch(served, log, port=8010)
    served.unconnected = {second}
    served.turn()
    third = launch(served, log, port=8020)
    served.settle()
    check_nothing_is_left_over(served)
    assert ingresses(served) == {third}
    assert served.store.models[MODEL].plan.port == 8020


def test_a_model_that_is_removed_meanwhile_leaves_none_behind(served: Controller, log: AuditLog) -> None:
    launch(served, log, admission=STRICTER)
    served.turn()
    served.ask("")
    served.settle()
    check_nothing_is_left_over(served)
    assert ingresses(served) == set()


def test_a_model_that_is_served_otherwise_while_it_goes_does_not_get_its_old_ingresses_back(
    served: Controller, log: AuditLog
) -> None:
    served.unfinished = 1
    served.ask("")
    served.turn()
    served.staying = {OLD}
    assert launch(served, log, admission=STRICTER) == NEW
    for _ in range(5):
        served.turn()
    assert (ingresses(served), membership(served).leaving_ingresses) == ({OLD, NEW}, {OLD}), "a client is still told"
    served.staying.clear()
    served.settle()
    check_nothing_is_left_over(served)
    assert ingresses(served) == {NEW}


def test_a_controller_that_dies_before_any_of_its_calls_is_followed_by_one_that_ends_in_the_same_state(
    begin: Begin, log: AuditLog
) -> None:
    def serve_differently(crash_before: int | None) -> Controller:
        controller = serve(begin, log)
        launch(controller, log, admission=STRICTER)
        controller.serve.crash_before = None if crash_before is None else controller.serve.calls + crash_before
        controller.settle()
        return controller

    calls = serve_differently(None).serve.calls
    crashed = 0
    for call in range(calls):
        controller = serve_differently(call)
        crashed += controller.crashes
        check_nothing_is_left_over(controller)
        assert len(ingresses(controller)) == 1
        assert controller.store.models[MODEL].plan.admission == STRICTER, call
        assert "failure" not in controller.kinds()
    assert crashed >= 3
