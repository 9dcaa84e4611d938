"""The HTTP side: vLLM's own OpenAI application in a Ray Serve deployment, over the fleet's replicas."""

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, cast

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.link import Batch, FleetLink, Frames

REPLICA_DEPLOYMENT = "replica"
RETRY_AFTER_S = 5
# These say something about the ingress itself, so they answer while no replica is ready.
ALWAYS_OPEN_PATHS = frozenset({"/metrics", "/version", "/ping"})

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class ServePort:
    """One replica over Ray Serve: its application is named like the replica."""

    def __init__(self, replica: str) -> None:
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(REPLICA_DEPLOYMENT, app_name=replica)

    async def stream(self, ingress: str) -> AsyncIterator[Frames]:
        """Follow the replica's steps; waits as long as Serve has not started it."""
        steps = cast("AsyncIterator[Frames]", self._handle.options(stream=True).steps.remote(ingress))
        async for frames in steps:
            yield frames

    async def submit(self, ingress: str, batch: Batch) -> None:
        """Deliver a batch."""
        await self._handle.submit.remote(ingress, batch)


class ReadinessGate:
    """ASGI middleware: 503 with Retry-After while no replica is ready, instead of a request that would hang or fail."""

    def __init__(self, app: AsgiApp, link: FleetLink) -> None:
        self._app = app
        self._link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http" or self._link.ready or scope["path"] in ALWAYS_OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        replicas = len(self._link.replicas)
        message = f"The model is not ready yet: 0 of {replicas} replicas are up. Try again in {RETRY_AFTER_S} s."
        body = json.dumps({"error": {"message": message, "type": "ServiceUnavailable", "param": None, "code": 503}})
        headers = [(b"content-type", b"application/json"), (b"retry-after", str(RETRY_AFTER_S).encode())]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})


class Ingress:
    """The Serve deployment class. Engine and frontend arguments are those of ``vllm serve``, by their Python names."""

    def __init__(
        self, model: str, engine_args: Mapping[str, Any], frontend_args: Mapping[str, Any], replicas: Sequence[str]
    ) -> None:
        self._serve_args = {"model": model, **engine_args, **frontend_args}
        self._link = FleetLink(f"ingress-{uuid.uuid4().hex[:8]}", {name: ServePort(name) for name in replicas})

    async def __serve_build_asgi_app__(self) -> ReadinessGate:
        """Called by Serve after the constructor, in the event loop that will serve."""
        # Here and not above: the command line imports this module, and vLLM takes seconds to import.
        from deployments.engine import openai_app

        app = await openai_app(self._serve_args, self._link)
        self._link.open()
        return ReadinessGate(app, self._link)
