from dataclasses import replace
from datetime import time
from pathlib import Path
from typing import Any

import pytest
from control_builders import MODEL
from loop_builders import SETTLE_S, TICK_S, Running, World, pools, story, world

from autoscaling.ledger.ledger import Ledger, LedgerError, read_ledger
from autoscaling.live.approvals import Answer, Freeze, answer, freeze, thaw
from autoscaling.observation import Pools
from autoscaling.schedule import Window
from deployments.control.wire import LeaseRequest

ONE, TWO, WIDE = pools("1 x tp2"), pools("2 x tp2"), pools("1 x tp4")


def test_a_change_is_carried_out_and_then_held(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here) as running:
        running.tick(2)
        here.serve()
        entries = running.tick(2)
        assert story(entries) == [("cheapest", "acted"), ("changing", "noted"), ("cheapest", "noted")]
        assert here.asked == [{"tp2": 2}]
        assert here.fleet.entries[0].reason == "autoscaler, decision 1: for 2 x tp2"
        assert entries[0].version == 3
        assert running.metric("decisions_total", model=MODEL, kind="replicas", cause="cheapest") == 1
        assert running.metric("changes_total", model=MODEL, state="acted") == 1
        assert running.metric("last_decision_timestamp_seconds", model=MODEL) == here.now_s


def test_whoever_watches_is_told_what_is_done_why_and_what_it_brought(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted, here.kind = {MODEL: WIDE}, "repartition"
    with Running(here) as running:
        running.tick(1, serving=True)
        running.tick(int((SETTLE_S + 3 * 60) / TICK_S))
    change = f"{MODEL}: decision 1, 1 x tp2 -> 1 x tp4"
    told = [sentence for sentence in here.said if "decision 1" in sentence]
    assert told[:2] == [
        f"{MODEL}: decision 1 (cheapest): 1 x tp2 -> 1 x tp4. for 1 x tp4",
        f"{change}, is acted. Version 4 of the fleet.",
    ]
    assert told[2].startswith(f"{change}: as predicted. 99.0% of the requests kept the SLO")


def test_advice_is_written_when_it_changes_and_never_carried_out(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    with Running(here, mode="advise") as running:
        running.tick(5)
        here.wanted = {MODEL: WIDE}
        entries = running.tick(5)
    assert [(entry.state, entry.target) for entry in entries] == [("noted", TWO), ("noted", WIDE)]
    assert not here.fleet.entries


def test_an_adviser_does_not_take_the_lease(tmp_path: Path) -> None:
    here = world(tmp_path / "one")
    here.wanted = {MODEL: TWO}
    with Running(here, mode="advise", directory=tmp_path / "two") as adviser, Running(here) as actor:
        adviser.tick()
        actor.tick()
        assert here.asked == [{"tp2": 2}]


def test_of_two_autoscalers_one_acts_and_the_other_takes_over_when_it_is_gone(tmp_path: Path) -> None:
    here = world(tmp_path / "one")
    here.wanted = {MODEL: TWO}
    second = Running(here, holder="second", directory=tmp_path / "two")
    with second, Running(here, holder="first") as first:
        first.tick()
        second.tick(3)
        assert here.asked == [{"tp2": 2}]
        assert not second.ledger.entries
        assert [sentence for sentence in here.said if "Standing by" in sentence and "first" in sentence]
        assert second.metric("holds_lease") == 0
        assert first.metric("holds_lease") == 1
        here.serve()
        here.wanted = {MODEL: WIDE}
        second.tick(5)  # the lease of the first one runs out: it has not been asked for anew
        assert here.asked == [{"tp2": 2}, {"tp4": 1}]


def test_an_autoscaler_that_ends_gives_its_lease_back(tmp_path: Path) -> None:
    here = world(tmp_path / "one")
    here.wanted = {MODEL: TWO}
    with Running(here, holder="first") as first:
        first.autoscaler.run(TICK_S, sleep=lambda s: None, is_over=iter([False, True]).__next__)
    with Running(here, holder="second", directory=tmp_path / "two") as second:
        second.tick()
        assert second.metric("holds_lease") == 1


def test_a_ledger_has_one_writer(tmp_path: Path) -> None:
    with Running(world(tmp_path)), pytest.raises(LedgerError, match="another autoscaler"):
        Ledger(tmp_path)


def test_nothing_is_known_nothing_is_done(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted, here.blind = {MODEL: TWO}, "the last sample is old"
    with Running(here) as running:
        assert story(running.tick(3)) == [("blind", "noted")]
        assert running.metric("blind_total", model=MODEL, kind="stale") == 3
        here.blind, here.fleet.is_away = None, True
        running.tick(2)
        assert running.metric("blind_total", model=MODEL, kind="no-fleet") == 2
        here.fleet.is_away = False
        running.tick()
    assert here.asked == [{"tp2": 2}]


def test_one_model_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    here = world(tmp_path, "bad", MODEL)
    here.failing, here.wanted = {"bad"}, {MODEL: TWO}
    with Running(here) as running:
        running.tick(3)
        assert here.asked == [{"tp2": 2}]
        assert running.metric("errors_total", model="bad") == 3
    assert [one for one in here.said if one.startswith("bad:")] == ["bad: this tick failed: RuntimeError: a mistake"]


def test_a_model_that_is_not_served_is_blindness(tmp_path: Path) -> None:
    here = world(tmp_path)
    with Running(here) as running:
        running.tick()
        del here.fleet.views[MODEL]
        entries = running.tick()
    assert entries[-1].decision.reason == f"The control API knows no model {MODEL}."


def test_a_model_that_was_never_served_is_told_too(tmp_path: Path) -> None:
    """Its name may be a mistake in the settings."""
    here = world(tmp_path)
    with Running(here) as running:
        del here.fleet.views[MODEL]
        assert story(running.tick(2)) == [("blind", "noted")]
    assert [one for one in here.said if one.endswith(f"The control API knows no model {MODEL}.")]


def test_what_does_not_fit_is_told_and_tried_again_later(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: pools("9 x tp2")}
    with Running(here) as running:
        (failed,) = running.tick(2)
        assert failed.state == "failed"
        assert "does not fit: it needs 18 GPUs; there are 8" in failed.why
        running.tick(5)
        assert len(here.fleet.entries) == 2  # asked again a minute later, under the same number
        assert len(running.ledger.entries) == 1
        here.now_s -= 3600  # and not an hour later, where the clock is set back
        running.tick()
        assert len(here.fleet.entries) == 3


def test_a_fleet_that_somebody_else_changed_is_looked_at_anew(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}

    def somebody() -> None:
        here.fleet.change(version=9, desired_pools={"tp4": 1})

    with Running(here) as running:
        here.before_asking = somebody
        (entry,) = running.tick()
    assert entry.state == "failed"
    assert "if_version: 3 is not the version" in entry.why
    assert not here.asked


def test_who_has_lost_the_lease_meanwhile_changes_nothing(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}

    def somebody() -> None:
        here.fleet.now_s += 3600
        here.fleet.leases.take("autoscaler", LeaseRequest(holder="second", ttl_s=3600))

    with Running(here) as running:
        here.before_asking = somebody
        (entry,) = running.tick()
    assert entry.state == "failed"
    assert "first does not hold autoscaler" in entry.why
    assert not here.asked


def test_frozen_nothing_changes_in_any_mode(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.wanted = {MODEL: TWO}
    freeze(tmp_path, Freeze(since_s=here.now_s, by="alice"))
    with Running(here) as running:
        assert story(running.tick(3)) == [("frozen", "noted")]
        assert running.metric("frozen") == 1
        thaw(tmp_path)
        running.tick()
    assert here.asked == [{"tp2": 2}]


def regretted(here: World, running: Running) -> None:
    """A repartition to WIDE that will have brought less than what it replaced, just before that is judged."""
    here.attainment = lambda of: 0.6 if of == WIDE else 0.9
    here.wanted, here.kind = {MODEL: None}, "repartition"
    running.tick(10)
    here.wanted = {MODEL: WIDE}
    running.tick(1, serving=True)
    here.wanted = {}


SETTLED = int((SETTLE_S + 3 * 60) / TICK_S)  # ticks


def test_a_repartition_that_did_worse_is_reverted_once_and_barred(tmp_path: Path) -> None:
    here = world(tmp_path)
    with Running(here) as running:
        regretted(here, running)
        entries = running.tick(SETTLED, serving=True)
        outcome = next(entry.outcome for entry in entries if entry.target == WIDE and entry.outcome)
        assert (outcome.verdict, outcome.is_regretted) == ("worse", True)
        assert outcome.why == (
            "60.0% of the requests kept the SLO with 1 x tp4; 99.0% were predicted for this demand, "
            "and 90.0% with 1 x tp2. That is worse than what it replaced."
        )
        assert here.asked == [{"tp4": 1}, {"tp2": 1}]
        assert [entry.decision.cause for entry in entries if entry.state == "acted"] == ["cheapest", "revert"]
        bar = here.memories[-1].bar(ONE, WIDE)
        assert bar is not None
        assert bar.until_s - entries[-1].at_s == pytest.approx(6 * 3600, rel=0.01)
        assert running.metric("verdicts_total", model=MODEL, verdict="worse") == 1
        assert running.metric("realised_attainment_ratio", model=MODEL) == pytest.approx(0.6)
        running.tick(40, serving=True)
        assert here.asked == [{"tp4": 1}, {"tp2": 1}]


def test_frozen_not_even_a_regretted_repartition_is_reverted(tmp_path: Path) -> None:
    here = world(tmp_path)
    with Running(here) as running:
        regretted(here, running)
        freeze(tmp_path, Freeze(since_s=here.now_s, by="alice"))
        running.tick(SETTLED)
        assert here.asked == [{"tp4": 1}]
        thaw(tmp_path)
        running.tick()
        assert here.asked == [{"tp4": 1}, {"tp2": 1}]


@pytest.mark.parametrize("limit", [{"min_gpus": 4}, {"windows": (Window(opens=time(2), closes=time(4)),)}])
def test_the_way_back_keeps_to_the_rules(tmp_path: Path, limit: dict[str, Any]) -> None:
    """It would be asked for again and again, and nothing else be done: a bound may be new, or another model have its
    GPUs."""
    here = world(tmp_path)
    with Running(here) as running:
        regretted(here, running)
    here.rules = replace(here.rules, **limit)
    with Running(here) as running:
        entries = running.tick(SETTLED)
        assert [entry.outcome.is_regretted for entry in entries if entry.outcome] == [True]
        here.wanted, here.kind = {MODEL: pools("2 x tp4")}, "replicas"
        running.tick()
    assert here.asked == [{"tp4": 1}, {"tp4": 2}]


def test_a_person_may_keep_what_would_be_reverted(tmp_path: Path) -> None:
    here = world(tmp_path)
    with Running(here) as running:
        regretted(here, running)
    with Running(here, mode="approve") as running:
        running.tick(SETTLED)
        (waiting,) = [one for one in running.ledger.entries.values() if one.state == "waiting"]
        assert waiting.decision.cause == "revert"
        answer(tmp_path, waiting.number, Answer(is_approved=False, by="bob"))
        running.tick(20)
    assert here.asked == [{"tp4": 1}]


def test_corrections_are_learnt_while_pools_serve_and_kept_over_a_restart(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.factor = 1.5
    with Running(here) as running:
        running.tick(4)
        assert running.metric("step_factor", model=MODEL, shape="tp2") is None  # not a whole window yet
        running.tick(100)
        learnt = running.metric("step_factor", model=MODEL, shape="tp2")
        assert learnt == pytest.approx(1.5, rel=0.05)
    with Running(here) as running:
        running.tick()
        assert running.metric("step_factor", model=MODEL, shape="tp2") == learnt


def test_that_what_is_learnt_cannot_be_kept_is_said_each_time_it_begins(tmp_path: Path) -> None:
    here = world(tmp_path)
    (tmp_path / "learnt.new").mkdir()
    with Running(here) as running:
        running.tick(2)
        (tmp_path / "learnt.new").rmdir()
        running.tick()
        (tmp_path / "learnt.new").mkdir()
        running.tick(2)
    assert len([one for one in here.said if one.startswith("What was learnt cannot be kept")]) == 2


def test_a_damaged_file_of_what_was_learnt_is_told_and_left_out(tmp_path: Path) -> None:
    here = world(tmp_path)
    (tmp_path / "learnt.json").write_text('{"acme/tiny": {"memory": 3')
    with Running(here) as running:
        running.tick()
    assert "learnt.json cannot be used" in here.said[0]
    assert read_ledger(tmp_path).entries


def test_a_clock_that_is_set_back_does_not_put_the_loop_to_sleep(tmp_path: Path) -> None:
    here = world(tmp_path)
    slept: list[float] = []

    def set_back(of: Pools) -> float:
        here.now_s -= 3600
        return 0.99

    here.attainment = set_back
    with Running(here) as running:
        running.autoscaler.run(TICK_S, sleep=slept.append, is_over=iter([False, True]).__next__)
    assert slept == [TICK_S]
