"""Clients that ask again and again while something happens to a fleet, and whether any of them noticed."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from moving_streams import Answer, bodies, stream

STREAMS = 56
TOKENS = 120
# What a simulated engine refuses: only a model can give it.
NEED_A_MODEL = {"logprobs", "structured_outputs"}


def requests(model: str) -> list[dict[str, Any]]:
    """One request for each client, of every kind that needs no model."""
    plain = [body for body in bodies(model, 2 * STREAMS, TOKENS) if not body.keys() & NEED_A_MODEL]
    return plain[:STREAMS]


def during(url: str, sent: Sequence[dict[str, Any]], what_happens: Callable[[], Any]) -> list[list[Answer]]:
    """Send each request again and again until ``what_happens`` (in a thread) is over; the answers to each.

    Whoever gets an error asks no more.
    """
    is_over = asyncio.Event()

    async def happen() -> None:
        try:
            await asyncio.to_thread(what_happens)
        finally:
            is_over.set()

    async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Answer]:
        answers = [await stream(client, body)]
        while not is_over.is_set() and not answers[-1].error:
            answers.append(await stream(client, body))
        return answers

    async def play() -> list[list[Answer]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
            asking = [asyncio.create_task(ask(client, body)) for body in sent]
            await happen()
            return list(await asyncio.gather(*asking))

    return asyncio.run(play())


def assert_unnoticed(found: Sequence[Sequence[Answer]], expected: Sequence[Answer]) -> None:
    """Every answer is that of an undisturbed run."""
    for index, (answers, undisturbed) in enumerate(zip(found, expected, strict=True)):
        assert undisturbed.error == ""
        for answer in answers:
            assert answer.said() == undisturbed.said(), f"client {index} noticed"
