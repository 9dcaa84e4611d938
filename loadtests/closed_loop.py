"""A closed loop: each of a fixed number of clients sends its next request when its last answer has ended.

It finds what a server can do at a given concurrency. It cannot judge a server by its waiting times, since it sends less
the slower the answers are.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx

from loadtests.stream_client import Sample, stream_completion

# Ids that are ordinary tokens in any vocabulary of real use; special tokens often come first.
LOWEST_TOKEN_ID, HIGHEST_TOKEN_ID = 10, 999
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send: ``requests`` in all by ``concurrency`` clients, each of exactly these lengths.

    Equal seeds give equal prompts, whatever the server.
    """

    concurrency: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    seed: int

    def iter_prompts(self) -> Iterator[list[int]]:
        """Random token ids; no two prompts share a prefix that would be worth caching."""
        rng = random.Random(self.seed)
        for _ in range(self.requests):
            yield [rng.randint(LOWEST_TOKEN_ID, HIGHEST_TOKEN_ID) for _ in range(self.prompt_tokens)]


async def run_load(url: str, model: str, load: Load) -> list[Sample]:
    """Send all requests of a load to the endpoint at ``url`` (http://host:port); one sample for each."""
    limits = httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency)
    body = {"model": model, "max_tokens": load.output_tokens, "temperature": 0, "ignore_eos": True}
    prompts = iter(list(load.iter_prompts()))
    samples: list[Sample] = []

    async def work(client: httpx.AsyncClient, prompts: Iterable[list[int]]) -> None:
        for prompt in prompts:  # shared by all clients: the load stays at its concurrency until the last request
            samples.append(await stream_completion(client, f"{url}/v1/completions", {**body, "prompt": prompt}))

    # A proxy from the environment would stand between us and the server on this machine.
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, trust_env=False) as client:
        await asyncio.gather(*(work(client, prompts) for _ in range(load.concurrency)))
    return samples
