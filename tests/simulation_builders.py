"""Requests and schedulers of a simulated replica, for the tests of `deployments.simulation`."""

from typing import Any

from deployments.simulation.answers import Stops, answer_to
from deployments.simulation.scheduler import Batch, Limits, Request, Scheduler, Step

VOCABULARY = 1000
EOS = 2
LIMITS: dict[str, Any] = {
    "running_requests": 8,
    "step_tokens": 64,
    "request_tokens": 256,
    "kv_blocks": 64,
    "block_tokens": 8,
}


def one_second(batch: Batch) -> float:
    return 1.0


def limits(**changes: int) -> Limits:
    return Limits(**(LIMITS | changes))


def scheduler(**changes: int) -> Scheduler:
    """A replica whose steps all take a second."""
    return Scheduler(limits(**changes), one_second)


def request(name: str, *, prompt: int = 10, tokens: int = 5, priority: int = 0, carried: int = 0) -> Request:
    """A request whose prompt is as long as asked and made from its name."""
    stops = Stops(most_tokens=tokens, end_token=EOS, never=frozenset({EOS}))
    ids = [*name.encode(), *range(prompt)][:prompt]
    answer = answer_to(ids, 0, stops, vocabulary=VOCABULARY, mean_tokens=None)
    return Request(request_id=name, prompt_tokens=prompt, answer=answer, priority=priority, carried_tokens=carried)


def run(replica: Scheduler, most_steps: int = 10_000) -> list[Step]:
    """All steps until there is no work."""
    steps = []
    while replica.has_work:
        steps.append(replica.step())
        assert len(steps) < most_steps, "the scheduler makes no progress"
    return steps


def tokens_of(steps: list[Step]) -> dict[str, list[int]]:
    """What each request was given, in order."""
    given: dict[str, list[int]] = {}
    for step in steps:
        for written in step.written:
            given.setdefault(written.request_id, []).append(written.token)
    return given


def whole_answer(asked: Request) -> list[int]:
    return [asked.answer.token_at(position) for position in range(asked.carried_tokens, asked.answer.tokens)]
