"""The HTTP side: vLLM's own OpenAI application over the fleet's replicas, in a process that listens itself.

Serve's proxy is left out of the way: it would copy every streamed piece from one process to another (18 % of the
throughput at 8 clients, measured). Serve starts the process, watches it and starts it again. Several ingresses listen
at the same port (SO_REUSEPORT), where the kernel spreads connections over them.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import ray
from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
from ray.exceptions import RayError
from ray.serve import get_replica_context

from deployments.access.listening import BACKLOG, guarded, serve
from deployments.access.priorities import current_least_priority, granted
from deployments.access.ray_tls import dialling_context
from deployments.access.settings import Access
from deployments.access.steering import steer, steer_no_more
from deployments.link import FleetLink
from deployments.membership import IngressReport, Membership
from deployments.metrics.ingress_series import IngressSeries
from deployments.metrics.key_series import KeySeries
from deployments.metrics.plain_text import plain_text
from deployments.routing import Arrival, Limits, Refusal
from deployments.serve_log import serve_log_kept
from deployments.telemetry.fields import TelemetryConfig
from deployments.telemetry.observing import Observed, watch
from deployments.traffic import Place, Traffic
from deployments.wire import dialer

CONTROLLER = "fleet-controller"
NAMESPACE = "archipelago"
RETRY_AFTER_S = 5
LOOK_AGAIN_S = 0.5
FIRST_MEMBERSHIP_S = 10.0
CONNECTED_POLL_S = 0.05
HANDSHAKES_S = 3.0  # a connection that was begun so long ago has been accepted: a round trip, and a packet sent again
BYTES_PER_TOKEN = 4
# These say something about the ingress itself, so they answer while no replica is ready.
ALWAYS_OPEN_PATHS = frozenset({"/metrics", "/version", "/ping"})
# A POST to one of these is a request to generate: what vLLM serves of a model that generates (vllm/entrypoints/*).
GENERATING_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/cohere/v2/chat",
        "/inference/v1/generate",
        "/invocations",
    }
)
EVERYWHERE = frozenset({"0.0.0.0", "::"})
# What ends like this is no text: nothing that is written goes on for so long without a space.
_BASE64_RUN = 1000
_BASE64 = re.compile(rf"[A-Za-z0-9+/_=-]{{{_BASE64_RUN}}}")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressPlan:
    """All that one ingress needs to start; there are ``ingresses`` of them.

    ``serve_args`` are those of ``vllm serve``, by their Python names.
    """

    model: str
    serve_args: Mapping[str, Any] = field(repr=False)  # a token of the hub may be among them
    host: str
    port: int
    ingresses: int
    secret: str = field(repr=False)
    limits: Limits
    access: Access = field(default_factory=Access)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)


class Gate:
    """ASGI middleware that refuses early, with Retry-After, what would otherwise hang, time out or fail.

    503 while no replica is ready, 429 while all have more than they can do in time; batch requests (``priority`` above
    0 in the body, or of their key) before others. By then the length of a prompt is not known, only that of the body.
    What is let in counts from then on, long before vLLM has rendered its prompt and sends it.
    """

    def __init__(self, app: AsgiApp, link: FleetLink) -> None:
        self._app = app
        self._link = link
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_OPEN_PATHS:
            is_scraped = scope["type"] == "http" and scope["path"] == "/metrics"
            await (plain_text(self._app) if is_scraped else self._app)(scope, receive, send)
            return
        self._link.asked.arrivals += _generates(scope)
        if not self._link.is_open:
            await self._refuse(scope, send, HTTPStatus.SERVICE_UNAVAILABLE, self._why_closed(), RETRY_AFTER_S)
        elif scope["method"] == "POST":
            await self._admit(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._place(int(dict(scope["headers"]).get(b"content-length", 0)), priority=1)
        if isinstance(answer, Refusal):
            # No room for a batch request of text; for an interactive one, or one with media, there may be.
            messages = [message async for message in _body(receive)]
            receive = _replay(messages, receive)
            answer = self._place_of(b"".join(message.get("body", b"") for message in messages))
        if isinstance(answer, Refusal):
            why = f"The server is overloaded: {answer.reason}."
            await self._refuse(scope, send, answer.status, why, answer.retry_after_s)
            return
        with answer.kept() if _generates(scope) else contextlib.nullcontext():
            await self._app(scope, receive, send)

    def _place_of(self, body: bytes) -> Place | Refusal:
        request = _parsed(body)
        priority = granted(_priority(request), current_least_priority.get())
        return self._place(len(body) - _media_bytes(request), priority)

    def _place(self, text_bytes: int, priority: int) -> Place | Refusal:
        name = f"{self._link.name}/{next(self._numbers)}"
        prompt_tokens = text_bytes // BYTES_PER_TOKEN + 1
        return self._link.admit(
            Arrival(request_id=name, prompt_tokens=prompt_tokens, max_tokens=1, priority=priority)
        )

    async def _refuse(self, scope: Scope, send: Send, status: HTTPStatus, why: str, retry_after_s: int) -> None:
        self._link.asked.refused[status] += _generates(scope)
        await _answer_error(send, status, why, retry_after_s)

    def _why_closed(self) -> str:
        if self._link.membership.is_closing:
            what = "model is being removed" if self._link.membership.is_going else "server is being stopped"
            return f"The {what} and takes no new requests."
        planned = self._link.membership.planned_replicas
        return f"The model is not ready yet: 0 of {planned} replicas are up. Try again in {RETRY_AFTER_S} s."


def _generates(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"] in GENERATING_PATHS


async def _answer_error(send: Send, status: HTTPStatus, message: str, retry_after_s: int) -> None:
    kind = status.phrase.replace(" ", "")
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status.value}})
    headers = [(b"content-type", b"application/json"), (b"retry-after", str(retry_after_s).encode())]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


async def _body(receive: Receive) -> AsyncIterator[MutableMapping[str, Any]]:
    while True:
        message = await receive()
        yield message
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None  # what is wrong with it the application will say


def _priority(request: Any) -> int:
    try:
        return int(request.get("priority", 0))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return 0  # as above


def _media_bytes(request: Any) -> int:
    """How much of it is images, sounds and the like: a megabyte of them is a thousand tokens, not 250,000."""
    found, left = 0, [request]
    while left:
        match left.pop():
            case dict() as fields:
                left.extend(fields.values())
            case list() as items:
                left.extend(items)
            case str(text) if _BASE64.fullmatch(text, max(0, len(text) - _BASE64_RUN)):
                found += len(text)
    return found


def _replay(messages: list[MutableMapping[str, Any]], receive: Receive) -> Receive:
    async def replayed() -> MutableMapping[str, Any]:
        return messages.pop(0) if messages else await receive()

    return replayed


class Ingress:
    """The Serve deployment class."""

    async def __init__(self, plan: IngressPlan) -> None:  # type: ignore[misc]  # Serve awaits it
        tls = dialling_context(os.environ)
        self._plan = plan
        self._application = get_replica_context().app_name
        name = f"ingress-{uuid.uuid4().hex[:8]}"
        traffic = Traffic(name, plan.limits)
        self._link = FleetLink(name, dialer(plan.secret, tls), traffic)
        with serve_log_kept():
            # Here and not above: the command line imports this module, and vLLM takes seconds to import.
            from deployments.fleet_engine import openai_app

            gate = Gate(await openai_app(plan.serve_args, self._link, traffic), self._link)
        access = plan.access
        watched = Observed(gate, watch(plan.model, plan.telemetry, self._link.asked, name), _generates)
        app, admission = guarded(watched, access)
        REGISTRY.register(IngressSeries(plan.model, self._link, traffic, plan.telemetry))  # where vLLM's series are
        # Clients may read those at the endpoint, and have no business with one another: keys are told elsewhere only.
        told = CollectorRegistry(auto_describe=True)
        told.register(REGISTRY)
        told.register(KeySeries(plan.model, self._link.asked.by_key, admission))
        metrics_listener = listening_socket(access.metrics_host, 0, is_shared=False)
        self._metrics_address = reachable_address(metrics_listener, ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._is_informed = asyncio.Event()
        self._leaves = asyncio.Event()
        self._listener: socket.socket | None = None
        self._clients: asyncio.Task[None] | None = None
        self._tasks = [
            asyncio.create_task(serve(plain_text(make_asgi_app(told)), [metrics_listener], access.limits)),
            asyncio.create_task(self._follow_membership()),
        ]
        # Another ingress may be serving at this port: no connection shall come here before there is anything behind.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_MEMBERSHIP_S):
                await self._is_informed.wait()
                while self._link.replicas and not self._link.ready:  # noqa: ASYNC110
                    await asyncio.sleep(CONNECTED_POLL_S)
        settle_heap()
        if not self._leaves.is_set():  # else others have the clients since, and Serve has started this one again
            self._listener = listening_socket(plan.host, plan.port)
        self._clients = asyncio.create_task(self._serve_clients(app))

    async def check_health(self) -> None:
        """Raise when the server or the connection to the controller has ended: Serve then starts another ingress."""
        serving = [self._clients] if self._clients and not self._leaves.is_set() else []
        for task in [*self._tasks, *serving]:
            if task.done():
                raise RuntimeError(f"the ingress no longer works: {task.exception() if not task.cancelled() else task}")

    async def _serve_clients(self, app: AsgiApp) -> None:
        """Answer clients until ingresses of other settings take over, and the last client of this one has gone."""
        if self._listener is None:
            return
        access, closes = self._plan.access, asyncio.Event()
        answering = serve(app, [self._listener], access.limits, access.tls, closes)
        await asyncio.gather(answering, self._hand_over(self._listener, closes))

    async def _hand_over(self, listener: socket.socket, closes: asyncio.Event) -> None:
        """Have new connections begin elsewhere, and take those that have begun here."""
        await self._leaves.wait()
        # The others listen since after those of this one's kind.
        steer(listener, self._plan.ingresses, self._link.membership.ingresses)
        await asyncio.sleep(HANDSHAKES_S)
        closes.set()

    def _report(self) -> IngressReport:
        return replace(
            self._link.report(),
            metrics_address=self._metrics_address,
            application=self._application,
            has_left=self._clients is not None and self._clients.done(),
        )

    def _follow(self, membership: Membership) -> None:
        were_leaving = self._link.membership.leaving_ingresses
        self._link.update(membership)
        if self._application in membership.leaving_ingresses:
            self._leaves.set()
        elif self._listener is not None and were_leaving and not membership.leaving_ingresses:
            steer_no_more(self._listener)

    async def _follow_membership(self) -> None:
        """Ask for the next change for ever. While there is no controller the fleet stays as it was last described."""
        version = -1
        while True:
            try:
                controller: Any = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
                answer: Membership = await controller.membership.remote(self._plan.model, version, self._report())
            except (RayError, ValueError) as error:  # it is being started again, under the same name
                log.warning("no fleet controller: %r", error)
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            if answer.version != version:
                version = answer.version
                self._follow(answer)
                self._is_informed.set()


def settle_heap() -> None:
    """Have later collections pass over all that was made so far, as vLLM's own server does (vllm/utils/gc_utils.py).

    A full collection else walks over every object of vLLM and torch: seconds on busy cores, in which no stream moves.
    """
    gc.collect()
    gc.freeze()


def reachable_address(listener: socket.socket, node_ip: str) -> str:
    """Where others reach a socket, as host:port; one that listens everywhere, by the address of its node."""
    host, port = listener.getsockname()[:2]
    host = node_ip if host in EVERYWHERE else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening_socket(host: str, port: int, *, is_shared: bool = True) -> socket.socket:
    """A socket whose port other ingresses may share, or not; port 0 is a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener
