"""Continuous batching without a model: which requests share a step, how long it takes, and what comes out.

The scheduler is that of vLLM V1 (vllm/v1/core/sched/scheduler.py). A step first gives every running request its next
token or the next chunk of its prompt, then admits waiting ones, by priority and then by arrival, as long as the token
budget, the number of running requests and the KV cache allow. When a running request finds no KV block, the last in
that order gives up its blocks and computes them again later. A step of a pipeline is one micro-batch, which holds its
share of the running requests; what it writes comes out when it has left the last stage.

Left out: prefix caching, so every prompt is computed in full. Data-parallel ranks are one queue with the room of all.
There is no clock: `step` says how long it took, the caller waits.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from deployments.simulation.answers import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a whole replica: the most requests running, tokens of one step, tokens of one request, and KV blocks."""

    running_requests: int
    step_tokens: int
    request_tokens: int
    kv_blocks: int
    block_tokens: int
    stages: int = 1

    def __post_init__(self) -> None:
        room = self.kv_blocks * self.block_tokens
        if room < self.request_tokens:
            raise ValueError(
                f"the KV cache has room for {room} tokens, but a request may have {self.request_tokens}; give a "
                f"max_model_len of at most {room}, a larger shape or a larger GPU"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`carried_tokens` of the answer were written elsewhere: they are read like the prompt and not written again."""

    request_id: str
    prompt_tokens: int
    answer: Answer
    priority: int = 0
    carried_tokens: int = 0


class Batch(NamedTuple):
    """What a step computes, for its price.

    `decodes` requests have one token computed, with `decode_context` tokens before them in all. `prompt_tokens` are
    read in chunks; `prompt_reach` is the sum over chunks of their tokens times (start + end). `admitted` requests are
    in a step for the first time.
    """

    decodes: int = 0
    decode_context: int = 0
    prompt_tokens: int = 0
    prompt_reach: int = 0
    admitted: int = 0


Price = Callable[[Batch], float]  # seconds from this step to the next


class Written(NamedTuple):
    """A token that comes out of a step. `is_last` ends the request, `is_first` is its first one here."""

    request_id: str
    token: int
    is_first: bool
    is_last: bool


class Step(NamedTuple):
    """One step: its time at the speed of the model, what came out, who was let in or put back, and the state after."""

    duration_s: float
    batch: Batch
    written: list[Written]
    admitted: list[str]
    preempted: list[str]
    running: int
    waiting: int
    kv_usage: float


@dataclass(slots=True, eq=False)
class _Stream:
    request: Request
    arrival: int
    written: int
    computed: int = 0  # tokens in the KV cache, those of steps on their way included
    blocks: int = 0
    on_their_way: int = 0  # micro-batches that it is in
    is_dropped: bool = False

    @property
    def tokens(self) -> int:
        return self.request.prompt_tokens + self.written


def _turn(stream: _Stream) -> tuple[int, int]:
    return stream.request.priority, stream.arrival


@dataclass(slots=True)
class _MicroBatch:
    duration_s: float = 0.0
    readers: list[_Stream] = field(default_factory=list)  # a chunk that is not the last of its prompt
    writers: list[_Stream] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    decodes: int = 0
    decode_context: int = 0
    prompt_tokens: int = 0
    prompt_reach: int = 0

    def add(self, stream: _Stream, tokens: int, missing: int) -> None:
        """Put the next `tokens` of the `missing` ones of a request into the step."""
        if missing == 1:
            self.decodes += 1
            self.decode_context += stream.computed
        else:
            self.prompt_tokens += tokens
            self.prompt_reach += tokens * (2 * stream.computed + tokens)
        stream.computed += tokens
        stream.on_their_way += 1
        (self.writers if tokens == missing else self.readers).append(stream)

    @property
    def batch(self) -> Batch:
        return Batch(self.decodes, self.decode_context, self.prompt_tokens, self.prompt_reach, len(self.admitted))


class Scheduler:
    """The requests of one replica."""

    def __init__(self, limits: Limits, price: Price) -> None:
        self.limits = limits
        self._price = price
        self._streams: dict[str, _Stream] = {}
        self._waiting: list[_Stream] = []  # both lists are in the order of `_turn`
        self._running: list[_Stream] = []
        self._pipeline: deque[_MicroBatch] = deque()
        self._free_blocks = limits.kv_blocks
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        return bool(self._streams)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: nothing is left to write, or the request is longer than one may be.
        """
        most = request.prompt_tokens + request.answer.tokens
        if not request.carried_tokens < request.answer.tokens or most > self.limits.request_tokens:
            raise ValueError(
                f"request {request.request_id} has {request.prompt_tokens} prompt tokens and {request.carried_tokens} "
                f"of {request.answer.tokens} answer tokens; give one that is not finished, of at most "
                f"{self.limits.request_tokens} tokens"
            )
        stream = _Stream(request, self._arrivals, request.carried_tokens)
        self._arrivals += 1
        self._streams[request.request_id] = stream
        insort(self._waiting, stream, key=_turn)

    def drop(self, request_id: str) -> None:
        """Forget a request; one that has finished is ignored."""
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            (self._running if stream.blocks else self._waiting).remove(stream)
            self._release(stream)
            stream.is_dropped = True

    def step(self) -> Step:
        """Compute one step; there must be work."""
        entering = self._schedule()
        batch = entering.batch
        self._pipeline.append(entering)
        is_idle = not entering.readers and not entering.writers
        entering.duration_s = max(passing.duration_s for passing in self._pipeline) if is_idle else self._price(batch)
        leaving = self._pipeline.popleft() if len(self._pipeline) == self.limits.stages else _MicroBatch()
        return Step(
            duration_s=entering.duration_s,
            batch=batch,
            written=self._write(leaving),
            admitted=entering.admitted,
            preempted=entering.preempted,
            running=len(self._running),
            waiting=len(self._waiting),
            kv_usage=1 - self._free_blocks / self.limits.kv_blocks,
        )

    def _schedule(self) -> _MicroBatch:
        entering = _MicroBatch()
        budget = self._continue(entering, self.limits.step_tokens)
        if not entering.preempted:
            self._admit(entering, budget)
        return entering

    def _continue(self, entering: _MicroBatch, budget: int) -> int:
        """Give each running request its next token or chunk; returns what is left of the budget."""
        share = math.ceil(len(self._running) / self.limits.stages)
        for stream in list(self._running):
            if not budget or len(entering.writers) >= share:
                break
            missing = stream.request.prompt_tokens + stream.written - stream.computed
            if not missing or not stream.blocks:
                continue  # its next token depends on one in the pipeline, or it has just lost its blocks
            tokens = missing if missing < budget else budget
            if self._find_blocks(stream, stream.computed + tokens, entering):
                entering.add(stream, tokens, missing)
                budget -= tokens
        return budget

    def _find_blocks(self, stream: _Stream, tokens: int, entering: _MicroBatch) -> bool:
        """Have blocks for `tokens` tokens, taken from the last in turn where none is free."""
        wanted = -(-tokens // self.limits.block_tokens) - stream.blocks
        while wanted > self._free_blocks:
            victim = self._running[-1]
            if victim.on_their_way:  # its blocks are being written to: the next step tries again
                return False
            self._running.pop()
            self._release(victim)
            insort(self._waiting, victim, key=_turn)
            entering.preempted.append(victim.request.request_id)
            if victim is stream:
                return False
        stream.blocks += wanted
        self._free_blocks -= wanted
        return True

    def _admit(self, entering: _MicroBatch, budget: int) -> None:
        """Let waiting requests in. One needs room for all its tokens, as vLLM's scheduler_reserve_full_isl asks."""
        block_tokens = self.limits.block_tokens
        while self._waiting and budget and len(self._running) < self.limits.running_requests:
            stream = self._waiting[0]
            missing = stream.tokens
            if -(-missing // block_tokens) > self._free_blocks:
                return
            self._waiting.pop(0)
            insort(self._running, stream, key=_turn)
            tokens = min(missing, budget)
            self._find_blocks(stream, tokens, entering)
            entering.add(stream, tokens, missing)
            entering.admitted.append(stream.request.request_id)
            budget -= tokens

    def _release(self, stream: _Stream) -> None:
        self._free_blocks += stream.blocks
        stream.blocks = stream.computed = 0

    def _write(self, leaving: _MicroBatch) -> list[Written]:
        for stream in leaving.readers:
            stream.on_their_way -= 1
        written = []
        ended = False
        for stream in leaving.writers:
            if stream.is_dropped:
                continue
            stream.on_their_way -= 1
            request, position = stream.request, stream.written
            answer = request.answer
            stream.written = position + 1
            is_last = stream.written == answer.tokens
            is_first = position == request.carried_tokens
            written.append(Written(request.request_id, answer.token_at(position), is_first, is_last))
            if is_last:
                ended = True
                del self._streams[request.request_id]
                self._release(stream)
        if ended:
            self._running = [stream for stream in self._running if stream.blocks]
        return written
