from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_builders import arrival, arrivals, candidate, candidates, quick

from deployments.routing import Arrival, Candidate, Choice, Limits, Refusal, admit, choose
from deployments.routing.admission import MAX_RETRY_S

LIMITS = Limits(max_queued_requests=100, max_ttft_s=4.0, batch_share=0.5)


def verdict(request: Arrival, *replicas: Candidate, limits: Limits = LIMITS) -> Choice | Refusal:
    return admit(request, replicas, {}, limits, "ingress")


def refused(request: Arrival, *replicas: Candidate) -> Refusal:
    answer = verdict(request, *replicas)
    assert isinstance(answer, Refusal)
    return answer


@pytest.mark.parametrize(
    ("load", "interactive", "batch"),
    [
        pytest.param({}, None, None, id="idle"),
        pytest.param({"waiting": 49}, None, None, id="just under the batch share of the queue"),
        pytest.param({"waiting": 50}, None, "queue_full", id="the batch share of the queue"),
        pytest.param({"waiting": 99}, None, "queue_full", id="just under the queue"),
        pytest.param({"waiting": 100}, "queue_full", "queue_full", id="the whole queue"),
        pytest.param({"waiting_prefill_tokens": 18_900}, None, None, id="the batch share of the time"),
        pytest.param({"waiting_prefill_tokens": 19_100}, None, "too_slow", id="a little more"),
        pytest.param({"waiting_prefill_tokens": 38_900}, None, "too_slow", id="the time"),
        pytest.param({"waiting_prefill_tokens": 39_100}, "too_slow", "too_slow", id="more than the time"),
        pytest.param({"running": 1, "kv_free_tokens": 1000}, "kv_full", "kv_full", id="no room"),
        pytest.param({"kv_free_tokens": 1000}, None, None, id="no room, and none to come: the engine says so"),
    ],
)
def test_batch_is_refused_before_interactive(load: dict[str, Any], interactive: str | None, batch: str | None) -> None:
    causes = [
        getattr(verdict(arrival(priority=priority), candidate("a", **load)), "cause", None) for priority in (0, -1, 1)
    ]
    assert causes == [interactive, interactive, batch]


def test_without_a_replica_it_is_unavailable() -> None:
    assert refused(arrival()) == Refusal(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        retry_after_s=2,
        cause="no_replica",
        reason="no replica is ready; retry after 2 s",
    )


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ({"waiting": 130}, "130 requests wait (limit for interactive requests: 100)"),
        (
            {"waiting_prefill_tokens": 110_000},
            "the first token would take 11.1 s, 11.0 s of it queued (limit for interactive requests: 4 s)",
        ),
        (
            {"running": 1, "waiting_prefill_tokens": 500, "kv_free_tokens": 1400},
            "the KV cache has room for 1400 tokens, requests that wait need 500 of them, and this one 1200",
        ),
    ],
)
def test_a_refusal_says_what_and_how_much(load: dict[str, Any], reason: str) -> None:
    far_worse = candidate("b", waiting=1000, waiting_prefill_tokens=10**7)
    refusal = refused(arrival(), candidate("a", **load), far_worse)
    assert refusal.status == HTTPStatus.TOO_MANY_REQUESTS
    assert refusal.reason == (
        f"no replica has room (2 are ready): on the one that will have it first {reason}; "
        f"retry after {refusal.retry_after_s} s"
    )


def test_a_replica_over_its_limits_is_passed_over() -> None:
    # "a" costs less: its queue is of short prompts.
    answer = verdict(arrival(), candidate("a", waiting=100), candidate("b", waiting_prefill_tokens=20_000))
    assert isinstance(answer, Choice)
    assert answer.replica == "b"


def test_a_prompt_longer_than_the_limit_is_not_overload() -> None:
    long = arrival(prompt_tokens=100_000)
    assert isinstance(verdict(long, candidate("a")), Choice)
    assert isinstance(verdict(long, candidate("a", waiting_prefill_tokens=90_000)), Choice)
    assert refused(long, candidate("a", waiting_prefill_tokens=110_000)).cause == "too_slow"


@pytest.mark.parametrize(
    ("load", "seconds"),
    [
        pytest.param({"waiting_prefill_tokens": 159_000}, range(13, 19), id="15.9 s queued, of which 3.9 s would do"),
        pytest.param(
            {"waiting": 200, "waiting_prefill_tokens": 200_000},
            range(11, 17),
            id="101 of 200 that take 20 s are too many",
        ),
        pytest.param(
            {"running": 10, "waiting": 1, "kv_free_tokens": 0, "outstanding_decode_tokens": 55_000},
            range(5, 7),
            id="two of eleven that take 22 s must finish",
        ),
    ],
)
def test_clients_are_told_to_come_back_when_there_is_room_and_not_all_at_once(
    load: dict[str, Any], seconds: range
) -> None:
    busy = candidate("a", **load)
    times = [refused(arrival(f"request-{index}"), busy).retry_after_s for index in range(300)]
    assert set(times) == set(seconds)
    assert refused(arrival("request-0"), busy).retry_after_s == times[0]


def test_the_time_to_come_back_is_of_the_replica_that_is_free_first() -> None:
    answer = refused(arrival(), *(candidate(f"r{wait}", waiting_prefill_tokens=wait * 10_000) for wait in (90, 6, 50)))
    assert 3 <= answer.retry_after_s <= 5


@quick
@given(arrivals, candidates(), st.integers(1, 200), st.floats(0.01, 100))
def test_a_refusal_is_bounded_and_hits_batch_first(
    request: Arrival, replicas: list[Candidate], most: int, most_s: float
) -> None:
    limits = Limits(max_queued_requests=most, max_ttft_s=most_s)
    interactive, batch = (admit(replace(request, priority=priority), replicas, {}, limits, "i") for priority in (0, 1))
    for answer in (interactive, batch):
        if isinstance(answer, Refusal):
            assert 1 <= answer.retry_after_s <= MAX_RETRY_S
    assert isinstance(interactive, Choice) or isinstance(batch, Refusal)


@quick
@given(arrivals, candidates())
def test_without_pressing_limits_it_is_the_router_s_choice(request: Arrival, replicas: list[Candidate]) -> None:
    limits = Limits(max_queued_requests=10**9, max_ttft_s=1e12)
    answer = admit(replace(request, priority=0), replicas, {}, limits, "i")
    expected = choose(request, replicas, {}, "i")
    assert answer == expected if expected else isinstance(answer, Refusal) and answer.cause == "kv_full"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_queued_requests", 0, "max_queued_requests must be at least 1, not 0"),
        ("max_ttft_s", 0.0, "max_ttft_s must be above 0, not 0.0"),
        ("max_ttft_s", float("nan"), "max_ttft_s must be above 0, not nan"),
        ("batch_share", 0.0, "batch_share must be above 0 and at most 1, not 0.0"),
        ("batch_share", 1.5, "batch_share must be above 0 and at most 1, not 1.5"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**{field: value})  # type: ignore[arg-type]
