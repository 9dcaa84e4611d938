"""What an ingress knows of the load on each replica, and whom it sends the next request to.

Every ingress counts what it has let in and what it has sent; what others have sent it sees in the statistics of the
replica's scheduler, which come with every engine step.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from deployments.membership import Member
from deployments.metrics.counting import Served
from deployments.routing import (
    Arrival,
    Candidate,
    Choice,
    Limits,
    PrefixIndex,
    Refusal,
    SpeedMeter,
    admit,
    answer_tokens,
    block_hashes,
    choose,
)

# Steps come only while this ingress has a request there, so after its last one ends (or is dropped) nothing says that
# the load of then has gone. It is believed for so long: else one full queue would be a reason to refuse for ever.
BELIEVED_S = 2.0


@dataclass(slots=True)
class _Load:
    """One replica. Tokens are by wire id, of the requests of this ingress."""

    member: Member
    meter: SpeedMeter
    prefill_tokens: dict[str, int] = field(default_factory=dict)
    decode_tokens: dict[str, int] = field(default_factory=dict)
    running: int = 0  # as the scheduler said last, over all ingresses
    waiting: int = 0
    kv_usage: float = 0.0
    expected: int = 0  # requests that were let in for it (see `Place`)
    heard_at_s: float = -math.inf
    step_prefilled_tokens: int = 0
    step_generated_tokens: int = 0
    served: Served = field(default_factory=Served)

    @property
    def unseen(self) -> int:
        """Requests that the scheduler did not count yet."""
        return max(0, len(self.decode_tokens) - self.running - self.waiting)

    def doubt(self, now_s: float) -> None:
        """Take what the scheduler said last for nothing, where it is old and no request of this ingress is there."""
        if not self.decode_tokens and now_s - self.heard_at_s > BELIEVED_S:
            self.running = self.waiting = 0
            self.kv_usage = 0.0

    @property
    def kv_free_tokens(self) -> int | None:
        tokens = self.member.kv_tokens
        return None if tokens is None else int(tokens * (1 - self.kv_usage))


class Place:
    """What a request holds from when it is let in until it is sent: a place in the queue of a replica with room.

    In between, its prompt is rendered; without it a burst would be let in whole, each finding the same queue.
    """

    def __init__(self, load: _Load | None = None) -> None:
        self._load = load

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Hold it until it is given up, or to the end of the block."""
        if self._load is not None:
            self._load.expected += 1
        token = current_place.set(self)
        try:
            yield
        finally:
            current_place.reset(token)
            self.give_up()

    def give_up(self) -> None:
        """The request is sent now. Only the first time counts: several choices or prompts are sent one by one."""
        load, self._load = self._load, None
        if load is not None:
            load.expected -= 1


current_place: ContextVar[Place | None] = ContextVar("current_place", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One replica for those who watch.

    What its scheduler says is 0 where this ingress has no request: it hears nothing then, and an ingress that has one
    there hears the truth.
    """

    member: Member
    running: int
    waiting: int
    kv_usage: float
    served: Served


class Traffic:
    """The load on all replicas of a model. Used from one event loop."""

    def __init__(self, ingress: str, limits: Limits) -> None:
        self.max_model_len = sys.maxsize  # until the model's configuration has been read
        self._ingress = ingress
        self._limits = limits
        self._loads: dict[str, _Load] = {}
        self._prefixes = PrefixIndex()

    def expect(self, member: Member) -> None:
        """Learn of a replica, or of a change to it."""
        load = self._loads.get(member.replica)
        if load is None:
            self._loads[member.replica] = _Load(member, SpeedMeter(member.speed))
        else:
            load.member = member

    def forget(self, replica: str) -> None:
        """Drop what is known of a replica that has gone, or begun anew."""
        self._loads.pop(replica, None)
        self._prefixes.forget(replica)

    def admit(self, arrival: Arrival, replicas: Iterable[str], now_s: float) -> Place | Refusal:
        """A place for a request like this, as far as it is known yet; a refusal where all are beyond their limits."""
        possible = replace(arrival, prompt_tokens=min(arrival.prompt_tokens, self.max_model_len))
        candidates = [_candidate(name, self._loads[name], now_s, self._loads[name].expected) for name in replicas]
        answer = admit(possible, candidates, {}, self._limits, self._ingress)
        return answer if isinstance(answer, Refusal) else Place(self._loads[answer.replica])

    def send(
        self, arrival: Arrival, prompt_token_ids: Sequence[int], salt: str, replicas: Iterable[str], now_s: float
    ) -> str | None:
        """Choose a replica and count the request there; None when there is none.

        A request that was let in is not refused here any more: where every KV cache is full it queues on the replica
        that is otherwise best.
        """
        candidates = [_candidate(name, self._loads[name], now_s) for name in replicas]
        hashes = block_hashes(prompt_token_ids, salt)
        cached = self._prefixes.cached_tokens(hashes)
        choice = choose(arrival, candidates, cached, self._ingress) or _regardless_of_kv(
            arrival, candidates, cached, self._ingress
        )
        if choice is None:
            return None
        load = self._loads[choice.replica]
        load.meter.wake(now_s)
        load.served.requests += 1
        load.prefill_tokens[arrival.request_id] = max(1, arrival.prompt_tokens - choice.cached_tokens)
        load.decode_tokens[arrival.request_id] = answer_tokens(arrival)
        if load.member.kv_tokens:
            self._prefixes.note(choice.replica, hashes, load.member.kv_tokens)
        return choice.replica

    def computed(self, replica: str, wire_id: str, tokens: int) -> None:
        """Count tokens that a step has brought for one request; the first ones say that its prompt is done."""
        load = self._loads.get(replica)
        if load is None:
            return
        load.step_prefilled_tokens += load.prefill_tokens.pop(wire_id, 0)
        load.step_generated_tokens += tokens
        if wire_id in load.decode_tokens:
            load.decode_tokens[wire_id] = max(1, load.decode_tokens[wire_id] - tokens)

    def stepped(self, replica: str, running: int, waiting: int, kv_usage: float, now_s: float) -> None:
        """Note the end of a step, after ``computed`` was told of all in it, and what the scheduler says."""
        load = self._loads.get(replica)
        if load is None:
            return
        load.running, load.waiting, load.kv_usage, load.heard_at_s = running, waiting, kv_usage, now_s
        load.served.generated_tokens += load.step_generated_tokens
        load.meter.observe(
            now_s,
            generated_tokens=load.step_generated_tokens,
            prefilled_tokens=load.step_prefilled_tokens,
            unfinished=len(load.decode_tokens),
        )
        load.step_generated_tokens = load.step_prefilled_tokens = 0

    def prefilled(self, replica: str, computed_tokens: int, cached_tokens: int) -> None:
        """Count the prompt tokens of requests that a replica has begun, as its scheduler tells them."""
        load = self._loads.get(replica)
        if load is not None:
            load.served.prompt_tokens += computed_tokens
            load.served.prefix_hit_tokens += cached_tokens

    def preempted(self, replica: str, requests: int) -> None:
        """Count requests that a replica has put back because its KV cache was full."""
        load = self._loads.get(replica)
        if load is not None:
            load.served.preemptions += requests

    def began_to_answer(self, replica: str, ttft_s: float) -> None:
        """A replica has made the first token of a request, so long after its arrival."""
        load = self._loads.get(replica)
        if load is not None:
            load.served.ttft.observe(ttft_s)

    def answered(self, replica: str, tpot_s: float) -> None:
        """A request has ended on a replica, which took so long for a token on average."""
        load = self._loads.get(replica)
        if load is not None:
            load.served.tpot.observe(tpot_s)

    def ended(self, replica: str, wire_id: str) -> None:
        """A request is no longer on the replica."""
        load = self._loads.get(replica)
        if load is not None:
            load.prefill_tokens.pop(wire_id, None)
            load.decode_tokens.pop(wire_id, None)

    def shape_of(self, replica: str) -> str:
        """How a replica is cut; empty for one that has gone."""
        load = self._loads.get(replica)
        return load.member.shape if load is not None else ""

    def speeds(self) -> dict[str, float]:
        """Tokens a second that each replica generates with a full batch, as far as is known."""
        return {name: load.meter.decode_tokens_per_s for name, load in self._loads.copy().items()}

    def loads(self) -> tuple[ReplicaLoad, ...]:
        """All replicas as they are now. May be called from any thread, as `speeds`."""
        return tuple(map(_seen, self._loads.copy().values()))

    def totals(self) -> tuple[int, int, float]:
        """Requests that run and wait on all replicas, and how full the fullest KV cache is; as in `loads`."""
        heard = [load for load in self._loads.values() if load.decode_tokens]
        fullest = max((load.kv_usage for load in heard), default=0.0)
        return sum(load.running for load in heard), sum(load.waiting for load in heard), fullest


def _seen(load: _Load) -> ReplicaLoad:
    is_heard = bool(load.decode_tokens)
    return ReplicaLoad(
        member=load.member,
        running=load.running if is_heard else 0,
        waiting=load.waiting if is_heard else 0,
        kv_usage=load.kv_usage if is_heard else 0.0,
        served=load.served,
    )


def _candidate(name: str, load: _Load, now_s: float, expected: int = 0) -> Candidate:
    """The replica as one to choose, with so many requests more than it has been sent."""
    load.doubt(now_s)
    # What the scheduler has not counted yet it will take at once where its batch has room.
    uncounted = load.unseen + expected
    taken = min(uncounted, max(0, load.member.max_running - load.running - load.waiting))
    return Candidate(
        replica=name,
        waiting_prefill_tokens=sum(load.prefill_tokens.values()),
        outstanding_decode_tokens=sum(load.decode_tokens.values()),
        running=load.running + taken,
        waiting=load.waiting + uncounted - taken,
        max_running=load.member.max_running,
        prefill_tokens_per_s=load.meter.prefill_tokens_per_s,
        decode_tokens_per_s=load.meter.decode_tokens_per_s,
        kv_free_tokens=load.kv_free_tokens,
    )


def _regardless_of_kv(
    arrival: Arrival, candidates: Sequence[Candidate], cached: dict[str, int], ingress: str
) -> Choice | None:
    return choose(arrival, [replace(one, kv_free_tokens=None) for one in candidates], cached, ingress)
