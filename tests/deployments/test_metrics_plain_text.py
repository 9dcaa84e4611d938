"""vLLM's series keep their names, in the endpoint's own /metrics and at the address that Prometheus is told."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from link_builders import Fleet
from prometheus_client import CollectorRegistry, Counter, make_asgi_app

from deployments.access.refusing import AsgiApp
from deployments.gate import Gate
from deployments.metrics.plain_text import plain_text

# What Prometheus 2.42 sends.
ACCEPT = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"


def scraped(made: Callable[[], AsgiApp]) -> str:
    async def get() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made()), base_url="http://ingress") as client:
            return (await client.get("/metrics", headers={"Accept": ACCEPT})).text

    return asyncio.run(get())


@pytest.fixture
def of_vllm() -> AsgiApp:
    registry = CollectorRegistry()
    Counter("vllm:prompt_tokens", "Prompt tokens.", registry=registry).inc(7)
    app: AsgiApp = make_asgi_app(registry)
    return app


def test_without_it_prometheus_would_find_other_names(of_vllm: AsgiApp) -> None:
    """When this fails, prometheus_client was mended and `plain_text` can go."""
    assert "vllm:prompt_tokens_total" not in scraped(lambda: of_vllm)


def test_a_scraper_finds_the_names_that_vllm_gives(of_vllm: AsgiApp) -> None:
    assert "vllm:prompt_tokens_total 7" in scraped(lambda: plain_text(of_vllm))


def test_the_endpoint_answers_with_them_too(of_vllm: AsgiApp) -> None:
    assert "vllm:prompt_tokens_total 7" in scraped(lambda: Gate(of_vllm, Fleet().link))
