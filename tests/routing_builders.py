"""Requests, replicas and a small fleet in memory, for the tests of `deployments.routing`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from deployments.routing import Arrival, Candidate, answer_tokens, choose

quick = settings(max_examples=200, derandomize=True)
IDLE = Candidate(
    replica="idle",
    waiting_prefill_tokens=0,
    outstanding_decode_tokens=0,
    running=0,
    waiting=0,
    max_running=64,
    prefill_tokens_per_s=10_000.0,
    decode_tokens_per_s=2_500.0,
)


def candidate(replica: str, **changes: Any) -> Candidate:
    """An idle replica, changed."""
    return replace(IDLE, replica=replica, **changes)


def arrival(request_id: str = "r", prompt_tokens: int = 1000, max_tokens: int = 200, priority: int = 0) -> Arrival:
    return Arrival(request_id=request_id, prompt_tokens=prompt_tokens, max_tokens=max_tokens, priority=priority)


@st.composite
def candidates(draw: st.DrawFn, most: int = 5) -> list[Candidate]:
    """Replicas of different speeds and loads."""
    return [
        Candidate(
            replica=f"replica-{index}",
            waiting_prefill_tokens=draw(st.integers(0, 50_000)),
            outstanding_decode_tokens=draw(st.integers(0, 50_000)),
            running=draw(st.integers(0, 80)),
            waiting=draw(st.integers(0, 80)),
            max_running=draw(st.integers(1, 80)),
            prefill_tokens_per_s=draw(st.floats(100, 100_000)),
            decode_tokens_per_s=draw(st.floats(10, 20_000)),
            kv_free_tokens=draw(st.none() | st.integers(0, 200_000)),
        )
        for index in range(draw(st.integers(1, most)))
    ]


arrivals = st.builds(
    Arrival,
    request_id=st.text("abc123", min_size=1, max_size=4),
    prompt_tokens=st.integers(1, 60_000),
    max_tokens=st.integers(1, 5_000),
    priority=st.integers(-1, 2),
)


@dataclass
class SimulatedReplica:
    """Computes prompts one after the other, then answers, all at once, with what time is left."""

    name: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prompts: list[tuple[float, float]] = field(default_factory=list)  # prompt tokens left, answer tokens
    answers: list[float] = field(default_factory=list)  # tokens left
    given_tokens: int = 0

    def take(self, request: Arrival) -> None:
        self.prompts.append((request.prompt_tokens, answer_tokens(request)))
        self.given_tokens += request.prompt_tokens + answer_tokens(request)

    def run(self, seconds: float) -> None:
        while self.prompts and seconds > 0:
            left, answer = self.prompts.pop(0)
            done = min(left, seconds * self.prefill_tokens_per_s)
            seconds -= done / self.prefill_tokens_per_s
            if done < left:
                self.prompts.insert(0, (left - done, answer))
            else:
                self.answers.append(answer)
        each = seconds * self.decode_tokens_per_s / max(1, len(self.answers))
        self.answers = [left - each for left in self.answers if left > each]

    def candidate(self) -> Candidate:
        return candidate(
            self.name,
            waiting_prefill_tokens=int(sum(left for left, _ in self.prompts)),
            outstanding_decode_tokens=int(sum(self.answers) + sum(answer for _, answer in self.prompts)),
            running=len(self.answers),
            waiting=len(self.prompts),
            max_running=10_000,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            decode_tokens_per_s=self.decode_tokens_per_s,
        )


def serve(requests: Iterator[tuple[float, Arrival]], replicas: list[SimulatedReplica]) -> None:
    """Route requests, each with the seconds since the one before, as they come, whatever has finished."""
    by_name = {replica.name: replica for replica in replicas}
    for gap_s, request in requests:
        for replica in replicas:
            replica.run(gap_s)
        choice = choose(request, [replica.candidate() for replica in replicas], {}, "ingress")
        assert choice is not None
        by_name[choice.replica].take(request)
