"""Targets of the control API: what is taken, what is refused and why, and what stays on record of both."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from controller_builders import MODEL, MemoryServe, model_record
from controller_running import Controller
from placement_builders import cluster_of
from reconcile_builders import pools_of

from deployments.control.audit import AuditLog
from deployments.control.refusals import Refusal
from deployments.control.wire import Accepted, FleetView, Limits, PoolsTarget
from deployments.controller.targets import Targets
from deployments.reconcile import Way


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl")


class Operator:
    """Somebody who asks for things, and the controller that is asked."""

    def __init__(self, controller: Controller, log: AuditLog) -> None:
        self.controller = controller
        self.log = log
        speeds = {"acme-tiny--tp1--0": 12.5}
        self.targets = Targets(
            controller.reconciler, controller.events, log, lambda: speeds, now=lambda: controller.serve.now_s
        )

    def ask(self, pools: dict[str, int], model: str = MODEL, **changes: Any) -> Accepted | Refusal:
        target = PoolsTarget(**{"pools": pools, "reason": "a test", **changes})
        return self.targets.set_pools(model, target, "alice")

    def view(self) -> FleetView:
        view = self.targets.overview().fleet(MODEL)
        assert view is not None
        return view

    def outcomes(self) -> list[str]:
        return [entry.outcome for entry in self.log.latest(100)]


Hire = Callable[..., Operator]


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch, log: AuditLog) -> Hire:
    """An operator of a fleet that is settled."""

    def hire(pools: str = "2 tp1", serve: MemoryServe | None = None, **changes: Any) -> Operator:
        controller = Controller(serve or MemoryServe(), monkeypatch)
        controller.store.put_model(model_record(pools, **changes))
        controller.settle()
        return Operator(controller, log)

    return hire


def test_a_target_that_fits_is_taken_stored_and_told(hire: Hire) -> None:
    operator = hire()
    answer = operator.ask({"tp2": 1}, way="surge")
    assert isinstance(answer, Accepted)
    assert (answer.version, answer.changed, answer.forecast.way) == (2, True, "surge")
    assert [step.step for step in answer.forecast.timeline] == ["start", "drain", "drain", "stop", "stop"]
    desired = operator.controller.store.models[MODEL].desired
    assert (desired.pools, desired.version, desired.way) == (pools_of("1 tp2"), 2, Way.SURGE)
    assert operator.controller.texts("target") == ["alice wants 1 x tp2: a test"]
    (entry,) = operator.log.latest(10)
    assert (entry.who, entry.before, entry.after, entry.outcome) == ("alice", {"tp1": 2}, {"tp2": 1}, "accepted")
    operator.controller.settle()
    assert operator.controller.serve.serving() == {"tp2": 1}


def test_whoever_reads_after_the_answer_finds_the_change_under_way(hire: Hire) -> None:
    for pools in ({"tp1": 3}, {"tp1": 1}, {"tp2": 1}, {}):
        operator = hire()
        operator.ask(pools)
        view = operator.view()
        assert view.repartition is not None, pools
        assert view.phase == "repartitioning"
        assert view.desired_pools == pools


def test_the_same_target_again_is_no_change(hire: Hire) -> None:
    operator = hire()
    operator.ask({"tp2": 1})
    again = operator.ask({"tp2": 1}, if_version=1)  # a repetition whose answer was lost
    assert isinstance(again, Accepted)
    assert (again.version, again.changed) == (2, False)
    assert operator.outcomes() == ["accepted", "unchanged"]
    assert len(operator.controller.texts("target")) == 1


def test_what_was_rolled_back_is_tried_again_only_when_that_is_asked_for(hire: Hire) -> None:
    """Who repeats a target for want of an answer must not cost another start that fails."""
    operator = hire()
    operator.controller.serve.doomed = lambda name: "--tp2--" in name
    operator.ask({"tp2": 1})
    operator.controller.settle()
    assert (operator.view().phase, operator.view().version) == ("degraded", 2)
    for repeated in (operator.ask({"tp2": 1}), operator.ask({"tp2": 1}, if_version=2)):
        assert isinstance(repeated, Accepted)
        assert not repeated.changed
    operator.controller.serve.doomed = lambda name: False
    stale = operator.ask({"tp2": 1}, retry=True, if_version=1)
    assert isinstance(stale, Refusal)
    foreseen = operator.ask({"tp2": 1}, retry=True, dry_run=True)
    again = operator.ask({"tp2": 1}, retry=True, if_version=2)
    assert isinstance(foreseen, Accepted)
    assert isinstance(again, Accepted)
    assert (foreseen.changed, foreseen.forecast.way) == (True, "surge")
    assert (again.changed, again.version) == (True, 3)
    operator.controller.settle()
    assert operator.controller.serve.serving() == {"tp2": 1}
    done = operator.ask({"tp2": 1}, retry=True)
    assert isinstance(done, Accepted)
    assert not done.changed, "there is nothing to try again"


def test_a_first_start_that_was_given_up_can_be_tried_again(hire: Hire) -> None:
    operator = hire("1 tp1", MemoryServe(doomed=lambda name: True))
    for wait_s in (10.0, 60.0, 300.0):  # retry_after_s
        operator.controller.serve.tick(wait_s)
        operator.controller.settle()
    assert operator.view().phase == "degraded"
    assert "attempts to start 1 x tp1 have failed" in (operator.view().shortfall or "")
    operator.controller.serve.doomed = lambda name: False
    answer = operator.ask({"tp1": 1}, retry=True)
    assert isinstance(answer, Accepted)
    operator.controller.settle()
    assert operator.controller.serve.serving() == {"tp1": 1}


def test_a_dry_run_says_what_would_happen_and_changes_nothing(hire: Hire) -> None:
    operator = hire("1 tp2pp2")
    before = (dict(operator.controller.serve.values), operator.controller.texts())
    answer = operator.ask({"tp2": 2}, dry_run=True)
    assert isinstance(answer, Accepted)
    assert (answer.version, answer.changed, answer.forecast.way) == (1, True, "swap")
    assert answer.forecast.stall_s == pytest.approx(8.0)
    assert answer.forecast.gpus_needed == 4
    assert (dict(operator.controller.serve.values), operator.controller.texts()) == before
    assert operator.outcomes() == []


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("a model that nobody serves", {"pools": {"tp1": 1}, "model": "acme/tiny2"}, "unknown-model", "acme/tiny?"),
    ("an old version", {"pools": {"tp2": 1}, "if_version": 7}, "stale-version", "it is 1, with 2 x tp1"),
    ("a shape that cannot hold the model", {"pools": {"tp4": 1}}, "does-not-fit", "tp4 cannot hold acme/tiny"),
    ("more than there are GPUs", {"pools": {"tp2": 3}}, "does-not-fit", "tp2"),
    (
        "a swap above a floor",
        {"pools": {"tp2pp2": 1}, "limits": Limits(floor=0.5)},
        "does-not-fit",
        "the floor is 0.5",
    ),
    (
        "a stall that is too long",
        {"pools": {"tp2pp2": 1}, "limits": Limits(max_stall_s=1)},
        "does-not-fit",
        "max_stall_s is 1",
    ),
]


@pytest.mark.parametrize(("asked", "kind", "told"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused_says_why_and_does_nothing(asked: dict[str, Any], kind: str, told: str, hire: Hire) -> None:
    operator = hire()
    before = dict(operator.controller.serve.values)
    answer = operator.ask(**asked)
    assert isinstance(answer, Refusal)
    assert answer.kind == kind
    assert told in answer.sentence
    assert (answer.current is None) == (kind == "unknown-model")
    assert operator.controller.serve.values == before
    (entry,) = operator.log.latest(10)
    assert (entry.outcome, entry.refusal) == ("refused", answer.sentence)


def test_a_dry_run_of_what_does_not_fit_is_a_forecast_that_says_so(hire: Hire) -> None:
    operator = hire()
    for pools in ({"tp4": 1}, {"tp2": 3}):
        answer = operator.ask(pools, dry_run=True)
        assert isinstance(answer, Accepted)
        assert (answer.version, answer.changed) == (1, False)
        assert answer.forecast.infeasible is not None


def test_of_two_writers_the_second_is_told_what_the_first_wanted(hire: Hire) -> None:
    operator = hire()
    operator.ask({"tp2": 1}, if_version=1)
    stale = operator.ask({"tp1": 3}, if_version=1)
    busy = operator.ask({"tp1": 3})
    assert isinstance(stale, Refusal)
    assert isinstance(busy, Refusal)
    assert (stale.kind, busy.kind) == ("stale-version", "busy")
    assert busy.current is not None
    assert busy.current.desired_pools == {"tp2": 1}


@pytest.mark.parametrize("way", ["surge", "swap"])
@pytest.mark.parametrize("turns", [0, 1, 3, 6])
def test_a_repartition_is_ended_by_asking_for_what_was_before(way: str, turns: int, hire: Hire) -> None:
    """Nobody has to wait until a start of the wrong shape is over."""
    operator = hire()
    operator.ask({"tp2": 1}, way=way)
    for _ in range(turns):
        operator.controller.turn()
    assert operator.view().repartition is not None
    busy = operator.ask({"tp1": 3})
    assert isinstance(busy, Refusal)
    assert "give the pools of before to go back: 2 x tp1" in busy.sentence
    back = operator.ask({"tp1": 2})
    assert isinstance(back, Accepted)
    assert (back.changed, back.version) == (True, 3)
    operator.controller.settle()
    assert (operator.view().phase, operator.controller.serve.serving()) == ("steady", {"tp1": 2})


def test_limits_hold_for_one_target_and_then_are_as_configured(hire: Hire) -> None:
    operator = hire(limits={"floor": 0.25, "drain_timeout_s": 30.0})
    operator.ask({"tp2": 1}, limits=Limits(floor=0.5, drain_timeout_s=1.0))
    limits = operator.controller.store.models[MODEL].limits
    assert (limits.floor, limits.drain_timeout_s, limits.start_timeout_s) == (0.5, 1.0, 100.0)
    operator.controller.settle()
    operator.ask({"tp1": 2})
    limits = operator.controller.store.models[MODEL].limits
    assert (limits.floor, limits.drain_timeout_s) == (0.25, 30.0)


def test_a_fleet_that_can_get_no_further_is_not_busy(hire: Hire) -> None:
    operator = hire("1 tp2")
    whole = operator.controller.serve.cluster
    operator.ask({"tp2": 2})
    operator.controller.turn()
    operator.controller.serve.cluster = cluster_of()
    operator.controller.settle()
    assert (operator.view().phase, operator.view().repartition) == ("degraded", None)
    answer = operator.ask({"tp1": 1})
    assert isinstance(answer, Refusal)
    assert answer.kind == "does-not-fit"
    operator.controller.serve.cluster = whole
    operator.controller.settle()
    assert (operator.view().phase, operator.view().effective_pools) == ("steady", {"tp2": 2})


def test_what_cannot_be_put_on_record_is_not_done(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = hire()

    def is_full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", is_full)
    before = dict(operator.controller.serve.values)
    with pytest.raises(OSError, match="no space"):
        operator.ask({"tp2": 1})
    assert operator.controller.serve.values == before


def test_where_the_size_of_the_model_is_not_known_any_shape_may_be_tried(hire: Hire) -> None:
    operator = hire(shapes={}, serve=MemoryServe(cluster=cluster_of(4, 2)))
    answer = operator.ask({"tp4": 1})
    assert isinstance(answer, Accepted)


def test_no_pools_delete_the_model(hire: Hire) -> None:
    operator = hire()
    assert isinstance(operator.ask({}), Accepted)
    operator.controller.settle()
    assert operator.targets.overview().fleets == ()
    assert operator.controller.serve.applications() == {}
    assert operator.log.latest(1)[0].what == "delete"


def test_a_model_that_is_served_again_has_a_newer_version_and_keeps_what_it_can_go_back_to(hire: Hire) -> None:
    operator = hire()
    operator.ask({"tp2": 1})
    operator.controller.settle()
    operator.targets.serve(model_record("3 tp1"))
    record = operator.controller.store.models[MODEL]
    assert (record.desired.version, record.memory.last_good) == (3, pools_of("1 tp2"))
    operator.controller.settle()
    operator.targets.remove(MODEL)
    operator.targets.remove("unknown")
    assert operator.controller.store.models[MODEL].desired.version == 4
    operator.controller.settle()
    assert operator.controller.store.models == {}
    told = [(entry.who, entry.what, dict(entry.before), dict(entry.after)) for entry in operator.log.latest(10)]
    assert told == [
        ("alice", "set pools", {"tp1": 2}, {"tp2": 1}),
        ("the launcher", "serve", {"tp2": 1}, {"tp1": 3}),
        ("the launcher", "delete", {"tp1": 3}, {}),
    ]


def test_pools_that_a_configuration_names_as_before_stay_as_others_have_changed_them(hire: Hire) -> None:
    operator = hire()
    operator.ask({"tp2": 1}, limits=Limits(floor=0.5))
    operator.controller.settle()
    before = operator.controller.store.models[MODEL]
    operator.targets.serve(model_record("2 tp1"))
    assert operator.controller.store.models[MODEL] == before
    told = [(entry.what, dict(entry.after), entry.outcome) for entry in operator.log.latest(1)]
    assert told == [("serve", {"tp2": 1}, "unchanged")]
    operator.targets.remove(MODEL)
    operator.targets.serve(model_record("2 tp1"))
    assert operator.controller.store.models[MODEL].desired.pools == pools_of("2 tp1"), "what was removed is served anew"
