"""A simulated engine in the place of `engine.ShardedEngine`: the same frames in and out, but no model runs.

For planning capacity and for testing fleets far larger than the machine at hand; never a stand-in for serving. Steps
take as long as the planner's cost model says, divided by `time_scale`; batching, queueing, the KV cache and preemption
are those of `simulation.scheduler`; tokens are invented, and the same for the same prompt and seed on every replica.

Honoured are max_tokens, min_tokens, ignore_eos, stop token ids, seed, priority, and the tokens a resumed request
brings along. What only a model can give is refused with FinishReason.ERROR, the reason in `stop_reason`: structured
output, logprobs, pooling, prompts that are not token ids. Sampling parameters such as temperature or penalties change
nothing, and prefixes are not cached.
"""

import asyncio
import itertools
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.config import SimulatedEngineConfig
from deployments.engine import packed
from deployments.peer import Frames
from deployments.resuming import CARRIED
from deployments.simulation.answers import Stops, answer_to
from deployments.simulation.pace import Pace
from deployments.simulation.planned import limits_of, step_prices, workers_of
from deployments.simulation.scheduler import Request, Scheduler, Step, Written
from deployments.telemetry.replica_spans import ReplicaSpans
from deployments.verification import Whereabouts
from placement import Layout, ModelSpec

WARN_EVERY_S = 10.0

log = logging.getLogger("ray.serve")


class _RefusedError(Exception):
    """What a request asks cannot be simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What bounds answers: `mean_tokens` is None for those that go on until they are cut."""

    vocabulary: int
    request_tokens: int
    mean_tokens: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Held:
    """A request that has not ended, and how it will; `events` go out with its next token."""

    owner: str
    prompt_tokens: int
    finish_reason: FinishReason
    stop_reason: int | str | None
    events: list[EngineCoreEvent] = field(default_factory=list)


class SimulatedEngine:
    """The interface of `ShardedEngine` over a scheduler that computes nothing but time."""

    def __init__(self, scheduler: Scheduler, answers: Answers, pace: Pace, workers: Sequence[Whereabouts]) -> None:
        self.spans: ReplicaSpans | None = None  # who traces requests, where somebody does
        self._limits = scheduler.limits
        self._scheduler = scheduler
        self._answers = answers
        self._pace = pace
        self._workers = tuple(workers)
        self._held: dict[str, _Held] = {}
        self._over: list[str] = []  # held requests that end without a step
        self._mail = asyncio.Event()
        self._step: Step | None = None  # under way
        self._writing: list[tuple[_Held, Written]] = []  # what it will give
        self._warned_s = -math.inf
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    @property
    def max_running(self) -> int:
        """Requests that a batch holds."""
        return self._limits.running_requests

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self._limits.kv_blocks * self._limits.block_tokens

    @property
    def unfinished_requests(self) -> int:
        """Requests that were submitted and have neither finished nor been aborted."""
        return len(self._held)

    @property
    def is_dead(self) -> bool:
        """Never: it has no processes that could die."""
        return False

    async def submit(self, owner: str, frames: Frames) -> None:
        """Queue one request. One that cannot be simulated ends with FinishReason.ERROR."""
        request: EngineCoreRequest = self._decoder.decode(frames)
        if self._step is None and not self._scheduler.has_work:
            self._pace.restart()
        self._mail.set()
        if self.spans is not None:
            self.spans.submitted(request.request_id, request.trace_headers)
        try:
            self._add(owner, request)
        except (_RefusedError, ValueError) as error:
            log.warning("simulated engine: request %s is refused: %s", request.request_id, error)
            self._held[request.request_id] = _Held(
                owner=owner, prompt_tokens=0, finish_reason=FinishReason.ERROR, stop_reason=str(error)
            )
            self._over.append(request.request_id)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Drop the requests; those that have finished are ignored."""
        for request_id in request_ids:
            self._held.pop(request_id, None)
            self._scheduler.drop(request_id)
        if self.spans is not None:
            self.spans.aborted(request_ids)

    async def abort_all_of(self, owner: str) -> None:
        """Drop every request of an owner that has gone."""
        await self.abort([request_id for request_id, held in self._held.items() if held.owner == owner])

    async def next_step(self) -> dict[str, Frames]:
        """Wait until the next step with work is over; return one message for each owner that has a request in it.

        When it is cancelled the step goes on, and the next call returns it.
        """
        while not self._over:
            if self._step is not None:
                await self._pace.end()
                return self._finish_step(self._step)
            if self._scheduler.has_work:
                self._begin_step()
            else:
                self._mail.clear()
                await self._mail.wait()
        over, self._over = self._over, []
        ends = [
            (self._held[request_id].owner, self._end(request_id)) for request_id in over if request_id in self._held
        ]
        return self._messages(ends, None)

    async def whereabouts(self) -> tuple[Whereabouts, ...]:
        """Where the workers would be, in rank order: all are this process, and take no memory."""
        return self._workers

    async def prepare(self) -> None:
        """Nothing to do: it has no shared memory, and takes up resumed requests by itself."""

    def stalled_s(self, now_s: float) -> float:
        """Never: it cannot hang."""
        return 0.0

    def _add(self, owner: str, request: EngineCoreRequest) -> None:
        prompt, sampling = _prompt_and_sampling(request)
        answer = answer_to(
            prompt,
            sampling.seed,
            _stops(sampling, self._answers.request_tokens - len(prompt)),
            vocabulary=self._answers.vocabulary,
            mean_tokens=self._answers.mean_tokens,
        )
        carried = len((sampling.extra_args or {}).get(CARRIED, ()))
        held = _Held(
            owner=owner,
            prompt_tokens=len(prompt),
            finish_reason=FinishReason.LENGTH if answer.end_token is None else FinishReason.STOP,
            # An EOS is no stop reason (vllm/v1/core/sched/utils.py, check_stop).
            stop_reason=None if answer.end_token == sampling.eos_token_id else answer.end_token,
        )
        if 0 < answer.tokens <= carried:
            self._over.append(request.request_id)
        else:
            self._scheduler.add(
                Request(
                    request_id=request.request_id,
                    prompt_tokens=len(prompt),
                    answer=answer,
                    priority=request.priority,
                    carried_tokens=carried,
                )
            )
            held.events.append(EngineCoreEvent(EngineCoreEventType.QUEUED, self._pace.now_s()))
        self._held[request.request_id] = held

    def _begin_step(self) -> None:
        step = self._step = self._scheduler.step()
        now_s = self._pace.now_s()
        for request_id in step.admitted:
            self._held[request_id].events.append(EngineCoreEvent(EngineCoreEventType.SCHEDULED, now_s))
        for request_id in step.preempted:
            self._held[request_id].events.append(EngineCoreEvent(EngineCoreEventType.PREEMPTED, now_s))
        # Whose token it is must be kept: until the step is over its request may be aborted and come back resumed.
        self._writing = [(self._held[written.request_id], written) for written in step.written]
        if not self._pace.begin(step.duration_s) and now_s - self._warned_s > WARN_EVERY_S:
            self._warned_s = now_s
            told = "simulated engine: this machine is too slow for %d running requests at time_scale %g"
            log.warning(told + "; what clients measure is slower than the model", step.running, self._pace.scale)

    def _finish_step(self, step: Step) -> dict[str, Frames]:
        self._step = None
        stats = SchedulerStats(
            num_running_reqs=step.running, num_waiting_reqs=step.waiting, kv_cache_usage=step.kv_usage
        )
        outputs = [
            (held.owner, self._output(held, written))
            for held, written in self._writing
            if self._held.get(written.request_id) is held
        ]
        return self._messages(outputs, stats)

    def _output(self, held: _Held, written: Written) -> EngineCoreOutput:
        request_id, token, is_first, is_last = written
        output = self._end(request_id, token) if is_last else EngineCoreOutput(request_id, [token])
        if held.events:
            output.events, held.events = held.events, []
        if is_first:
            output.prefill_stats = PrefillStats()
            output.prefill_stats.set(held.prompt_tokens, 0, 0)
        return output

    def _end(self, request_id: str, *token_ids: int) -> EngineCoreOutput:
        held = self._held.pop(request_id)
        return EngineCoreOutput(
            request_id, list(token_ids), finish_reason=held.finish_reason, stop_reason=held.stop_reason
        )

    def _messages(
        self, outputs: Iterable[tuple[str, EngineCoreOutput]], stats: SchedulerStats | None
    ) -> dict[str, Frames]:
        by_owner: dict[str, list[EngineCoreOutput]] = {}
        for owner, output in outputs:
            by_owner.setdefault(owner, []).append(output)
        now_s = self._pace.now_s()
        if self.spans is not None:
            self.spans.stepped(itertools.chain.from_iterable(by_owner.values()), now_s)
        return {
            owner: packed(self._encoder.encode(EngineCoreOutputs(outputs=mine, scheduler_stats=stats, timestamp=now_s)))
            for owner, mine in by_owner.items()
        }


def simulated_engine(
    model: ModelSpec,
    layout: Layout,
    settings: SimulatedEngineConfig,
    engine_args: Mapping[str, Any],
    *,
    bundle_nodes: Sequence[str],
    actor_id: str,
) -> SimulatedEngine:
    """The engine of one replica, as if `layout` were on GPUs of the kind that `settings` name.

    Args:
        model: whose steps are priced, and whose vocabulary the tokens are from.
        engine_args: those of vLLM; what bounds its scheduler and KV cache counts, the rest is ignored.
        bundle_nodes: Ray ids of the nodes that the bundles of the placement group are on, in rank order.
        actor_id: the Ray actor that this process is.

    Raises:
        ValueError: the KV cache does not hold one request of max_model_len tokens.
    """
    limits = limits_of(model, layout.shape, settings.gpu, engine_args)
    what = f"{model.name} as {layout.shape} on {settings.gpu}, divided by {settings.time_scale:g}"
    log.warning("this replica is SIMULATED: tokens are invented, steps take as long as predicted for %s", what)
    return SimulatedEngine(
        Scheduler(limits, step_prices(model, layout, settings.gpu, limits.request_tokens, engine_args)),
        Answers(
            vocabulary=model.vocab_size, request_tokens=limits.request_tokens, mean_tokens=settings.mean_answer_tokens
        ),
        Pace(scale=settings.time_scale, now_s=time.monotonic, sleep=asyncio.sleep),
        workers_of(layout, bundle_nodes, actor_id, pid=os.getpid()),
    )


def _prompt_and_sampling(request: EngineCoreRequest) -> tuple[list[int], SamplingParams]:
    prompt, sampling = request.prompt_token_ids, request.sampling_params
    if prompt is None or sampling is None:
        raise _RefusedError("only prompts of token ids can be simulated, and only generation")
    if sampling.structured_outputs is not None:
        raise _RefusedError("structured output cannot be simulated: it needs a model")
    if sampling.num_logprobs is not None or sampling.prompt_logprobs is not None:
        raise _RefusedError("logprobs cannot be simulated: they need a model")
    return prompt, sampling


def _stops(sampling: SamplingParams, room_tokens: int) -> Stops:
    """What ends the answer; `room_tokens` are left by the prompt."""
    eos = sampling.eos_token_id  # None with ignore_eos
    return Stops(
        most_tokens=room_tokens if sampling.max_tokens is None else min(sampling.max_tokens, room_tokens),
        least_tokens=sampling.min_tokens,
        end_token=next(iter(sampling.stop_token_ids or ()), None) if eos is None else eos,
        never=frozenset(sampling.all_stop_token_ids),
    )
