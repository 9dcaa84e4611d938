"""The control API over HTTP. It knows nothing but the `Fleet` it is given, and keeps nothing between requests."""

import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from deployments.control import decision_routes
from deployments.control.contract import Fleet, FleetUnavailableError
from deployments.control.gate import Gate, Verifier
from deployments.control.problems import MEDIA_TYPE, invalid_request, problem, refusal_problem
from deployments.control.refusals import Refusal, unknown_model
from deployments.control.values import Holder, LeaseName
from deployments.control.wire import (
    MAX_WAIT_S,
    Accepted,
    AuditPage,
    EventPage,
    FleetView,
    Lease,
    LeaseRequest,
    MetricsTargets,
    Overview,
    PoolsTarget,
    Problem,
)
from deployments.metrics.fleet_series import exposition
from deployments.page import load, shell

ALIVE_S = 15.0  # a stream says at least this often that it is alive: proxies cut what is silent for a minute
RETRY_AFTER_S = 2
_EVENT_ID = re.compile("[0-9]{1,19}")


class _Selection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    after: int | None = Field(default=None, ge=0, description="Number of the last event you have seen.")
    model: str | None = Field(default=None, description="Only events of this model; it may be gone already.")


class _Awaited(_Selection):
    wait_s: float = Field(default=0.0, ge=0, le=MAX_WAIT_S, description="Seconds to wait where there is none yet.")


class _Latest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = Field(default=100, ge=1, le=10_000, description="Most entries to answer.")


class _Named(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: LeaseName


class _Held(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: Holder = Field(description="Who has it.")


_QUERIES: Mapping[str, type[BaseModel]] = {
    "events": _Awaited,
    "stream": _Selection,
    "audit": _Latest,
    "give_back_lease": _Held,
}
_BODIES: Mapping[str, type[BaseModel]] = {
    "put_pools": PoolsTarget,
    "take_lease": LeaseRequest,
    **decision_routes.BODIES,
}


def control_app(fleet: Fleet, verify: Verifier) -> FastAPI:
    """The application; who may use it is for `verify` to say. `Fleet` has what must hold of the answers."""
    # No /docs: that page runs scripts from elsewhere, in a browser that may hold a token.
    app = FastAPI(title="Archipelago control API", version="1", docs_url=None, redoc_url=None)
    app.state.fleet = fleet
    app.include_router(_router)
    decision_routes.add_decisions(app)
    load.add_load(app)
    shell.add_page(app)
    app.add_api_route("/healthz", _healthz, response_class=Response, summary="Whether this server answers; open to all")
    app.add_api_route(
        "/metrics",
        _metrics,
        response_class=Response,
        dependencies=_TOKEN,
        responses=_PROBLEMS,
        summary="What Prometheus reads of the fleets",
    )
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(FleetUnavailableError, _unavailable)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Gate, verify=verify)
    return app


def _fleet(request: Request) -> Any:
    return request.app.state.fleet


Controller = Annotated[Fleet, Depends(_fleet)]
_TOKEN = (Depends(HTTPBearer(auto_error=False)),)  # for OpenAPI: the gate has checked the token already
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": "What is wrong, in a sentence", "content": {MEDIA_TYPE: {}}}
    for status in ("4XX", "5XX")
}
_router = APIRouter(prefix="/v1", dependencies=_TOKEN, responses=_PROBLEMS)


@_router.get("/fleet", summary="The cluster and all fleets")
async def overview(fleet: Controller) -> Overview:
    return await fleet.read()


@_router.get("/fleet/{model:path}", response_model=FleetView, summary="One fleet")
async def one_fleet(model: str, fleet: Controller) -> FleetView | Response:
    found = await fleet.read()
    return found.fleet(model) or refusal_problem(unknown_model(model, [view.model for view in found.fleets]))


@_router.put("/fleet/{model:path}/pools", response_model=Accepted, summary="Say what a fleet shall be")
async def put_pools(model: str, target: PoolsTarget, request: Request, fleet: Controller) -> Accepted | Response:
    answer = await fleet.set_pools(model, target, request.state.caller.name)
    return refusal_problem(answer) if isinstance(answer, Refusal) else answer


@_router.get("/events", response_model=EventPage, summary="What happened; waits for it if asked to")
async def events(query: Annotated[_Awaited, Query()], fleet: Controller) -> EventPage | Response:
    page = await fleet.events(query.after, query.model, query.wait_s)
    return _ahead(query.after, page) or page


@_router.get("/events/stream", response_class=StreamingResponse, summary="What happens, as server-sent events")
async def stream(
    query: Annotated[_Selection, Query()], fleet: Controller, last_event_id: Annotated[str, Header()] = ""
) -> Response:
    after = int(last_event_id) if _EVENT_ID.fullmatch(last_event_id) else query.after
    first = await fleet.events(after, query.model, 0)
    return _ahead(after, first) or StreamingResponse(
        _frames(fleet, first, query.model), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@_router.get("/audit", summary="Who asked for what, and what came of it")
async def audit(query: Annotated[_Latest, Query()], fleet: Controller) -> AuditPage:
    return AuditPage(entries=await fleet.audit(query.limit))


@_router.put("/leases/{name}", response_model=Lease, summary="Have a lease, or keep it: one holder at a time")
async def take_lease(name: LeaseName, request: LeaseRequest, fleet: Controller) -> Lease | Response:
    answer = await fleet.take_lease(name, request)
    return refusal_problem(answer) if isinstance(answer, Refusal) else answer


@_router.delete("/leases/{name}", status_code=HTTPStatus.NO_CONTENT, summary="Give a lease back")
async def give_back_lease(name: LeaseName, query: Annotated[_Held, Query()], fleet: Controller) -> Response:
    refusal = await fleet.give_back_lease(name, query.holder)
    return refusal_problem(refusal) if refusal else Response(status_code=HTTPStatus.NO_CONTENT)


@_router.get("/metrics-targets", summary="The ingresses' metrics, for Prometheus's http_sd_configs")
async def metrics_targets(fleet: Controller) -> MetricsTargets:
    return MetricsTargets(await fleet.metrics_targets())


_router.include_router(decision_routes.router)
_router.include_router(load.router)


async def _metrics(fleet: Controller) -> Response:
    body, media_type = exposition(await fleet.read())
    return Response(body, media_type=media_type)


async def _frames(fleet: Fleet, page: EventPage, model: str | None) -> AsyncIterator[str]:
    while True:
        if page.gap:
            yield f"event: gap\ndata: {page.gap.model_dump_json()}\n\n"
        for event in page.events:
            yield f"id: {event.number}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
        if not page.events:
            yield ": alive\n\n"
        page = await fleet.events(page.newest, model, ALIVE_S)


def _ahead(after: int | None, page: EventPage) -> Response | None:
    if after is None or after <= page.newest:
        return None
    sentence = f"query.after: {after} is not accepted; the newest event is {page.newest}."
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)


async def _healthz() -> Response:
    return JSONResponse({"status": "ok"})


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence, headers = error.detail, error.headers
    if error.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
        sentence = f"{request.method} {request.url.path}: there is no such route; /openapi.json has all."
        headers = _allowed(request) if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else headers
    elif error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI's, of a body that it could not decode
        sentence = "body: not JSON in UTF-8, or nested too deeply; give a JSON mapping."
    return problem(error.status_code, sentence, headers)


def _allowed(request: Request) -> dict[str, str]:
    """Every method of the path, as RFC 9110, 10.2.1 has it; Starlette names those of one of its routes."""
    here = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {"Allow": ", ".join(sorted({method for route in here for method in route.methods}))}


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    route = request.scope["route"].name
    body, query = _BODIES.get(route, PoolsTarget), _QUERIES.get(route, _Latest)
    path = decision_routes.Numbered if "{number}" in request.scope["route"].path else _Named
    return invalid_request(error, {"body": body, "query": query, "path": path})


async def _unavailable(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(RETRY_AFTER_S)})


async def _failed(request: Request, error: Exception) -> Response:
    sentence = "The control API failed; its log says why. The fleets are as they were, or as the audit log says."
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, sentence)
