"""What ingresses are told of a fleet, and when it is news."""

from dataclasses import replace
from itertools import pairwise

import pytest
from controller_builders import MODEL, model_record
from controller_running import Begin, begin, members, membership

from deployments.controller.records import Intent

__all__ = ["begin"]


def test_a_version_changes_exactly_when_something_else_does(begin: Begin) -> None:
    controller = begin("2 tp1")
    seen = []
    for turn in range(60):
        if turn == 20:
            controller.ask("1 tp2")
        controller.turn()
        seen.append(membership(controller))
    assert [one.version for one in seen] == sorted(one.version for one in seen)
    changes = 0
    for before, after in pairwise(seen):
        is_same = replace(after, version=0) == replace(before, version=0)
        assert is_same == (after.version == before.version)
        changes += not is_same
    assert 5 <= changes <= 12


def test_requests_of_a_replica_are_no_news_and_where_it_listens_is(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    before = membership(controller)
    (name,) = controller.store.replicas
    reports = controller.reconciler.world.reports
    for changes, is_news in (({"unfinished_requests": 50}, False), ({"port": 9001}, True), ({"kv_tokens": 1}, True)):
        report = replace(reports[name], **changes)  # type: ignore[arg-type]
        controller.reconciler.world = replace(controller.reconciler.world, reports={name: report})
        controller.reconciler.publish()
        assert (membership(controller).version > before.version) is is_news
        before = membership(controller)


@pytest.mark.parametrize(
    ("intent", "accepts", "leaves", "planned"),
    [
        (Intent.RUN, True, False, 2),
        (Intent.DRAIN, False, False, 1),
        (Intent.MOVE, False, True, 1),
        (Intent.STOP, False, True, 1),
    ],
)
def test_what_an_ingress_may_do_with_a_replica(
    intent: Intent, accepts: bool, leaves: bool, planned: int, begin: Begin
) -> None:
    controller = begin("2 tp1")
    controller.settle()
    controller.store.intend("acme-tiny--tp1--0", intent, 0.0)
    controller.reconciler.publish()
    member = members(controller)["0"]
    assert (member.accepts, member.leaves, membership(controller).planned_replicas) == (accepts, leaves, planned)


def test_a_model_that_closes_stays_closed_over_a_crash_and_opens_when_it_is_served_again(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    controller.reconciler.close(MODEL)
    assert membership(controller).is_closing
    controller.begin()
    controller.turn()
    assert membership(controller).is_closing
    controller.ask("")
    controller.settle()
    assert (controller.store.models, controller.serve.applications()) == ({}, {})
    assert MODEL not in controller.reconciler.memberships
    controller.store.put_model(model_record("1 tp1"))
    controller.settle()
    assert not membership(controller).is_closing
    controller.reconciler.close("unknown")


def test_after_the_last_model_nothing_is_stored(begin: Begin) -> None:
    controller = begin("1 tp1")
    controller.settle()
    controller.ask("")
    controller.settle()
    controller.store.clear()
    assert controller.serve.values == {}
