"""What the autoscaler tells the control API, what people answer there, and what stays of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from control_builders import MODEL, READ, MemoryFleet, fleet, http, raw_client
from page_builders import entry, held, posted

from deployments.control.decisions import MOST_MODELS, SILENT_S, ApprovalRequest, Board, FreezeRequest, Posted
from deployments.control.wire import Problem

__all__ = ["fleet", "http"]  # fixtures
SAID = f"/v1/decisions/{MODEL}"
ANSWER = f"/v1/approvals/{MODEL}/12"
AT_S = entry()["at_s"]
YES = {"is_approved": True, "at_s": AT_S, "why": "it is due"}


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return Problem.model_validate_json(response.content).detail


def test_what_was_told_is_shown_with_the_losers(http: httpx.Client) -> None:
    assert http.put(SAID, json=posted()).status_code == 204
    (shown,) = http.get("/v1/decisions").json()["models"]
    assert (shown["model"], shown["mode"], shown["holder"]) == (MODEL, "approve", "autoscaler on head")
    assert shown["age_s"] < 60
    assert [option["why"] for option in shown["entries"][0]["options"]][1:] == [
        "33 % more GPU-seconds",
        "misses the 95 % of the SLO",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": ""}, "body.mode: '' is not accepted; give a non-empty string."),
        ({"modes": "auto"}, "body.modes: unknown name; did you mean mode?"),
        ({"entries": [entry(0)]}, "body.entries[0].number: 0 is not accepted; give an integer above 0"),
        ({"entries": [entry(target={"tp": 1})]}, "body.entries[0].target"),
        ({"entries": [entry(reason="x" * 3000)]}, "body.entries[0].reason"),
        ({"entries": [entry(since_s="now")]}, "body.entries[0].since_s: 'now' is not accepted; give a number"),
        ({"entries": [entry(n) for n in range(1, 34)]}, "body.entries"),
        ({"slo": {"percentile": 95}}, "body.slo.percentile: 95 is not accepted; give a number from 0 to 1"),
    ],
)
def test_what_is_told_wrongly_is_refused_field_by_field(http: httpx.Client, changes: dict[str, Any], said: str) -> None:
    assert said in refused(http.put(SAID, json=posted(**changes)), 422)
    assert not http.get("/v1/decisions").json()["models"]


def test_an_answer_is_on_record_and_waits_until_it_was_taken(http: httpx.Client, fleet: MemoryFleet) -> None:
    http.put(SAID, json=posted())
    given = http.put(ANSWER, json=YES).json()
    assert (given["by"], given["number"], given["model"]) == ("alice", 12, MODEL)
    (record,) = fleet.entries
    assert (record.who, record.what, record.outcome, record.reason) == (
        "alice",
        "approve decision 12",
        "accepted",
        "it is due",
    )
    assert (record.before, record.after) == ({"tp4": 2}, {"tp8": 2})
    http.put(SAID, json=posted())  # it has not looked yet
    assert http.get("/v1/approvals").json()["approvals"] == [given]
    http.put(SAID, json=posted(entry(state="acted")))
    assert not http.get("/v1/approvals").json()["approvals"]


def test_the_last_answer_counts(http: httpx.Client) -> None:
    http.put(SAID, json=posted())
    http.put(ANSWER, json=YES)
    http.put(ANSWER, json=YES | {"is_approved": False})
    assert [one["is_approved"] for one in http.get("/v1/approvals").json()["approvals"]] == [False]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (f"/v1/approvals/{MODEL}/13", YES, 409, "the autoscaler has told of no decision 13 about acme/tiny"),
        ("/v1/approvals/other/12", YES, 409, "no decision 12 about other"),
        (ANSWER, YES | {"at_s": AT_S - 1}, 409, "of that time; look again."),
        (
            f"/v1/approvals/{MODEL}/11",
            YES | {"at_s": AT_S - 1},
            409,
            "decision 11 about acme/tiny is noted, not waiting",
        ),
        (f"/v1/approvals/{MODEL}/0", YES, 422, "path.number: '0' is not accepted; give an integer from 1"),
        (f"/v1/approvals/{MODEL}/{'9' * 5000}", YES, 422, "path.number"),
        (
            ANSWER,
            YES | {"why": "a\x1b[2Jb"},
            422,
            "body.why: 'a\\x1b[2Jb' is not accepted; give one line of at most 500",
        ),
        (ANSWER, {"is_approved": True}, 422, "body.at_s: missing"),
        (ANSWER, YES | {"is_approved": 1}, 422, "body.is_approved: 1 is not accepted; give true or false."),
    ],
)
def test_an_answer_to_nothing_is_refused(
    http: httpx.Client, fleet: MemoryFleet, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    http.put(SAID, json=posted(held(11, {"tp4": 2}, "cooldown", "too soon"), entry()))
    assert said in refused(http.put(path, json=body), status)
    assert not http.get("/v1/approvals").json()["approvals"]
    assert [one.outcome for one in fleet.entries] == (["refused"] if status == 409 else [])


def test_a_freeze_waits_until_it_was_taken(http: httpx.Client, fleet: MemoryFleet) -> None:
    assert http.get("/v1/freeze").json() == {"freeze": None}
    first = http.put("/v1/freeze", json={"is_frozen": True, "why": "a launch"}).json()
    second = http.put("/v1/freeze", json={"is_frozen": False}).json()
    assert second["number"] > first["number"]
    http.delete(f"/v1/freeze/{first['number']}")
    assert http.get("/v1/freeze").json()["freeze"] == second, "the later one was not taken yet"
    http.delete(f"/v1/freeze/{second['number']}")
    assert http.get("/v1/freeze").json() == {"freeze": None}
    assert [(one.who, one.what, one.reason) for one in fleet.entries] == [
        ("alice", "freeze", "a launch"),
        ("alice", "allow changes", ""),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", SAID, posted()),
        ("PUT", ANSWER, YES),
        ("PUT", "/v1/freeze", {"is_frozen": True}),
        ("DELETE", "/v1/freeze/1", None),
    ],
)
def test_who_may_only_read_changes_nothing(fleet: MemoryFleet, method: str, path: str, body: Any) -> None:
    with raw_client(fleet, READ) as http:
        assert "may only read" in refused(http.request(method, path, json=body), 403)
        assert http.get("/v1/decisions").json() == {"models": [], "approvals": [], "freeze": None}
    with raw_client(fleet, None) as http:
        assert http.request(method, path, json=body).status_code == 401


def test_what_cannot_be_put_on_record_is_not_done(http: httpx.Client, fleet: MemoryFleet) -> None:
    async def full(entry: object) -> None:
        raise OSError("no space left")

    http.put(SAID, json=posted())
    fleet.record = full  # type: ignore[method-assign]
    refused(http.put(ANSWER, json=YES), 500)
    refused(http.put("/v1/freeze", json={"is_frozen": True}), 500)
    found = http.get("/v1/decisions").json()
    assert (found["approvals"], found["freeze"]) == ([], None)


class Wall:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


def said(**changes: Any) -> Posted:
    return Posted.model_validate_json(Posted.model_validate(posted(**changes)).model_dump_json())


def test_one_that_only_advises_does_not_speak_for_one_that_acts() -> None:
    wall = Wall()
    board = Board(wall)
    assert board.post(MODEL, said()) is None
    board.answer(MODEL, 12, ApprovalRequest(is_approved=True, at_s=AT_S), "alice")
    shadow = said(mode="advise", holder="another", entries=())
    assert "autoscaler on head acts for acme/tiny" in str(board.post(MODEL, shadow))
    assert board.page().approvals, "an answer is not lost to an adviser"
    wall.at += timedelta(seconds=SILENT_S)
    assert board.post(MODEL, shadow) is None
    assert not board.page().approvals
    assert board.post(MODEL, said()) is None, "one that acts is heard at once"


def test_the_board_stays_small() -> None:
    board = Board(Wall())
    for number in range(MOST_MODELS + 5):
        board.post(f"model-{number}", said())
        board.post("model-0", said())  # heard of all the time
    models = {one.model for one in board.page().models}
    assert len(models) == MOST_MODELS
    assert "model-0" in models
    assert "model-1" not in models


def test_numbers_of_requests_go_up_within_a_millisecond() -> None:
    board = Board(Wall())
    numbers = [board.ask_freeze(FreezeRequest(is_frozen=True), "alice").number for _ in range(3)]
    assert numbers == sorted(set(numbers))
