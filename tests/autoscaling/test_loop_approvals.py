from pathlib import Path

import pytest
from control_builders import MODEL
from loop_builders import APPROVAL, TICK_S, TWO, WIDE, Running, story, world

from autoscaling.live.approvals import Answer, answer


def test_a_proposal_waits_for_a_person(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        assert story(running.tick(3)) == [("cheapest", "waiting")]
        assert not here.asked
        answer(tmp_path, 1, Answer(is_approved=True, by="alice"))
        entries = running.tick()
        assert story(entries) == [("cheapest", "acted")]
        assert entries[0].by == "alice"
        assert here.asked == [{"tp2": 2}]
        assert "`archipelago approve 1`" in here.said[0]


def test_an_approval_of_what_is_not_right_any_more_does_nothing(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick()
        answer(tmp_path, 1, Answer(is_approved=True, by="alice"))
        here.wanted = {MODEL: WIDE}
        entries = running.tick()
        assert story(entries) == [("cheapest", "withdrawn"), ("cheapest", "waiting")]
        assert entries[0].why == "Now: for 1 x tp4"
        here.wanted = {}
        assert running.tick()[1].state == "withdrawn"
        here.wanted = {MODEL: TWO}
        assert running.tick(2)[-1].state == "waiting"  # a new number: the old yes is not for it
    assert not here.asked


def test_a_proposal_stands_while_nothing_is_seen_but_is_not_carried_out(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick()
        answer(tmp_path, 1, Answer(is_approved=True, by="alice"))
        here.blind = "the last sample is old"
        assert running.tick()[0].state == "waiting"
        assert not here.asked
        here.blind = None
        assert running.tick()[0].state == "acted"


def test_what_is_rejected_is_not_proposed_again_for_a_while(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick()
        answer(tmp_path, 1, Answer(is_approved=False, by="bob", why="a demo"))
        (rejected,) = running.tick()
        assert (rejected.state, rejected.by, rejected.why) == ("rejected", "bob", "a demo")
        assert len(running.tick(int(APPROVAL.rejected_s / TICK_S) - 1)) == 1
        assert story(running.tick())[-1] == ("cheapest", "waiting")
    assert not here.asked


def test_a_proposal_that_nobody_answers_expires(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick(int(APPROVAL.expires_s / TICK_S))
        assert story(running.tick()) == [("cheapest", "expired")]
        assert story(running.tick()) == [("cheapest", "expired"), ("cheapest", "waiting")]


def test_a_proposal_outlives_the_autoscaler(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick()
    answer(tmp_path, 1, Answer(is_approved=True, by="alice"))
    with Running(here, mode="approve") as running:
        assert story(running.tick()) == [("cheapest", "acted")]


def test_a_proposal_of_before_is_withdrawn_where_nobody_is_asked_any_more(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick()
        assert waiting(running) == 1
    with Running(here, mode="advise") as running:
        assert story(running.tick()) == [("cheapest", "withdrawn"), ("cheapest", "noted")]
        assert waiting(running) == 0


def waiting(running: Running) -> float | None:
    return running.metric("waiting_proposals", model=MODEL)


@pytest.mark.parametrize("is_approved", [True, False])
def test_it_is_exported_that_a_proposal_waits_until_it_is_answered(tmp_path: Path, is_approved: bool) -> None:
    here = world(tmp_path)
    with Running(here, mode="approve") as running:
        running.tick()
        assert waiting(running) == 0
        here.wanted = {MODEL: TWO}
        proposal = running.tick()[-1]
        assert waiting(running) == 1
        here.blind = "the last sample is old"
        running.tick()
        assert waiting(running) == 1
        here.blind = None
        answer(tmp_path, proposal.number, Answer(is_approved=is_approved, by="alice"))
        running.tick()
        assert waiting(running) == 0


def test_it_is_exported_that_a_proposal_waits_until_it_expires_or_another_is_right(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="approve") as running:
        running.tick(int(APPROVAL.expires_s / TICK_S))
        assert waiting(running) == 1
        running.tick()
        assert waiting(running) == 0
        running.tick()
        assert waiting(running) == 1
        here.wanted = {MODEL: WIDE}
        assert story(running.tick())[-2:] == [("cheapest", "withdrawn"), ("cheapest", "waiting")]
        assert waiting(running) == 1
        here.wanted = {}
        running.tick()
        assert waiting(running) == 0


def test_a_proposal_of_an_autoscaler_that_stands_by_is_not_waited_for(tmp_path: Path) -> None:
    here = world(tmp_path / "one")
    here.wanted = {MODEL: TWO}
    first, second = Running(here, mode="approve"), Running(here, holder="second", directory=tmp_path / "two")
    with first, second:
        first.tick()
        assert waiting(first) == 1
        here.wanted = {}
        here.fleet.now_s += 60  # its lease runs out: it was away
        second.tick()
        first.tick()
        assert (waiting(first), waiting(second)) == (None, 0)
