"""Who may use the control API: a bearer token names the caller and what it may do.

The gate stands before the application, so a route that does not exist is as closed as one that does.
"""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from typing import Literal

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.control.problems import problem
from deployments.page import shell

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 60.0  # as at the endpoint; the server bounds the rest of a request (`access.connections`)
OPEN_PATHS = frozenset({"/healthz", "/openapi.json"}) | shell.PATHS  # the page holds no data
_READING = frozenset({"GET", "HEAD"})
_REALM = 'Bearer realm="archipelago"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: the name of a token, for the audit log, and its role. One that may operate may read."""

    name: str
    role: Literal["read", "operate"]


Verifier = Callable[[str], Caller | None]


def known_tokens(callers: Mapping[str, Caller]) -> Verifier:
    """A verifier of these tokens. Raises `ValueError` for an empty one."""
    if not all(callers):
        raise ValueError("A token is empty: anybody would have it.")
    digests = [(_digest(token), caller) for token, caller in callers.items()]

    def verify(token: str) -> Caller | None:
        given = _digest(token)
        # All are compared, over digests of one length: the time says neither which token is near nor how long it is.
        matches = [caller for digest, caller in digests if hmac.compare_digest(digest, given)]
        return matches[0] if matches else None

    return verify


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


class Gate:
    """Lets requests with a good token and a body of at most `MAX_BODY_BYTES`, in `BODY_TIMEOUT_S`, through to `app`."""

    def __init__(self, app: ASGIApp, verify: Verifier) -> None:
        self._app = app
        self._verify = verify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        caller = self._verify(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            challenge = f'{_REALM}, error="invalid_token"' if token else _REALM
            answer = problem(
                HTTPStatus.UNAUTHORIZED,
                "Authorization: the token is not known; give one that is."
                if token
                else "Authorization: missing; give `Bearer` and a token.",
                headers={"WWW-Authenticate": challenge},
            )
        elif caller.role == "read" and scope["method"] not in _READING:
            answer = problem(
                HTTPStatus.FORBIDDEN,
                f"Authorization: the token {caller.name!r} may only read; give one that may operate.",
                headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="operate"'},
            )
        elif _is_too_long(headers):
            answer = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LONG)
        else:
            scope.setdefault("state", {})["caller"] = caller
            await self._app(scope, _bounded(receive), send)
            return
        await answer(scope, receive, send)


_TOO_LONG = f"body: too long; give at most {MAX_BODY_BYTES} bytes."


def _is_too_long(headers: Headers) -> bool:
    length = headers.get("content-length", "0")
    return not length.isdecimal() or int(length) > MAX_BODY_BYTES


def _bounded(receive: Receive) -> Receive:
    """A body may come in chunks without its length being announced, and each of them late."""
    loop = asyncio.get_running_loop()
    received_bytes, is_complete, until_s = 0, False, loop.time() + BODY_TIMEOUT_S

    async def bounded() -> Message:
        nonlocal received_bytes, is_complete
        if is_complete:  # what comes now is the end of the client, which may be hours away
            return await receive()
        try:
            async with asyncio.timeout_at(until_s):
                message = await receive()
        except TimeoutError as error:
            late = f"body: not complete after {BODY_TIMEOUT_S:g} s; send it at once."
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, late) from error
        received_bytes += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if received_bytes > MAX_BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LONG)
        return message

    return bounded
