"""How the control API words what is wrong: RFC 9457, with one sentence for people."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails
from starlette.responses import Response

from deployments.config_messages import problems_of
from deployments.control.refusals import Refusal, RefusalKind
from deployments.control.wire import Problem

MEDIA_TYPE = "application/problem+json"
# What a schema says less well than the error itself.
_ACCEPTED = {"literal_error": "give {expected}", "bool_type": "give true or false"}
_STATUS: Mapping[RefusalKind, HTTPStatus] = {
    "unknown-model": HTTPStatus.NOT_FOUND,
    "stale-version": HTTPStatus.CONFLICT,
    "busy": HTTPStatus.CONFLICT,
    "lease-held": HTTPStatus.CONFLICT,
    "lease-lost": HTTPStatus.CONFLICT,
    "does-not-fit": HTTPStatus.UNPROCESSABLE_ENTITY,
}


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None, **members: Any) -> Response:
    """An error response; `members` are further fields of `Problem`."""
    title = HTTPStatus(status).phrase
    members = {"type": "about:blank", **members}
    content = Problem(title=title, status=int(status), detail=sentence, **members).model_dump_json(exclude_none=True)
    return Response(content, status, headers, MEDIA_TYPE)


def refusal_problem(refusal: Refusal) -> Response:
    """The answer to a target that is not taken."""
    return problem(
        _STATUS[refusal.kind],
        refusal.sentence,
        type=f"urn:archipelago:{refusal.kind}",
        current=refusal.current,
        known_models=refusal.known_models,
        obstacle=refusal.obstacle,
        lease=refusal.lease,
    )


def invalid_request(error: RequestValidationError, parts: Mapping[str, type[BaseModel]]) -> Response:
    """The answer to a request that is not understood; `parts` says what its query and its body are to be."""
    details: Sequence[Any] = error.errors()
    broken = next((detail for detail in details if detail["type"] == "json_invalid"), None)
    if broken is not None:
        position = f"{broken['ctx']['error']} at character {broken['loc'][-1]}"
        return problem(HTTPStatus.BAD_REQUEST, f"body: not JSON ({position}); give a JSON mapping.")
    rebuilt = ValidationError.from_exception_data("request", [_line(detail) for detail in details])
    sentence = "; ".join(line.rstrip(".") for line in problems_of(rebuilt, _schema(parts)))
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, sentence if sentence.endswith("?") else f"{sentence}.")


def _line(detail: Mapping[str, Any]) -> InitErrorDetails:
    """One thing that FastAPI found, as pydantic had said it."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _ACCEPTED:
        kind, context = "value_error", {"error": ValueError(_ACCEPTED[kind].format_map(context))}
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


def _schema(parts: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """One schema of all parts of a request: the fields of its body are under `body`, as in their path."""
    schemas = {part: model.model_json_schema() for part, model in parts.items()}
    definitions = {name: node for schema in schemas.values() for name, node in schema.pop("$defs", {}).items()}
    return {"type": "object", "properties": schemas, "$defs": definitions}
