"""Who may ask and how much: ASGI middleware that stands before everything else of the endpoint."""

import logging
from collections import Counter
from http import HTTPStatus

from deployments.access.keyring import Keyring, Unknown
from deployments.access.keys import KeyRecord
from deployments.access.priorities import current_least_priority
from deployments.access.quotas import OverQuota, Quotas, current_charge
from deployments.access.refusing import ANTHROPIC_PATHS, AsgiApp, Receive, Scope, Send, refuse

# They say whether this process works and nothing more, and what asks them has no key: load balancers and probes.
OPEN_PATHS = frozenset({"/health", "/ping"})
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="archipelago"'}
_WHY = {
    "missing": "No API key was given. Send it as `Authorization: Bearer KEY`.",
    "unknown": "The API key is not known.",
    "expired": "The API key has expired.",
}
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})

log = logging.getLogger("ray.serve")


class Admission:
    """Lets requests through that show a key for using the endpoint, within its quotas.

    The key itself goes no further: what is behind cannot log it. `refused` counts by key name ("" is nobody) and
    status.
    """

    def __init__(self, app: AsgiApp, keyring: Keyring, quotas: Quotas) -> None:
        self._app = app
        self._keyring = keyring
        self._quotas = quotas
        self.refused: Counter[tuple[str, HTTPStatus]] = Counter()

    @property
    def users(self) -> tuple[KeyRecord, ...]:
        """The keys that may use the endpoint now. May be called from any thread."""
        return tuple(key for key in self._keyring.records if key.role == "use")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _is_open(scope)):
            await self._app(scope, receive, send)
            return
        found = self._keyring.find(_key_of(scope))
        if scope["type"] == "websocket":  # nothing that is served speaks it
            await send({"type": "websocket.close", "code": 1008})
        elif isinstance(found, Unknown) or found.role != "use":
            why = _WHY[found.why] if isinstance(found, Unknown) else "The key is for the control API, not for this one."
            self._count("", HTTPStatus.UNAUTHORIZED)
            await refuse(scope, send, HTTPStatus.UNAUTHORIZED, why, _CHALLENGE)
        elif scope["method"] == "POST":
            await self._charge(found, scope, receive, send)
        else:
            await self._app(_without_key(scope, found), receive, send)

    async def _charge(self, key: KeyRecord, scope: Scope, receive: Receive, send: Send) -> None:
        charge = self._quotas.admit(key, _body_bytes(scope))
        if isinstance(charge, OverQuota):
            self._count(key.name, HTTPStatus.TOO_MANY_REQUESTS)
            message = f"The key {key.name!r} has reached its limit of {charge.limit}."
            retry = {"Retry-After": str(charge.retry_after_s)}
            await refuse(scope, send, HTTPStatus.TOO_MANY_REQUESTS, message, retry)
            return
        charged, ranked = current_charge.set(charge), current_least_priority.set(key.priority)
        try:
            await self._app(_without_key(scope, key), receive, send)
        finally:
            current_least_priority.reset(ranked)
            current_charge.reset(charged)
            charge.give_back()

    def _count(self, name: str, status: HTTPStatus) -> None:
        self.refused[name, status] += 1


def _is_open(scope: Scope) -> bool:
    if scope["path"] in OPEN_PATHS:
        return scope["method"] in {"GET", "HEAD"}
    # A browser asks before it sends the key (https://fetch.spec.whatwg.org/#cors-preflight-request).
    names = {name for name, _ in scope["headers"]}
    return scope["method"] == "OPTIONS" and names >= {b"origin", b"access-control-request-method"}


def _key_of(scope: Scope) -> str:
    """The key that is shown; of several headers with one only the first counts."""
    headers = dict(reversed(scope["headers"]))
    if scope["path"] in ANTHROPIC_PATHS and b"x-api-key" in headers:
        return str(headers[b"x-api-key"].decode("latin-1").strip())
    scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _without_key(scope: Scope, key: KeyRecord) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name not in _KEY_HEADERS]
    return {**scope, "headers": headers, "state": {**scope.get("state", {}), "api_key": key.name}}


def _body_bytes(scope: Scope) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() and len(length) < 20 else 0
