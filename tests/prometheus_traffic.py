"""Traffic that tests of `autoscaling` with a real Prometheus know: scraped live, or written as if long past."""

import math
from collections.abc import Iterator

import numpy as np
from prometheus_builders import Sent

STEADY = 'acme/"steady"'  # a name may have what a PromQL string must not
REPLICAS = (("a", "tp2"), ("b", "tp2"), ("c", "tp4"))
END_S = 1_800_000_000.0  # of the written data; a whole number of steps of the history
PAST_S = 15 * 86_400.0
PAST_INTERVAL_S = 30.0


def steady_requests() -> tuple[Sent, ...]:
    """Ten requests: replica a has five, b three, c two; each pool has a slow one. Three waited for a place."""
    return tuple(
        Sent(
            replica="abacabacab"[place],
            shape={"a": "tp2", "b": "tp2", "c": "tp4"}["abacabacab"[place]],
            input_tokens=100 * (place + 1),
            output_tokens=10 * (place + 1),
            hit_tokens=25 * (place + 1),
            ttft_s=0.2 if place else 1.5,
            tpot_s=0.015 if place else 0.04,
            queue_s=0.9 if place < 3 else 0.0,
        )
        for place in range(10)
    )


def old_rate(at_s: float) -> float:
    """Requests a second: a wave a day."""
    return 2.0 + math.sin(2 * math.pi * at_s / 86_400)


def is_missing(at_s: float) -> bool:
    """An hour, two days before the end."""
    return END_S - 2 * 86_400 - 3600 < at_s <= END_S - 2 * 86_400


def old_samples() -> Iterator[str]:
    names = {
        'archipelago_arrivals_total{model="old"}': 1.0,
        'vllm:request_prompt_tokens_count{model_name="old"}': 0.9,
        'vllm:request_prompt_tokens_sum{model_name="old"}': 300.0,
        'vllm:request_generation_tokens_sum{model_name="old"}': 50.0,
    }
    times = [END_S - PAST_S + step * PAST_INTERVAL_S for step in range(int(PAST_S / PAST_INTERVAL_S) + 1)]
    for name, tokens in names.items():
        total = 0.0
        for at_s in times:
            total += old_rate(at_s) * PAST_INTERVAL_S
            if not is_missing(at_s):
                yield f"{name} {total * tokens:.1f} {at_s:.0f}"


def bursty_samples() -> Iterator[str]:
    """Scraped every 15 s for half an hour; arrivals drawn once, singly and by the dozen, with the same mean."""
    draws = np.random.default_rng(1)
    counts = {"bursty": 12 * draws.poisson(5, 140), "independent": draws.poisson(60, 140)}
    for model, arrived in counts.items():
        for step, total in enumerate(np.cumsum(arrived)):
            yield f'archipelago_arrivals_total{{model="{model}"}} {total} {END_S - 15 * (139 - step):.0f}'


def swinging_samples() -> Iterator[str]:
    """Scraped every 5 s for two minutes: a replica runs 2 and 10 requests by turns, all of one of two ingresses."""
    name = "archipelago_replica_running_requests"
    for step in range(25):
        at_s = END_S - 5 * (24 - step)
        yield f'{name}{{model="swinging",replica="a",shape="tp2",instance="one"}} {(2, 10)[step % 2]} {at_s:.0f}'
    for step in range(25):
        yield f'{name}{{model="swinging",replica="a",shape="tp2",instance="two"}} 0 {END_S - 5 * (24 - step):.0f}'
