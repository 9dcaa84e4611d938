"""The autoscaler and the fleet page: what it shows there, and what people ask of it there."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_builders import MODEL, READ, URL, Bridge
from loop_builders import SLO, TWO, WIDE, Running, World, decision, entry, option, world

from autoscaling.ledger.entries import Outcome
from autoscaling.live.approvals import Answer, answer, frozen
from autoscaling.live.bulletin import MOST_BYTES, MOST_ENTRIES, MOST_OPTIONS, Bulletin
from autoscaling.live.fleet_client import AwayError
from deployments.control.decisions import Posted


class Person:
    """Who looks at the page of one autoscaler, and says yes, no and stop there."""

    def __init__(self, running: Running) -> None:
        # Through the autoscaler's own connection: what is told there lives as long as the control API does.
        self._http = running.control._http

    def shown(self, model: str = MODEL) -> dict[str, Any]:
        found = self._ask("GET", "/v1/decisions")["models"]
        return next((one for one in found if one["model"] == model), {})

    def answer(self, number: int, *, is_approved: bool, why: str = "") -> None:
        made = next(one for one in self.shown()["entries"] if one["number"] == number)
        body = {"is_approved": is_approved, "at_s": made["at_s"], "why": why}
        self._ask("PUT", f"/v1/approvals/{MODEL}/{number}", json=body)

    def freeze(self, is_frozen: bool) -> None:
        self._ask("PUT", "/v1/freeze", json={"is_frozen": is_frozen, "why": "a launch"})

    def waiting(self) -> tuple[int, Any]:
        page = self._ask("GET", "/v1/decisions")
        return len(page["approvals"]), page["freeze"]

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        response = self._http.request(method, URL + path, **request)
        assert response.is_success, response.text
        return response.json()


def proposing(directory: Path) -> World:
    here = world(directory)
    here.wanted = {MODEL: TWO}
    return here


def test_each_look_shows_what_was_decided_with_the_slo(tmp_path: Path) -> None:
    with Running(proposing(tmp_path), mode="approve") as running:
        running.tick()
        shown = Person(running).shown()
        assert (shown["mode"], shown["holder"]) == ("approve", "first")
        assert shown["slo"] == {"ttft_s": 1.0, "tpot_s": 0.05, "percentile": 0.95}
        assert [(one["number"], one["state"], one["target"]) for one in shown["entries"]] == [
            (1, "waiting", {"tp2": 2})
        ]
        assert shown["entries"][0]["options"][0]["price"]["gpu_s"] == 1234.5


def test_a_proposal_approved_on_the_page_is_carried_out_and_says_by_whom(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here, mode="approve") as running:
        running.tick()
        person = Person(running)
        person.answer(1, is_approved=True, why="it is due")
        (done,) = running.tick()
        assert (done.state, done.by) == ("acted", "alice")
        assert pools_asked(here) == [{"tp2": 2}]
        assert person.waiting() == (0, None)
        shown = person.shown()["entries"][0]
        assert (shown["state"], shown["by"]) == ("acted", "alice")
    approved = [fact for fact in _facts(tmp_path) if fact.get("state") == "approved"]
    assert [(fact["by"], fact["why"]) for fact in approved] == [("alice", "it is due")]
    assert [one.what for one in here.fleet.entries] == ["approve decision 1", "set pools"]


def pools_asked(here: World) -> list[dict[str, int]]:
    """Of the autoscaler; that somebody approves is in the audit log too."""
    return [dict(one.after) for one in here.fleet.entries if one.what == "set pools"]


def _facts(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]


def test_a_proposal_rejected_on_the_page_is_not_made_again(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here, mode="approve") as running:
        running.tick()
        Person(running).answer(1, is_approved=False, why="a demo")
        (rejected,) = running.tick(5)
        assert (rejected.state, rejected.by, rejected.why) == ("rejected", "alice", "a demo")
    assert not pools_asked(here)


def test_what_is_not_right_any_more_is_not_done_though_approved(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here, mode="approve") as running:
        running.tick()
        person = Person(running)
        person.answer(1, is_approved=True)
        here.wanted = {MODEL: WIDE}
        assert [one.state for one in running.tick()] == ["withdrawn", "waiting"]
        assert person.waiting() == (0, None), "the answer was to the old one"
    assert not pools_asked(here)


def test_an_answer_to_another_ledger_s_proposal_is_not_taken(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here, mode="approve", directory=tmp_path / "a") as running:
        running.tick()
        person = Person(running)
        person.answer(1, is_approved=True)
        answers = running.control.answers()
        moved = tuple(one.model_copy(update={"at_s": one.at_s - 1}) for one in answers)
        running.control.answers = lambda: moved  # type: ignore[method-assign]
        assert [one.state for one in running.tick()] == ["waiting"]
    assert not pools_asked(here)


def test_a_freeze_on_the_page_is_the_freeze_of_the_command_line(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here) as running:
        running.tick(0)
        person = Person(running)
        person.freeze(True)
        running.tick(2)
        assert not pools_asked(here)
        assert running.metric("frozen") == 1
        now = frozen(tmp_path)
        assert now is not None
        assert (now.by, now.why) == ("alice", "a launch")
        assert person.shown()["frozen"]["by"] == "alice"
        assert person.waiting() == (0, None), "it is asked once, so that the command line may end it"
        person.freeze(False)
        running.tick()
        assert frozen(tmp_path) is None
        assert pools_asked(here) == [{"tp2": 2}]
        assert person.shown()["frozen"] is None


def test_who_only_advises_shows_but_takes_nothing(tmp_path: Path) -> None:
    with Running(proposing(tmp_path), mode="advise") as running:
        running.tick()
        person = Person(running)
        person.freeze(True)
        running.tick()
        assert person.shown()["mode"] == "advise"
        assert person.waiting()[1] is not None
        assert frozen(tmp_path) is None


def test_files_are_answers_still_where_the_control_api_has_no_page(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here, mode="approve") as running:
        _answering(running, httpx.Response(404, json={"type": "about:blank", "status": 404, "detail": "no such route"}))
        running.tick()
        answer(tmp_path, 1, Answer(is_approved=True, by="bob"))
        (done,) = running.tick(3)[:1]
        assert (done.state, done.by) == ("acted", "bob")
    said = [sentence for sentence in here.said if "fleet page" in sentence]
    assert said == [
        "What people ask for on the fleet page is not taken: no such route",
        "The fleet page does not show the decisions: no such route",
    ], "once, not with every look"


def test_a_control_api_that_is_away_for_the_page_changes_nothing(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here) as running:
        _answering(running, httpx.Response(503, json={"type": "about:blank", "status": 503, "detail": "starting"}))
        running.tick()
    assert pools_asked(here) == [{"tp2": 2}]
    assert not [sentence for sentence in here.said if "page" in sentence]


def _answering(running: Running, response: httpx.Response) -> None:
    """What concerns the page is answered so; the rest is as ever."""
    ask = running.control._http.request

    def request(method: str, url: str, **given: Any) -> httpx.Response:
        is_page = any(part in url for part in ("/v1/decisions", "/v1/approvals", "/v1/freeze"))
        return response if is_page else ask(method, url, **given)

    running.control._http.request = request  # type: ignore[method-assign,assignment]


class _Noted:
    """A control API that only keeps what was posted."""

    def __init__(self) -> None:
        self.posted: list[Mapping[str, Any]] = []

    def post_decisions(self, model: str, document: Mapping[str, Any]) -> None:
        self.posted.append(document)

    def answers(self) -> tuple[Any, ...]:
        raise AwayError("away")

    def freeze_asked(self) -> None:
        return None

    def freeze_taken(self, number: int) -> None:
        raise AssertionError(number)


class _Entries(dict[int, Any]):
    """A ledger that is read only."""

    def __init__(self, *entries: Any) -> None:
        self.entries = {one.number: one for one in entries}

    def of(self, model: str) -> list[Any]:
        return list(self.entries.values())


@pytest.mark.parametrize("length", [10, 5000])
def test_what_is_shown_is_bounded_and_accepted(tmp_path: Path, length: int) -> None:
    why = "x" * length
    lost = replace(option(TWO), why=why, price=replace(option(TWO).price, transition_s=inf))
    many = decision(TWO, options=(lost,) * 50)
    outcome = Outcome(verdict="worse", why=why, is_regretted=True)
    entries = [entry(TWO, WIDE, number=n, decision=many, why=why, outcome=outcome) for n in range(1, 40)]
    control = _Noted()
    bulletin = Bulletin(
        control=control,
        ledger=_Entries(*entries),  # type: ignore[arg-type]
        directory=tmp_path,
        mode="auto",
        holder="me",
        is_frozen=True,
        now=lambda: 0.0,
        say=lambda about, sentence: None,
    )
    bulletin.take()
    bulletin.post({MODEL: SLO})
    (document,) = control.posted
    shown = document["entries"]
    assert len(json.dumps(document, allow_nan=False)) <= MOST_BYTES
    assert shown[-1]["number"] == 39, "the latest stay"
    assert 1 <= len(shown) <= MOST_ENTRIES
    assert (len(shown[-1]["options"]), shown[-1]["options_left_out"]) == (MOST_OPTIONS, 50 - MOST_OPTIONS)
    assert shown[-1]["options"][0]["price"]["transition_s"] is None
    assert document["frozen"]["by"] == "the settings"
    Posted.model_validate(document)


def test_a_token_that_may_only_read_is_said_once(tmp_path: Path) -> None:
    here = proposing(tmp_path)
    with Running(here, mode="advise") as running:
        running.control._http.headers["Authorization"] = f"Bearer {READ}"
        assert isinstance(running.control._http._transport, Bridge)
        running.tick(3)
    said = [sentence for sentence in here.said if "fleet page" in sentence]
    assert len(said) == 1
    assert "may only read" in said[0]
