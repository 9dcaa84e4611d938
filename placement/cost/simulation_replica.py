"""One replica that reads prompts and writes answers, step by step: the engine of `simulation`.

The scheduler is that of vLLM V1 (vllm/v1/core/sched/scheduler.py): each step first gives every writing request its
next token, then fills its token budget with chunks of prompts, first come first served; a request is admitted while
the KV cache has room. Instead of preemption, a request holds its prompt and half of its answer from the start, which is
what it holds on average. Steps without prompt, arrival or end are alike and are jumped over at once, so that a run
costs time by request, not by token. How long a pass takes is looked up in a table made by the cost model:

    pass = step(decodes, 0) + prefill factor * (step(decodes, tokens) - step(decodes, 0))

With pp stages, pp micro-batches of 1/pp of the requests are in flight: a pass enters every 1/pp of its time, each
request gets a token every pp steps, and a first token leaves the last stage (pp - 1)/pp of a pass after its step.
Data-parallel ranks are taken to be evenly loaded: they share one queue, and have room and budget of all of them.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from placement.models.memory import STEP_TOKENS

PATIENCE_S = 600.0  # a client gives up without a first token: the default timeout of OpenAI's Python client


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """Seconds of one pass through all `stages`, over a grid of `decodes` and `prompt_tokens` in one micro-batch.

    Both count over all data-parallel `ranks`. `added_s[i][j]` is what `prompt_tokens[i]` add to a pass of `decodes[j]`,
    `prompt_only_s[i]` a pass without any decode. `http_s` and `request_s` are per request, the latter on the steps of
    others; `computed_share` is the share of a prompt that is computed instead of found in the prefix cache.
    """

    stages: int
    ranks: int
    decodes: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    decode_s: tuple[float, ...]
    added_s: tuple[tuple[float, ...], ...]
    prompt_only_s: tuple[float, ...]
    http_s: float
    request_s: float
    computed_share: float

    def pass_s(self, writing: float, tokens: float) -> float:
        """A pass while `writing` requests get tokens, spread over the micro-batches, that reads `tokens` of prompts."""
        if not writing:
            left, share = _position(self.prompt_tokens, tokens)
            return _between(self.prompt_only_s, left, share)
        at, part = _position(self.decodes, max(1.0, writing / self.stages))
        decode_s = _between(self.decode_s, at, part)
        if not tokens:
            return decode_s
        left, share = _position(self.prompt_tokens, tokens)
        low_s, high_s = (_between(self.added_s[row], at, part) for row in (left, left + 1))
        return decode_s + low_s + (high_s - low_s) * share


def slowed(table: StepTable, factor: float) -> StepTable:
    """The same with every pass `factor` times as long."""
    return replace(
        table,
        decode_s=tuple(value_s * factor for value_s in table.decode_s),
        added_s=tuple(tuple(value_s * factor for value_s in row) for row in table.added_s),
        prompt_only_s=tuple(value_s * factor for value_s in table.prompt_only_s),
    )


@dataclass(slots=True, kw_only=True)
class Requests:
    """Of each request: tokens in and out, and when it was sent, got its first token and ended (infinite: never)."""

    prompts: list[float]
    answers: list[float]
    sent_s: list[float]
    first_s: list[float]
    ended_s: list[float]


@dataclass(slots=True, kw_only=True)
class Replica:
    """The state of one replica. `step` counts micro-batches; a writing request ends at a step that is known.

    `room_tokens` are of one rank, as no request can use more, `free_tokens` and `free_places` of all. `following` is
    the request that a client of a closed loop sends next; without such clients it is the number of requests.
    `unread_tokens` are of prompts sent whose first token is not out. Before `due_s` nothing changes unless something
    is sent; after `advance` the decoding up to then is not carried out, and `now_s` is behind.
    """

    table: StepTable
    requests: Requests
    room_tokens: float
    free_tokens: float
    free_places: int
    following: int
    patience_s: float = PATIENCE_S
    now_s: float = 0.0
    due_s: float = 0.0
    step: int = 0
    started: int = 0  # requests admitted in this step
    outstanding: int = 0
    unread_tokens: float = 0.0
    coming: deque[tuple[float, int]] = field(default_factory=deque)
    waiting: deque[int] = field(default_factory=deque)
    reading: deque[tuple[float, int]] = field(default_factory=deque)  # prompt tokens left
    in_pipeline: deque[tuple[float, int]] = field(default_factory=deque)  # when the first token leaves it
    writing: list[tuple[float, int]] = field(default_factory=list)  # last step

    def send(self, time_s: float, index: int) -> None:
        """A request on its way; calls are in the order of time."""
        self.requests.sent_s[index] = time_s
        there_s = time_s + self.table.http_s
        self.coming.append((there_s, index))
        self.outstanding += 1
        self.unread_tokens += self.requests.prompts[index]
        self.due_s = min(self.due_s, there_s)

    def run(self, until_s: float) -> None:
        """Go on until `until_s`, or the end of the step that is then running, or as long as there is work."""
        self.advance(until_s)
        if self.writing and self.now_s < until_s:
            step_s = self.table.pass_s(len(self.writing), 0) / self.table.stages
            steps = math.ceil((until_s - self.now_s) / step_s)
            self.now_s += steps * step_s
            self.step += steps
            self._end_due()
            self.due_s = self.now_s

    def advance(self, until_s: float) -> None:
        """What others see of `run`, at less cost: decoding that ends nothing before `until_s` is left for later."""
        while self.now_s < until_s and self.due_s <= until_s:
            self._arrive()
            tokens, read = self._chunks()
            if tokens:
                self._read(tokens, read)
            elif self.writing:
                self._write(until_s)
            else:
                self.due_s = self._next_s()
                if self.due_s >= until_s:
                    return
                self.now_s = self.due_s

    def give_up(self, at_s: float) -> list[tuple[int, int]]:
        """All unfinished requests, each with the tokens that it was given so far. The replica is then done with."""
        self.run(at_s)
        writing = [
            (index, max(1, int(self.requests.answers[index] + (self.step - last) // self.table.stages)))
            for last, index in self.writing
        ]
        read = (*self.in_pipeline, *self.reading, *self.coming)
        return writing + [(index, 0) for index in (*(index for _, index in read), *self.waiting)]

    def _arrive(self) -> None:
        while self.coming and self.coming[0][0] <= self.now_s:
            self.waiting.append(self.coming.popleft()[1])
        while self.in_pipeline and self.in_pipeline[0][0] <= self.now_s:
            self._first_token(*self.in_pipeline.popleft())

    def _next_s(self) -> float:
        return min(self.coming[0][0], self._token_s()) if self.coming else self._token_s()

    def _token_s(self) -> float:
        return self.in_pipeline[0][0] if self.in_pipeline else math.inf

    def _chunks(self) -> tuple[float, list[int]]:
        """Prompt tokens of the next step, and the requests whose prompts end in it."""
        self.started = 0
        budget = STEP_TOKENS * self.table.ranks - math.ceil(len(self.writing) / self.table.stages)
        tokens, read, rest = 0.0, [], []
        while tokens < budget and (self.reading or self._admit()):
            left, index = self.reading.popleft()
            chunk = min(left, STEP_TOKENS, budget - tokens)
            tokens += chunk
            if chunk < left:
                rest.append((left - chunk, index))
            else:
                read.append(index)
        self.reading.extendleft(reversed(rest))
        return tokens, read

    def _admit(self) -> bool:
        """Move the first waiting request to those being read, if there is room."""
        requests = self.requests
        while self.waiting:
            index = self.waiting[0]
            prompt, answer = requests.prompts[index], requests.answers[index]
            if prompt + answer > self.room_tokens or self.now_s - requests.sent_s[index] > self.patience_s:
                self.waiting.popleft()
                self.unread_tokens -= prompt
                self._leave()
                continue
            held = prompt + answer / 2
            if held > self.free_tokens or not self.free_places:
                return False
            self.waiting.popleft()
            self.free_tokens -= held
            self.free_places -= 1
            self.started += 1
            self.reading.append((max(1.0, prompt * self.table.computed_share), index))
            return True
        return False

    def _read(self, tokens: float, read: Sequence[int]) -> None:
        """One step with prompts in it."""
        stages = self.table.stages
        pass_s = self.table.pass_s(len(self.writing), tokens)
        self.now_s += pass_s / stages + (self.started * self.table.request_s if self.writing else 0.0)
        self.step += 1
        self._end_due()
        if stages == 1:
            for index in read:
                self._first_token(self.now_s, index)
            return
        # Nobody overtakes in a pipeline.
        ahead_s = self.in_pipeline[-1][0] if self.in_pipeline else 0.0
        leaves_s = max(ahead_s, self.now_s + pass_s * (stages - 1) / stages)
        self.in_pipeline.extend((leaves_s, index) for index in read)

    def _write(self, until_s: float) -> None:
        """All steps until something other than decoding happens, unless that is after `until_s`."""
        step_s = self.table.pass_s(len(self.writing), 0) / self.table.stages
        steps = self.writing[0][0] - self.step
        # Behind a request that finds no room, arrivals change nothing.
        next_s = self._token_s() if self.waiting else self._next_s()
        if next_s < self.now_s + steps * step_s:
            steps = max(1, math.ceil((next_s - self.now_s) / step_s))
        self.due_s = self.now_s + steps * step_s
        if self.due_s > until_s:
            return
        self.now_s = self.due_s
        self.step += int(steps)
        self._end_due()

    def _first_token(self, time_s: float, index: int) -> None:
        self.requests.first_s[index] = time_s
        self.unread_tokens -= self.requests.prompts[index]
        more = self.requests.answers[index] - 1
        if more > 0:
            heappush(self.writing, (self.step + more * self.table.stages, index))
        else:
            self._end(time_s, index)

    def _end_due(self) -> None:
        while self.writing and self.writing[0][0] <= self.step:
            self._end(self.now_s, heappop(self.writing)[1])

    def _end(self, time_s: float, index: int) -> None:
        self.requests.ended_s[index] = time_s
        self.free_tokens += self.requests.prompts[index] + self.requests.answers[index] / 2
        self.free_places += 1
        self._leave()

    def _leave(self) -> None:
        self.outstanding -= 1
        if self.following < len(self.requests.prompts):
            self.following += 1
            self.send(self.now_s, self.following - 1)


def _position(grid: Sequence[float], at: float) -> tuple[int, float]:
    """The point left of `at`, and the share of the way to the next one; beyond the ends the line goes on straight."""
    left = min(max(bisect_right(grid, at) - 1, 0), len(grid) - 2)
    return left, (at - grid[left]) / (grid[left + 1] - grid[left])


def _between(values: Sequence[float], left: int, share: float) -> float:
    return values[left] + (values[left + 1] - values[left]) * share
