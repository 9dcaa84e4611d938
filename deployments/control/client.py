"""The control API as Python sees it from outside: one call, one request."""

import re
import ssl
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from deployments.control.wire import (
    Accepted,
    AuditEntry,
    AuditPage,
    EventPage,
    FleetView,
    Lease,
    LeaseRequest,
    MetricsTarget,
    MetricsTargets,
    Overview,
    PoolsTarget,
    Problem,
)

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
Answer = TypeVar("Answer", bound=BaseModel)


class ControlError(Exception):
    """The control API refused, or could not be asked. The message is a sentence for the user.

    `problem` is what the server said; None where there was no answer of its.
    """

    def __init__(self, sentence: str, problem: Problem | None = None) -> None:
        super().__init__(sentence)
        self.problem = problem

    @property
    def may_pass(self) -> bool:
        """Whether asking again a little later may help: the server, or the controller behind it, is away."""
        return self.problem is None or self.problem.status == httpx.codes.SERVICE_UNAVAILABLE


class ControlClient:
    """Asks one control API. Every method raises `ControlError`; no message and no `repr` has the token.

    Args:
        url: where the API is, such as http://127.0.0.1:8001.
        token: a secret of it.
        timeout_s: for an answer, on top of the time that it was asked to wait.
        transport: what carries the requests; None is the network.
        tls: what to trust for https; None is what the system trusts.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if not _TOKEN.fullmatch(token):
            raise ControlError("token: empty, or with characters that a token does not have; give it as it was made.")
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        # A proxy of the environment is for the way out of here; it would be shown the token.
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(headers=headers, transport=transport, trust_env=False, verify=tls or True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def overview(self) -> Overview:
        """The cluster and all fleets."""
        return self._ask(Overview, "GET", "/v1/fleet")

    def fleet(self, model: str) -> FleetView:
        """One fleet."""
        return self._ask(FleetView, "GET", f"/v1/fleet/{quote(model, safe='')}")

    def set_pools(self, model: str, target: PoolsTarget) -> Accepted:
        """Say what a fleet shall be; saying it again changes nothing."""
        return self._ask(Accepted, "PUT", f"/v1/fleet/{quote(model, safe='')}/pools", **_json(target))

    def take_lease(self, name: str, holder: str, ttl_s: float) -> Lease:
        """Get a lease, or keep it, for `ttl_s` from now; raises while another has it."""
        return self._ask(Lease, "PUT", _lease(name), **_json(LeaseRequest(holder=holder, ttl_s=ttl_s)))

    def give_back_lease(self, name: str, holder: str) -> None:
        """Free a lease for others."""
        self._send("DELETE", _lease(name), params={"holder": holder})

    def metrics_targets(self) -> tuple[MetricsTarget, ...]:
        """Where Prometheus finds the ingresses."""
        return self._ask(MetricsTargets, "GET", "/v1/metrics-targets").root

    def events(self, after: int | None = None, *, model: str | None = None, wait_s: float = 0.0) -> EventPage:
        """Events above number `after` (None: all that are held); waits up to `wait_s` where there is none yet."""
        query = {"after": after, "model": model, "wait_s": wait_s}
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask(EventPage, "GET", "/v1/events", wait_s=wait_s, params=given)

    def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """The latest entries of the audit log, oldest first."""
        return self._ask(AuditPage, "GET", "/v1/audit", params={"limit": limit}).entries

    def _ask(self, answer: type[Answer], method: str, path: str, *, wait_s: float = 0.0, **request: Any) -> Answer:
        response = self._send(method, path, wait_s=wait_s, **request)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise self._stranger(response) from error

    def _send(self, method: str, path: str, *, wait_s: float = 0.0, **request: Any) -> httpx.Response:
        """The answer of a request that was accepted."""
        try:
            response = self._http.request(method, self.url + path, timeout=self._timeout_s + wait_s, **request)
        except httpx.TimeoutException as error:
            raise ControlError(f"{self.url} did not answer within {self._timeout_s + wait_s:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ControlError(f"{self.url} cannot be reached ({error}).") from error
        if response.is_success:
            return response
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError as error:
            raise self._stranger(response) from error
        raise ControlError(problem.detail, problem)

    def _stranger(self, response: httpx.Response) -> ControlError:
        return ControlError(
            f"{self.url} answered {response.status_code}, but not as the control API of this version would."
        )


def _lease(name: str) -> str:
    return f"/v1/leases/{quote(name, safe='')}"


def _json(body: BaseModel) -> dict[str, Any]:
    return {"content": body.model_dump_json(), "headers": {"Content-Type": "application/json"}}
