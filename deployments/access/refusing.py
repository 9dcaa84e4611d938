"""How the endpoint says no: in the words of the API that was asked, so that its client library understands."""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

ANTHROPIC_PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
# https://docs.anthropic.com/en/api/errors; what is not there is an api_error.
_ANTHROPIC_TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
# https://platform.openai.com/docs/guides/error-codes
_OPENAI_TYPES: Mapping[int, tuple[str, str | None]] = {
    HTTPStatus.UNAUTHORIZED: ("invalid_request_error", "invalid_api_key"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("invalid_request_error", "request_too_large"),
    HTTPStatus.REQUEST_TIMEOUT: ("invalid_request_error", "request_timeout"),
    HTTPStatus.TOO_MANY_REQUESTS: ("rate_limit_error", "rate_limit_exceeded"),
}


def error_body(path: str, status: int, message: str) -> bytes:
    """An error as JSON."""
    if path in ANTHROPIC_PATHS:
        error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
        return json.dumps({"type": "error", "error": error}).encode()
    kind, code = _OPENAI_TYPES.get(status, ("api_error", None))
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


async def refuse(scope: Scope, send: Send, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
    """Answer a request without its application."""
    body = error_body(scope["path"], status, message)
    own = {"content-type": "application/json", "content-length": str(len(body))}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in {**own, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": encoded})
    await send({"type": "http.response.body", "body": body})
