"""From step times to what clients see: TTFT and TPOT of a replica that reads prompts and writes answers at once.

A fluid model of continuous batching with chunked prefill. With n requests running, each lets n - 1 others read their
prompt while it writes its own answer, so

    TPOT = step(n) + (n - 1) * P / output tokens         P = time that one prompt adds to the steps it shares
    TTFT = HTTP and host + read the prompt + wait for prompts ahead + wait for room in the KV cache

`n` is at most what the KV cache holds. The constants are fitted on closed loops of public benchmarks, whose clients
keep `n` up (`constants.json`); what a rate of arrivals comes to is for `option` and `simulation` to say.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from placement.cost.step import Step, last_stage_s, overhead_s, reading, step
from placement.cost.work import Array, Number, Work
from placement.models.memory import STEP_TOKENS

_BUSIEST = 0.97  # the queue formula has a pole at 1; beyond this the KV cache or the clients bind first
_MS = 1e-3
_US = 1e-6


class Demand(NamedTuple):
    """What is asked of each case: requests of so many tokens, and how many the KV cache holds at once."""

    input_tokens: Number
    output_tokens: Number
    room_requests: Number


class Served(NamedTuple):
    """Per case. `running` requests get tokens at once; `step` is one of their steps without any prompt."""

    ttft_s: Array
    tpot_s: Array
    running: Array
    requests_per_s: Array
    prompt_s: Array
    prompt_busy: Array
    queue_s: Array
    step: Step


def closed_loop(work: Work, factors: Mapping[str, Array], demand: Demand, clients: Array) -> Served:
    """`clients` clients that each send their next request as soon as the last one is answered.

    They all send their first at once, and a benchmark's mean TTFT has some of that burst in it: prompts that are read
    before, and requests that the front end takes in before.
    """
    running = np.minimum(clients, demand.room_requests)
    served = with_running(work, factors, demand, running, clients - running)
    before_s = served.prompt_s * factors["burst"] + factors["admission"] * _MS
    at_the_start_s = np.maximum(running - 1, 0) * before_s
    return served._replace(ttft_s=served.ttft_s + at_the_start_s, queue_s=served.queue_s + at_the_start_s)


def prompt_alone_s(work: Work, factors: Mapping[str, Array], demand: Demand) -> Array:
    """Reading one prompt on an idle replica, its chunks following each other through the pipeline.

    With data-parallel attention each rank reads a prompt of its own meanwhile: no rank reads part of another's.
    """
    chunks = np.ceil(demand.input_tokens / STEP_TOKENS)
    read = step(work, factors, work.dp, demand.input_tokens * work.dp)
    overhead = overhead_s(work, factors)
    # The last chunk may be short: behind the full ones it fills a stage only in part.
    filled = np.maximum(demand.input_tokens / STEP_TOKENS, 1.0)
    pipelined = (filled + work.pp - 1) / (filled * work.pp)
    busy_s = reading(read, factors).total_s + overhead * (chunks - factors["prefill"])
    return np.asarray(busy_s * pipelined)


def with_running(
    work: Work, factors: Mapping[str, Array], demand: Demand, running: Array, waiting: Array | float = 0.0
) -> Served:
    """The steady state of `running` requests; `waiting` more clients find no room in the KV cache."""
    batch = np.maximum(running / work.pp, 1.0)
    decode = step(work, factors, batch, np.zeros_like(batch))
    both = step(work, factors, batch, demand.input_tokens)
    # Each stage reads its share of the prompt; the others meanwhile work for other micro-batches.
    prompt_s = (reading(both, factors).total_s - reading(decode, factors).total_s) / work.pp
    others = np.maximum(running - 1, 0)
    uneven_s = (np.minimum(running, work.pp) - 1) * last_stage_s(work, factors, batch)
    tpot_s = decode.total_s + uneven_s + others * (prompt_s + factors["request"] * _US / work.dp) / demand.output_tokens
    alone_s = prompt_alone_s(work, factors, demand)
    cycle_s = demand.output_tokens * tpot_s + alone_s
    busy = np.minimum(running * prompt_s / cycle_s, _BUSIEST)
    behind_prompts_s = alone_s * factors["queue"] * busy**2 / (1 - busy * (1 - 1 / running))
    no_room_s = waiting / running * cycle_s
    # The step under way ends first; the first token leaves with a step that writes for the others as well.
    steps_s = factors["waited"] * tpot_s * (1 - 1 / running)
    host_s = factors["http"] * _MS + steps_s
    queue_s = behind_prompts_s + no_room_s
    return Served(
        ttft_s=host_s + alone_s + queue_s,
        tpot_s=tpot_s,
        running=running,
        requests_per_s=running / (cycle_s + host_s + behind_prompts_s),
        prompt_s=prompt_s,
        prompt_busy=busy,
        queue_s=queue_s,
        step=decode,
    )
