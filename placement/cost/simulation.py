"""Requests one by one through replicas with continuous batching: tails of TTFT and TPOT, which a mean hides.

`step_table` once for a shape, then as many runs as there are rates to try: a run takes about ten microseconds for each
request. The caller makes arrivals and lengths from its own generator, so that a seed gives the same figures again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placement.clusters.terrain import Region
from placement.cost.prediction import Question, factors_for, work_in
from placement.cost.simulation_replica import Replica, Requests, StepTable
from placement.cost.step_table import table_of
from placement.cost.work import Array
from placement.models.memory import STEP_TOKENS
from placement.shape import Shape
from placement.workload import Lengths, Slo, WorkloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Seconds over requests; a percentile is the smallest value that so many do not exceed."""

    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """What clients see in one run of `requests` requests.

    TTFT is infinite for requests that never finish (`unfinished_share`: longer than the KV cache, or given up after
    600 s); TPOT is over finished answers of two tokens or more, 0 without any. `attainment` is the share of requests
    that meet the SLO, None without one. `requests_per_s` are answered, from the first arrival to the last answer.
    `overloaded`: more arrive than the replicas can answer, so that a longer run would show a longer wait.
    """

    ttft_s: Distribution
    tpot_s: Distribution
    attainment: float | None
    requests_per_s: float
    unfinished_share: float
    overloaded: bool
    requests: int


def at_percentile(times: Distribution, percentile: float) -> float:
    """Seconds at the kept percentile next above `percentile`."""
    for kept, value_s in ((0.5, times.p50_s), (0.9, times.p90_s), (0.95, times.p95_s)):
        if percentile <= kept:
            return value_s
    return times.p99_s


def step_table(question: Question, shape: Shape, region: Region) -> StepTable:
    """The table of `shape` in `region`, for the mean lengths of the question's workload."""
    return table_of(
        work_in(question, shape, region),
        factors_for(question, [region]),
        computed_share=question.workload.computed_tokens / question.workload.input_tokens.mean_tokens,
    )


def poisson_arrivals(requests_per_s: float, count: int, generator: np.random.Generator) -> Array:
    """Times of `count` independent arrivals at a mean rate, in seconds."""
    if not 0 < requests_per_s < math.inf:
        raise WorkloadError(f"requests_per_s is {requests_per_s:g}; it must be above 0 and finite.")
    times_s: Array = np.cumsum(generator.exponential(1 / requests_per_s, count))
    return times_s


def lengths(tokens: Lengths, count: int, generator: np.random.Generator) -> Array:
    """`count` lengths in whole tokens, 1 or more: lognormal with the mean and spread of `tokens`."""
    if not tokens.spread:
        return np.full(count, max(1.0, round(tokens.mean_tokens)))
    variance = math.log1p(tokens.spread**2)
    drawn = generator.lognormal(math.log(tokens.mean_tokens) - variance / 2, math.sqrt(variance), count)
    whole: Array = np.maximum(1.0, np.rint(drawn))
    return whole


def simulate(
    table: StepTable,
    arrivals_s: Array,
    input_tokens: Array,
    output_tokens: Array,
    *,
    room_tokens: float,
    max_running: int,
    slo: Slo | None,
    replicas: int = 1,
    settling: int = 0,
) -> Tails:
    """Requests that arrive at given times, in order, at `replicas` equal replicas: each goes to the least busy one.

    `room_tokens` of KV cache and `max_running` requests are of one data-parallel rank (`KvRoom.tokens`, vLLM's
    `max_num_seqs`). The run starts empty: the first `settling` requests are left out of the figures, but for the rate.
    Raises `WorkloadError` for arrays that do not belong together.
    """
    requests = _requests(input_tokens, output_tokens, settling)
    _check_arrivals(arrivals_s, len(requests.prompts), replicas)
    running = [
        _replica(table, requests, room_tokens=room_tokens, max_running=max_running, following=len(requests.prompts))
        for _ in range(replicas)
    ]
    for index, sent_s in enumerate(arrivals_s.tolist()):
        _least_busy(running, sent_s).send(sent_s, index)
    for replica in running:
        replica.run(math.inf)
    most_per_s = replicas * answerable_per_s(
        table,
        float(input_tokens.mean()),
        float(output_tokens.mean()),
        room_tokens=room_tokens,
        max_running=max_running,
    )
    window_s = float(arrivals_s[-1] - arrivals_s[0])
    return _tails(requests, slo, settling, overloaded=len(arrivals_s) - 1 > most_per_s * window_s)


def simulate_clients(
    table: StepTable,
    clients: int,
    input_tokens: Array,
    output_tokens: Array,
    *,
    room_tokens: float,
    max_running: int,
    slo: Slo | None,
    settling: int = 0,
) -> Tails:
    """A closed loop on one replica: all `clients` start at once, and send the next request after each answer.

    It ends when every request is answered. The other arguments are those of `simulate`; it is never overloaded.
    """
    if clients < 1:
        raise WorkloadError(f"clients is {clients}; it must be at least 1.")
    requests = _requests(input_tokens, output_tokens, settling)
    first = min(clients, len(requests.prompts))
    replica = _replica(table, requests, room_tokens=room_tokens, max_running=max_running, following=first)
    for index in range(first):
        replica.send(0.0, index)
    replica.run(math.inf)
    return _tails(requests, slo, settling, overloaded=False)


def answerable_per_s(
    table: StepTable, input_tokens: float, output_tokens: float, *, room_tokens: float, max_running: int
) -> float:
    """Requests of these mean lengths that a replica answers per second when its KV cache is full, whatever the wait.

    `room_tokens` and `max_running` are of one data-parallel rank.
    """
    running = table.ranks * max(1.0, min(max_running, room_tokens / (input_tokens + output_tokens / 2)))
    computed = input_tokens * table.computed_share
    decode_s = table.pass_s(running, 0)
    # A prompt longer than a step is read in chunks as long as a step.
    chunks = max(1.0, computed / STEP_TOKENS)
    prompt_s = (table.pass_s(running, computed / chunks) - decode_s) * chunks / table.stages
    return 1 / (output_tokens * decode_s / running + prompt_s + table.request_s)


def _least_busy(replicas: Sequence[Replica], now_s: float) -> Replica:
    """The one with the fewest unanswered requests, the first among equals."""
    if len(replicas) == 1:
        return replicas[0]
    for replica in replicas:
        replica.advance(now_s)
    return min(replicas, key=lambda replica: replica.outstanding)


def _replica(table: StepTable, requests: Requests, *, room_tokens: float, max_running: int, following: int) -> Replica:
    if not room_tokens > 0 or max_running < 1:
        raise WorkloadError(
            f"room_tokens is {room_tokens:g} and max_running {max_running}; room must be above 0, running at least 1."
        )
    return Replica(
        table=table,
        requests=requests,
        room_tokens=room_tokens,
        free_tokens=room_tokens * table.ranks,
        free_places=max_running * table.ranks,
        following=following,
    )


def _requests(input_tokens: Array, output_tokens: Array, settling: int) -> Requests:
    count = len(input_tokens)
    if count != len(output_tokens) or not 0 <= settling < count:
        raise WorkloadError(
            f"input_tokens has {count} requests, output_tokens {len(output_tokens)} and settling is {settling}; "
            "there must be as many inputs as outputs, at least one, and fewer settling."
        )
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if not (np.all(tokens >= 1) and np.all(np.isfinite(tokens))):
            raise WorkloadError(f"{name} has {tokens.min():g} to {tokens.max():g}; each must be at least 1 and finite.")
    return Requests(
        prompts=input_tokens.tolist(),
        answers=output_tokens.tolist(),
        sent_s=[math.inf] * count,
        first_s=[math.inf] * count,
        ended_s=[math.inf] * count,
    )


def _check_arrivals(arrivals_s: Array, count: int, replicas: int) -> None:
    if len(arrivals_s) != count or not np.all(np.diff(arrivals_s) >= 0) or not np.all(np.isfinite(arrivals_s)):
        raise WorkloadError(
            f"arrivals_s has {len(arrivals_s)} times for {count} requests; there must be one each, finite, in order."
        )
    if replicas < 1:
        raise WorkloadError(f"replicas is {replicas}; it must be at least 1.")


def _tails(requests: Requests, slo: Slo | None, settling: int, *, overloaded: bool) -> Tails:
    answers = list(zip(requests.sent_s, requests.first_s, requests.ended_s, requests.answers, strict=True))[settling:]
    ttft_s = [first_s - sent_s for sent_s, first_s, _, _ in answers]
    # Of the tokens after the first one.
    tpot_s = [
        (end_s - first_s) / (tokens - 1) if tokens > 1 and end_s < math.inf else 0.0
        for _, first_s, end_s, tokens in answers
    ]
    ends_s = [end_s for end_s in requests.ended_s if end_s < math.inf]
    return Tails(
        ttft_s=_distribution(ttft_s),
        tpot_s=_distribution([value_s for value_s in tpot_s if value_s]),
        attainment=None if slo is None else _attainment(ttft_s, tpot_s, slo),
        requests_per_s=len(ends_s) / (max(ends_s, default=math.inf) - requests.sent_s[0]),
        unfinished_share=ttft_s.count(math.inf) / len(ttft_s),
        overloaded=overloaded,
        requests=len(ttft_s),
    )


def _attainment(ttft_s: Sequence[float], tpot_s: Sequence[float], slo: Slo) -> float:
    most_ttft_s = math.inf if slo.ttft_s is None else slo.ttft_s
    most_tpot_s = math.inf if slo.tpot_s is None else slo.tpot_s
    met = sum(
        first_s <= most_ttft_s and each_s <= most_tpot_s and first_s < math.inf
        for first_s, each_s in zip(ttft_s, tpot_s, strict=True)
    )
    return met / len(ttft_s)


def _distribution(values_s: Sequence[float]) -> Distribution:
    if not values_s:
        return Distribution(mean_s=0.0, p50_s=0.0, p90_s=0.0, p95_s=0.0, p99_s=0.0)
    ordered = sorted(values_s)
    p50_s, p90_s, p95_s, p99_s = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.95, 0.99))
    return Distribution(mean_s=sum(ordered) / len(ordered), p50_s=p50_s, p90_s=p90_s, p95_s=p95_s, p99_s=p99_s)
