"""The HTTP side: vLLM's own OpenAI application over the fleet's replicas, in a process that listens itself.

Serve's proxy is left out of the way: it would copy every streamed piece from one process to another (18 % of the
throughput at 8 clients, measured). Serve starts the process, watches it and starts it again. Several ingresses listen
at the same port (SO_REUSEPORT), where the kernel spreads connections over them.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
from ray.exceptions import RayError
from ray.serve import get_replica_context

from deployments.access.listening import BACKLOG, guarded, serve
from deployments.access.ray_tls import dialling_context
from deployments.access.refusing import AsgiApp
from deployments.access.settings import Access
from deployments.access.steering import steer, steer_no_more
from deployments.gate import Gate, generates
from deployments.link import FleetLink
from deployments.membership import IngressReport, Membership
from deployments.metrics.ingress_series import IngressSeries
from deployments.metrics.key_series import KeySeries
from deployments.metrics.plain_text import plain_text
from deployments.routing import Limits
from deployments.serve_log import serve_log_kept
from deployments.telemetry.fields import TelemetryConfig
from deployments.telemetry.observing import Observed, watch
from deployments.traffic import Traffic
from deployments.wire import dialer

CONTROLLER = "fleet-controller"
NAMESPACE = "archipelago"
LOOK_AGAIN_S = 0.5
FIRST_MEMBERSHIP_S = 10.0
CONNECTED_POLL_S = 0.05
HANDSHAKES_S = 3.0  # a connection that was begun so long ago has been accepted: a round trip, and a packet sent again
EVERYWHERE = frozenset({"0.0.0.0", "::"})

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
        watched = Observed(gate, watch(plan.model, plan.telemetry, self._link.asked, name), generates)
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
