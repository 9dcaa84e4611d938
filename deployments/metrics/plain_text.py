"""Series under the names that they have: as plain text, whatever format a scraper would rather have."""

from deployments.access.refusing import AsgiApp, Receive, Scope, Send


def plain_text(app: AsgiApp) -> AsgiApp:
    """`app` as if no scraper asked for a format.

    Prometheus asks for OpenMetrics, in which prometheus_client 0.26 writes `vllm_...` for `vllm:...`
    (openmetrics/exposition.py:152): every query and dashboard that knows vLLM's names would find nothing.
    """

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
        await app({**scope, "headers": headers}, receive, send)

    return ask
