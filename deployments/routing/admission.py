"""Whether a request is taken at all: an overloaded fleet says so at once, with the time after which to come back. Pure.

vLLM itself refuses by the requests and the prompt tokens queued in front of one engine (vllm/config/scheduler.py,
``max_num_queued_reqs`` and ``max_num_queued_tokens``: "target_TTFT * prefill_throughput"), with 503 and without
Retry-After. Here the same two questions are asked of every replica, in requests and in seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Literal

from deployments.routing.choosing import (
    Arrival,
    Candidate,
    Choice,
    choose,
    draw,
    finished_in_s,
    has_room,
    needed_kv_tokens,
    own_prefill_s,
    queue_s,
)

Cause = Literal["no_replica", "kv_full", "queue_full", "too_slow"]

MAX_RETRY_S = 60
# Refused clients come back spread over half as long again, and over this at least, not all at one moment.
_JITTER_SHARE = 0.5
_LEAST_JITTER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a fleet is overloaded.

    Attributes:
        max_queued_requests: a replica takes no more while so many wait there.
        max_ttft_s: a replica takes no request that it would keep waiting longer for its first token.
        batch_share: batch requests are refused from this share of both, so that interactive ones find room.

    Raises:
        ValueError: a limit that nothing, or that batch before interactive, would meet.
    """

    max_queued_requests: int = 256
    max_ttft_s: float = 10.0
    batch_share: float = 0.5

    def __post_init__(self) -> None:
        if self.max_queued_requests < 1:
            raise ValueError(f"max_queued_requests must be at least 1, not {self.max_queued_requests}")
        if not self.max_ttft_s > 0:
            raise ValueError(f"max_ttft_s must be above 0, not {self.max_ttft_s}")
        if not 0 < self.batch_share <= 1:
            raise ValueError(f"batch_share must be above 0 and at most 1, not {self.batch_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An HTTP answer: ``status``, ``retry_after_s`` for its Retry-After header, ``reason`` for its reader."""

    status: HTTPStatus
    retry_after_s: int
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Obstacle:
    """Why one replica does not take the request, and in how many seconds it may."""

    cause: Cause
    clears_in_s: float
    reason: str


def admit(
    arrival: Arrival, candidates: Sequence[Candidate], cached_tokens: Mapping[str, int], limits: Limits, spread: str
) -> Choice | Refusal:
    """Choose a replica (see `choose`), passing over those beyond their limits; refuse where all are, and say why.

    Retry-After is when the first of them is predicted to be within its limits again. Without candidates the status is
    503, else 429.
    """
    if not candidates:
        nobody = _Obstacle(cause="no_replica", clears_in_s=0.0, reason="no replica is ready")
        return _refusal(arrival, HTTPStatus.SERVICE_UNAVAILABLE, nobody)
    choice = choose(arrival, candidates, cached_tokens, spread)
    if choice is not None:
        chosen = next(candidate for candidate in candidates if candidate.replica == choice.replica)
        if _obstacle(arrival, chosen, choice.cached_tokens, limits) is None:
            return choice
    obstacles = [
        _obstacle(arrival, candidate, cached_tokens.get(candidate.replica, 0), limits) for candidate in candidates
    ]
    within = [candidate for candidate, obstacle in zip(candidates, obstacles, strict=True) if obstacle is None]
    choice = choose(arrival, within, cached_tokens, spread)
    if choice is not None:
        return choice
    nearest = min((obstacle for obstacle in obstacles if obstacle is not None), key=lambda each: each.clears_in_s)
    reason = f"no replica has room ({len(candidates)} are ready): on the one that will have it first {nearest.reason}"
    return _refusal(arrival, HTTPStatus.TOO_MANY_REQUESTS, replace(nearest, reason=reason))


def _obstacle(arrival: Arrival, candidate: Candidate, cached: int, limits: Limits) -> _Obstacle | None:
    share, kind = (limits.batch_share, "batch") if arrival.priority > 0 else (1.0, "interactive")
    if not has_room(arrival, candidate):
        clears_in_s = finished_in_s(candidate, candidate.waiting + 1)
        reason = (
            f"the KV cache has room for {candidate.kv_free_tokens} tokens, requests that wait need "
            f"{candidate.waiting_prefill_tokens} of them, and this one {needed_kv_tokens(arrival)}"
        )
        return _Obstacle(cause="kv_full", clears_in_s=clears_in_s, reason=reason)
    queued_s = queue_s(candidate)
    most = max(1, int(limits.max_queued_requests * share))
    if candidate.waiting >= most:
        clears_in_s = queued_s * (candidate.waiting - most + 1) / candidate.waiting
        reason = f"{candidate.waiting} requests wait (limit for {kind} requests: {most})"
        return _Obstacle(cause="queue_full", clears_in_s=clears_in_s, reason=reason)
    own_s = own_prefill_s(arrival, candidate, cached)
    # A prompt that takes most of the limit by itself is not overload: it may queue for as long as it computes.
    patience_s = max(limits.max_ttft_s * share - own_s, own_s)
    if queued_s > patience_s:
        reason = (
            f"the first token would take {queued_s + own_s:.1f} s, {queued_s:.1f} s of it queued "
            f"(limit for {kind} requests: {limits.max_ttft_s * share:g} s)"
        )
        return _Obstacle(cause="too_slow", clears_in_s=queued_s - patience_s, reason=reason)
    return None


def _refusal(arrival: Arrival, status: HTTPStatus, nearest: _Obstacle) -> Refusal:
    # Before the jitter is added, so that it spreads the clients at the upper bound as well.
    clears_in_s = min(nearest.clears_in_s, MAX_RETRY_S / (1 + _JITTER_SHARE))
    jitter_s = draw(arrival.request_id) * max(_LEAST_JITTER_S, clears_in_s * _JITTER_SHARE)
    retry_after_s = max(1, math.ceil(clears_in_s + jitter_s))
    return Refusal(
        status=status,
        retry_after_s=retry_after_s,
        cause=nearest.cause,
        reason=f"{nearest.reason}; retry after {retry_after_s} s",
    )
