"""Which replica gets a request: the one predicted to cost least, everything counted in seconds. Pure.

What others do, and what is taken from them:

* Dynamo's KV router adds prefill work (what the worker has been given, plus the prompt less its cached prefix) and
  decode work (blocks in use) and takes the least (docs/components/router/router-concepts.md). So does this, but in
  seconds of each replica's own speed: blocks are comparable only between replicas of one shape.
* llm-d's endpoint picker weighs cache against queue by fixed weights (3 to 2), and says that no fixed weights are
  right in every regime (llm-d.ai, architecture/advanced/latency-predictor). Its answer is a learnt predictor that needs
  replicas of one kind; here the predictor is queue over speed, which holds for mixed shapes.
* SGLang's cache-aware policy follows the prefix until loads differ by fixed thresholds (64 requests, 1.5 times), then
  forgets it. In seconds there is nothing to switch: the prefix is followed exactly as long as it saves more than it
  costs in queueing.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

# Answers are counted up to this length. A client that leaves max_tokens out gets the rest of the context as its bound;
# counted in full, one such request would weigh as much as a hundred others.
COUNTED_ANSWER_TOKENS = 512
# What a second of decode work counts against a second until the first token. Decodes share their steps, so a longer
# backlog delays a newcomer by a part of itself only. With prompts computed four times as fast as answers, as is common,
# a token to decode then counts as much as a token to prefill, as in Dynamo's default (prefill_load_scale = 1).
DECODE_WEIGHT = 0.25
# Costs this close, as a share of the work of the request itself, are equal for all an ingress knows: another one may
# have sent a request that it cannot see yet. What is shared out among equals is not piled upon one.
TIE_SHARE = 0.1

_64_BITS = 2**64 - 1
_ODD = 0x9E3779B97F4A7C15  # 2**64 / the golden ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request to be routed.

    ``prompt_tokens`` includes what it had generated elsewhere before. ``priority`` is vLLM's: lower is more urgent; up
    to 0 is interactive, above is batch.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that takes requests, its load (from all ingresses) and its speed.

    Attributes:
        waiting_prefill_tokens: prompt tokens still to be computed before a new arrival's.
        outstanding_decode_tokens: still to be generated for all its requests, each counted by ``answer_tokens``.
        running: requests in its batch.
        waiting: requests that are not in its batch yet.
        max_running: requests its batch can hold (vLLM's ``max_num_seqs``).
        prefill_tokens_per_s: prompt tokens the whole replica computes; above 0.
        decode_tokens_per_s: tokens the whole replica generates with a full batch; above 0. Not at its present batch: an
            almost idle replica generates little, and would look slow until it was loaded.
        kv_free_tokens: tokens for which its KV cache has room (vLLM counts cached blocks that nobody uses as free);
            None where that is unknown.
    """

    replica: str
    waiting_prefill_tokens: int
    outstanding_decode_tokens: int
    running: int
    waiting: int
    max_running: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    kv_free_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where a request goes, and why; ``cached_tokens`` of its prompt are held there, as far as is known."""

    replica: str
    predicted_ttft_s: float
    cached_tokens: int
    reason: str


def choose(
    arrival: Arrival, candidates: Sequence[Candidate], cached_tokens: Mapping[str, int], spread: str
) -> Choice | None:
    """Pick the replica with the least predicted seconds to the first token, plus those of its decode work, weighed.

    Args:
        arrival: the request.
        candidates: the replicas that may take it.
        cached_tokens: by replica, how much of the prompt it holds; absent means nothing.
        spread: who chooses. Ingresses that see the same loads take different ones among equals.

    Returns:
        None when there is no candidate whose KV cache has room.
    """
    able = [candidate for candidate in candidates if has_room(arrival, candidate)]
    if not able:
        return None
    answer = answer_tokens(arrival)
    costs = [
        predicted_ttft_s(arrival, candidate, cached_tokens.get(candidate.replica, 0))
        + DECODE_WEIGHT * (candidate.outstanding_decode_tokens + answer) / candidate.decode_tokens_per_s
        for candidate in able
    ]
    bound_s = min(costs) + TIE_SHARE * _shortest_work_s(arrival, candidates)
    equals = [candidate for candidate, cost_s in zip(able, costs, strict=True) if cost_s <= bound_s]
    best = equals[0] if len(equals) == 1 else _draw(equals, f"{spread}/{arrival.request_id}")
    cached = cached_tokens.get(best.replica, 0)
    ttft_s = predicted_ttft_s(arrival, best, cached)
    reason = (
        f"first token in {ttft_s:.3f} s, {queue_s(best):.3f} s of it queued; {cached} of {arrival.prompt_tokens} "
        f"prompt tokens cached; {len(equals)} of {len(able)} replicas with room as good"
    )
    return Choice(replica=best.replica, predicted_ttft_s=ttft_s, cached_tokens=cached, reason=reason)


def has_room(arrival: Arrival, candidate: Candidate) -> bool:
    """Whether the KV cache takes the request behind those that wait.

    A cached prefix counts in full: vLLM counts its blocks as free, and uses them up. An idle replica takes any: what
    does not fit there never will, and to say so is the engine's.
    """
    free = candidate.kv_free_tokens
    if free is None or not (candidate.running or candidate.waiting):
        return True
    return free >= candidate.waiting_prefill_tokens + needed_kv_tokens(arrival)


def needed_kv_tokens(arrival: Arrival) -> int:
    """KV cache that a request fills."""
    return arrival.prompt_tokens + answer_tokens(arrival)


def answer_tokens(arrival: Arrival) -> int:
    """Tokens a request is expected to generate at most; `Candidate.outstanding_decode_tokens` are counted by it."""
    return min(arrival.max_tokens, COUNTED_ANSWER_TOKENS)


def predicted_ttft_s(arrival: Arrival, candidate: Candidate, cached: int) -> float:
    """Seconds until the first token: the queue, then what of the prompt is not cached."""
    return queue_s(candidate) + own_prefill_s(arrival, candidate, cached)


def own_prefill_s(arrival: Arrival, candidate: Candidate, cached: int) -> float:
    """Seconds the replica computes on the prompt itself."""
    # At least the last token is computed, for its logits (vllm/v1/core/kv_cache_manager.py:289).
    return max(1, arrival.prompt_tokens - cached) / candidate.prefill_tokens_per_s


def queue_s(candidate: Candidate) -> float:
    """Seconds until a new arrival is computed: the prompts before it, or, in a full batch, the wait for a place.

    The two pass at the same time.
    """
    missing = candidate.running + candidate.waiting + 1 - candidate.max_running
    prompts_s = candidate.waiting_prefill_tokens / candidate.prefill_tokens_per_s
    return prompts_s if missing <= 0 else max(prompts_s, finished_in_s(candidate, missing))


def finished_in_s(candidate: Candidate, requests: int) -> float:
    """Seconds until so many of its requests have finished, if they finish evenly over the time it needs for all."""
    held = candidate.running + candidate.waiting
    drain_s = candidate.outstanding_decode_tokens / candidate.decode_tokens_per_s
    return drain_s * min(1.0, requests / held) if held else drain_s


def draw(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    return (_seed(key) >> 11) / 2**53  # as many bits as a float holds: never rounded up to 1


def _shortest_work_s(arrival: Arrival, candidates: Sequence[Candidate]) -> float:
    # At the highest speeds, whatever the loads: a margin that moved with them could let a replica win by getting more.
    prefill_s = arrival.prompt_tokens / max(candidate.prefill_tokens_per_s for candidate in candidates)
    return prefill_s + DECODE_WEIGHT * answer_tokens(arrival) / max(each.decode_tokens_per_s for each in candidates)


def _draw(candidates: Sequence[Candidate], key: str) -> Candidate:
    # Each replica draws a number of its own and the least wins, so that one more or less among equals moves only what
    # concerns it.
    seed = _seed(key)
    return min(candidates, key=lambda each: (_mixed(seed ^ zlib.crc32(each.replica.encode())), each.replica))


def _mixed(number: int) -> int:
    # Multiply and fold, twice (as splitmix64 ends): half the time of blake2b, and as even. Python's tuple hash is not.
    once = number * _ODD & _64_BITS
    twice = (once ^ once >> 32) * _ODD & _64_BITS
    return twice ^ twice >> 32


def _seed(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest())
