"""Numbers that an ingress keeps for Prometheus: each is as cheap as an addition. Pure."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import Literal

# At most half as much again from one to the next, and round, since what is promised in an SLO is round.
# fmt: off
BOUNDS_S = (
    0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075,
    0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5,
    10.0, 15.0, 20.0, 30.0, 40.0, 60.0,
)
# fmt: on


@dataclass(slots=True)
class Durations:
    """How many durations fell between which bounds; the last place is for those beyond all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each bound in seconds, and how many were not longer."""
        names = (*(f"{bound_s:g}" for bound_s in BOUNDS_S), "+Inf")
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


@dataclass(slots=True, kw_only=True)
class Served:
    """What one replica has done for this ingress since it is known here.

    Prompt tokens are those of first prefills: computed ones, and ones found in the prefix cache.
    """

    requests: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    ttft: Durations = field(default_factory=Durations)
    tpot: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class PromptTokens:
    """Counts the prompts of one HTTP request, which may be many to the engines, as its `usage` does.

    Several choices share one prompt, which is one list (vLLM copies the request). Beam search asks anew for each token
    of each beam, with all tokens before it as the prompt (vllm/entrypoints/generate/beam_search/online.py): those were
    counted as the prompt that it began with, and as generated ones.
    """

    _whole: dict[int, Sequence[int]] = field(default_factory=dict)  # kept, so that no other gets the id of one
    _hashes: set[int] = field(default_factory=set)
    _has_generated: bool = False
    _spare: int = 0  # generated tokens that no prompt has ended with yet

    def generated(self, tokens: int) -> None:
        """Tokens have come for one of the prompts."""
        self._has_generated = self._has_generated or tokens > 0
        self._spare += tokens

    def more(self, token_ids: Sequence[int]) -> int:
        """How many tokens of this prompt were not counted before."""
        if id(token_ids) in self._whole:
            return 0
        goes_on = self._has_generated and hash(tuple(token_ids[:-1])) in self._hashes
        self._hashes.add(hash(tuple(token_ids)))
        if goes_on:  # where a beam has split, one of its halves ends with a token that was not counted
            self._spare -= 1
            self._spare, uncounted = (self._spare, 0) if self._spare >= 0 else (0, 1)
            return uncounted
        self._whole[id(token_ids)] = token_ids
        return len(token_ids)


REFUSALS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)  # for want of room
LostBy = Literal["unmovable", "quarantined", "held-too-long"]
SloOutcome = Literal["met", "missed"]
# Answered to the end; refused for want of room; given up, or an error of ours; wrong; left by its client.
RequestOutcome = Literal["answered", "refused", "failed", "invalid", "abandoned"]


@dataclass(slots=True)
class KeyUse:
    """What was asked for with one API key: HTTP requests to generate, by how they ended, and their tokens.

    A prompt counts once, however many choices it has, as in the `usage` that its client is told.
    """

    requests: Counter[RequestOutcome] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Asked:
    """How many requests clients have made, and what became of some of them.

    `refused` is by HTTP status. `lost` are those that were let in and then given up, by why. `slo` are HTTP requests
    that have ended, by whether they kept the service level objective. `broken` is how often the connection to a
    replica broke, by its name. `by_key` is by the name of the API key, "" where none was asked for.
    """

    arrivals: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    lost: Counter[LostBy] = field(default_factory=Counter)
    slo: Counter[SloOutcome] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    by_key: defaultdict[str, KeyUse] = field(default_factory=lambda: defaultdict(KeyUse))
