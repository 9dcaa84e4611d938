"""Series under the names that they have: as plain text, whatever format a scraper would rather have."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

AsgiApp = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


def plain_text(app: AsgiApp) -> AsgiApp:
    """`app` as if no scraper asked for a format.

    Prometheus asks for OpenMetrics, in which prometheus_client 0.26 writes `vllm_...` for `vllm:...`
    (openmetrics/exposition.py:152): every query and dashboard that knows vLLM's names would find nothing.
    """

    async def ask(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
        await app({**scope, "headers": headers}, receive, send)

    return ask
