"""The routes for what the autoscaler has decided and what people answer; `decisions` has what travels over them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.control.decisions import (
    Approval,
    ApprovalRequest,
    ApprovalsPage,
    Board,
    DecisionsPage,
    Freeze,
    FreezePage,
    FreezeRequest,
    Posted,
)
from deployments.control.problems import problem
from deployments.control.wire import AuditEntry

MOST = 10**15  # 2.0**53 is as far as a browser counts
Number = Annotated[int, Path(ge=1, le=MOST)]
BODIES: Mapping[str, type[BaseModel]] = {
    "post_decisions": Posted,
    "answer_proposal": ApprovalRequest,
    "ask_freeze": FreezeRequest,
}
router = APIRouter()


class Numbered(BaseModel):
    """What the paths of these routes have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1, le=MOST)


def add_decisions(app: FastAPI) -> None:
    """Give an application what the routes need."""
    app.state.board = Board(lambda: datetime.now(UTC))


def _board(request: Request) -> Board:
    board: Board = request.app.state.board
    return board


@router.get("/decisions", summary="What the autoscaler has decided, and what waits for it")
async def decisions(request: Request) -> DecisionsPage:
    return _board(request).page()


@router.put("/decisions/{model:path}", status_code=HTTPStatus.NO_CONTENT, summary="Tell what was decided last")
async def post_decisions(model: str, said: Posted, request: Request) -> Response:
    refusal = _board(request).post(model, said)
    return problem(HTTPStatus.CONFLICT, refusal) if refusal else Response(status_code=HTTPStatus.NO_CONTENT)


@router.get("/approvals", summary="Answers that the autoscaler has not taken yet")
async def approvals(request: Request) -> ApprovalsPage:
    return ApprovalsPage(approvals=_board(request).page().approvals)


@router.put("/approvals/{model:path}/{number}", response_model=Approval, summary="Approve or reject a proposal")
async def answer_proposal(model: str, number: Number, asked: ApprovalRequest, request: Request) -> Approval | Response:
    board, who = _board(request), request.state.caller.name
    found = board.proposal(model, number, asked.at_s)
    what = f"{'approve' if asked.is_approved else 'reject'} decision {number}"
    if isinstance(found, str):
        await _record(request, what, asked.why, model=model, refusal=found)
        return problem(HTTPStatus.CONFLICT, found)
    await _record(request, what, asked.why, model=model, before=found.before, after=found.target)
    return board.answer(model, number, asked, who)


@router.get("/freeze", summary="The request to freeze, or to allow changes, that the autoscaler has not taken yet")
async def freeze(request: Request) -> FreezePage:
    return FreezePage(freeze=_board(request).freeze)


@router.put("/freeze", summary="Have the autoscaler change nothing, or allow it to")
async def ask_freeze(asked: FreezeRequest, request: Request) -> Freeze:
    await _record(request, "freeze" if asked.is_frozen else "allow changes", asked.why)
    return _board(request).ask_freeze(asked, request.state.caller.name)


@router.delete("/freeze/{number}", status_code=HTTPStatus.NO_CONTENT, summary="Say that a request was taken")
async def forget_freeze(number: Number, request: Request) -> Response:
    _board(request).forget_freeze(number)
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _record(request: Request, what: str, why: str, *, model: str = "", **known: Any) -> None:
    """Before it is done: what cannot be put on record is not done."""
    pools = {"before": {}, "after": {}, "refusal": None, **known}
    outcome: Literal["accepted", "refused"] = "refused" if pools["refusal"] else "accepted"
    who = request.state.caller.name
    at = _board(request).now()
    entry = AuditEntry(at=at, who=who, model=model, what=what, outcome=outcome, reason=why, **pools)
    await request.app.state.fleet.record(entry)
