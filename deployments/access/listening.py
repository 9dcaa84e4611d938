"""A server with the limits of `connections` and, where files are given for it, TLS."""

import asyncio
import functools
import logging
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn

from deployments.access.admission import Admission
from deployments.access.bounds import Bounds
from deployments.access.connections import Connections, GuardedProtocol
from deployments.access.keyring import Keyring
from deployments.access.keys import read_keys
from deployments.access.quotas import Quotas
from deployments.access.refusing import AsgiApp
from deployments.access.settings import Access, EdgeLimits, Tls
from deployments.access.tls import refresh, server_context

KEEP_ALIVE_S = 5  # as vLLM's own server (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)
BACKLOG = 2048
FILES_FOR_OTHERS = 512  # what a process has open beside its connections

log = logging.getLogger("ray.serve")


def guarded(app: AsgiApp, access: Access) -> tuple[AsgiApp, Admission | None]:
    """`app` for those who have a key, where keys are asked for, and within the limits; and who asks for the keys.

    Raises `KeyFileError`.
    """
    if access.keys is None:
        return Bounds(app, access.limits), None
    read_keys(Path(access.keys))  # nobody could get in
    admission = Admission(app, Keyring(Path(access.keys), now_s=time.monotonic), Quotas(time.monotonic))
    return Bounds(admission, access.limits), admission


async def serve(
    app: Any,
    listeners: list[socket.socket],
    limits: EdgeLimits,
    tls: Tls | None = None,
    closes: asyncio.Event | None = None,
) -> None:
    """Serve until cancelled; a certificate that is replaced is used for the connections that come after it.

    Once `closes` is set the listeners are closed, each connection has its next answer as its last one, and this returns
    when all have gone. Raises `TlsError` where there is no certificate to begin with.
    """
    context = None if tls is None else server_context(tls)
    connections = Connections(allowed_connections(limits.max_connections))
    config = uvicorn.Config(
        app,
        # Not `auto`, whose other choices have no such limits. WebSockets: vLLM has none for models that generate.
        http=functools.partial(GuardedProtocol, limits=limits, connections=connections),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    server = uvicorn.Server(config)

    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(_end(server, closes))] if closes is not None else []
        if context is not None and tls is not None:
            beside.append(group.create_task(refresh(context, tls)))
        await server.serve(sockets=listeners)
        for task in beside:
            task.cancel()


async def _end(server: uvicorn.Server, closes: asyncio.Event) -> None:
    await closes.wait()
    server.should_exit = True


def allowed_connections(wanted: int) -> int:
    """As many as are wanted and the process may have files open; its own limit is raised as far as it may be.

    At that limit `accept` fails, and asyncio would not try again for a second (asyncio/selector_events.py, EMFILE).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    needed = wanted + FILES_FOR_OTHERS
    if soft < needed:
        soft = min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    allowed = min(wanted, soft - min(FILES_FOR_OTHERS, soft // 2))
    if allowed < wanted:
        log.warning("only %d of %d connections: this process may have %d files open", allowed, wanted, soft)
    return allowed
