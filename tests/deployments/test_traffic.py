from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_builders import NO_LIMITS, member
from routing_builders import arrival

from deployments.membership import Member
from deployments.routing import Limits, PredictedSpeed, Refusal
from deployments.traffic import BELIEVED_S, Place, Traffic, current_place

FAST = PredictedSpeed(prefill_tokens_per_s=40_000.0, decode_tokens_per_s=8_000.0, full_batch=32, lone_step_s=0.01)
SLOW = PredictedSpeed(prefill_tokens_per_s=10_000.0, decode_tokens_per_s=2_000.0, full_batch=32, lone_step_s=0.02)


def traffic(*members: Member, limits: Limits = NO_LIMITS) -> Traffic:
    known = Traffic("ingress", limits)
    for one in members:
        known.expect(one)
    return known


def send(
    known: Traffic, name: str, *replicas: str, prompt: range = range(1000), max_tokens: int = 200, salt: str = ""
) -> str | None:
    return known.send(arrival(name, len(prompt), max_tokens), prompt, salt, replicas, 0.0)


def refusal(known: Traffic, *replicas: str, now_s: float = 0.0, prompt_tokens: int = 1000) -> Refusal | None:
    """Why a request is not let in now; it is not sent either."""
    answer = known.admit(arrival(prompt_tokens=prompt_tokens), replicas, now_s)
    return answer if isinstance(answer, Refusal) else None


def spread(known: Traffic, *replicas: str, requests: int = 40) -> dict[str, int]:
    """How many of the next requests, without a common prefix, each replica gets."""
    taken = [send(known, f"s{index}", *replicas, prompt=range(index, index + 1000)) for index in range(requests)]
    return {name: taken.count(name) for name in replicas}


def test_without_a_replica_nothing_is_sent() -> None:
    assert send(traffic(member("a")), "r1") is None


def test_equal_replicas_get_equal_shares() -> None:
    assert spread(traffic(member("a"), member("b")), "a", "b") == {"a": 20, "b": 20}


def test_a_replica_gets_what_its_speed_is_worth() -> None:
    shares = spread(traffic(member("tp4", speed=FAST), member("tp1", speed=SLOW)), "tp4", "tp1", requests=100)
    assert 70 <= shares["tp4"] <= 90  # it is four times as fast


@pytest.mark.parametrize("end", ["ended", "computed"])
def test_what_has_been_done_is_no_load(end: str) -> None:
    known = traffic(member("a"), member("b"))
    assert send(known, "r1", "a", max_tokens=500) == "a"
    assert send(known, "r2", "b", max_tokens=400, prompt=range(5000, 5400)) == "b"
    if end == "ended":
        known.ended("a", "r1")
    else:
        known.computed("a", "r1", 499)
    assert send(known, "next", "a", "b", prompt=range(9000, 9100)) == "a"


def test_the_first_token_says_that_the_prompt_is_computed() -> None:
    known = traffic(member("a"), member("b"))
    send(known, "r1", "a", prompt=range(20_000), max_tokens=1)
    send(known, "r2", "b", prompt=range(50_000, 51_000), max_tokens=1)
    assert spread(known, "a", "b", requests=4)["a"] == 0
    known.computed("a", "r1", 1)
    assert spread(known, "a", "b", requests=4)["a"] > 0


def test_requests_with_a_common_prefix_go_where_it_is_cached() -> None:
    known = traffic(member("a", kv_tokens=100_000), member("b", kv_tokens=100_000))
    assert send(known, "r1", "b") == "b"
    for index in range(3):
        known.ended("b", f"r{1 + index}")
        assert send(known, f"r{2 + index}", "a", "b", max_tokens=10) == "b"
    others = {send(known, f"s{index}", "a", salt=f"{index}") for index in range(2)}
    assert others == {"a"}


def test_another_salt_shares_no_prefix() -> None:
    known = traffic(member("a", kv_tokens=100_000), member("b", kv_tokens=100_000))
    for name in ("r1", "r2", "r3"):
        send(known, name, "b", salt="tenant-1")  # b has the prefix, and work
    assert send(known, "r4", "a", "b", salt="tenant-2") == "a"


def test_a_replica_that_was_forgotten_has_no_prefix_and_no_load() -> None:
    known = traffic(member("a", kv_tokens=100_000), member("b", kv_tokens=100_000))
    send(known, "r1", "b")
    known.forget("b")
    assert known.speeds().keys() == {"a"}
    known.expect(member("b", kv_tokens=100_000))
    taken = {send(known, f"r{index}", "a", "b") for index in range(2, 4)}
    assert taken == {"a", "b"}


def test_what_other_ingresses_have_sent_counts() -> None:
    known = traffic(member("a", max_running=8), member("b", max_running=8))
    known.stepped("a", running=8, waiting=30, kv_usage=0.5, now_s=1.0)
    send(known, "mine", "a", max_tokens=500)
    assert spread(known, "a", "b", requests=2) == {"a": 0, "b": 2}
    known.stepped("a", running=1, waiting=0, kv_usage=0.0, now_s=2.0)
    known.ended("a", "mine")
    assert spread(known, "a", "b", requests=2)["a"] > 0


def test_requests_are_refused_by_what_the_scheduler_says_of_all_ingresses() -> None:
    known = traffic(member("a"), member("b"), limits=Limits(max_queued_requests=10))
    for name in ("a", "b"):
        assert refusal(known, "a", "b") is None
        known.stepped(name, running=64, waiting=10, kv_usage=0.5, now_s=1.0)
    refused = refusal(known, "a", "b")
    assert refused is not None
    assert (refused.status, refused.cause) == (429, "queue_full")
    known.stepped("b", running=64, waiting=9, kv_usage=0.5, now_s=2.0)
    assert refusal(known, "a", "b") is None


def test_what_was_sent_since_the_last_step_waits_too_once_the_batch_is_full() -> None:
    known = traffic(member("a", max_running=4), limits=Limits(max_queued_requests=10))
    for index in range(14):
        assert refusal(known, "a") is None
        send(known, f"r{index}", "a")
    assert refusal(known, "a") is not None
    known.ended("a", "r0")
    assert refusal(known, "a") is None


def let_in(known: Traffic, leaving: ExitStack, requests: int, priority: int = 0) -> list[Place]:
    """The places of those of so many requests that are let in, to one or the other of two replicas."""
    answers = []
    for _ in range(requests):
        answer = known.admit(arrival(priority=priority), ["a", "b"], 0.0)
        if isinstance(answer, Place):
            leaving.enter_context(answer.kept())
            answers.append(answer)
    return answers


def test_what_was_let_in_waits_too_before_it_is_sent() -> None:
    known = traffic(member("a", max_running=4), member("b", max_running=8), limits=Limits(max_queued_requests=10))
    with ExitStack() as leaving:
        places = let_in(known, leaving, 100, priority=1)
        assert len(places) == 4 + 5 + 8 + 5  # half of the queue is for batch requests
        places += let_in(known, leaving, 100)
        assert len(places) == 4 + 10 + 8 + 10
        places[0].give_up()
        places[0].give_up()  # of several prompts in one request each is sent
        assert len(let_in(known, leaving, 3)) == 1
    assert current_place.get() is None
    with ExitStack() as leaving:  # all have gone without being sent
        assert len(let_in(known, leaving, 100)) == 4 + 10 + 8 + 10


def test_what_was_let_in_and_then_sent_counts_once() -> None:
    known = traffic(member("a", max_running=4), member("b", max_running=4), limits=Limits(max_queued_requests=10))
    with ExitStack() as leaving:
        for index, place in enumerate(let_in(known, leaving, 20)):
            place.give_up()
            send(known, f"r{index}", "a", "b", prompt=range(index, index + 10))
        assert len(let_in(known, leaving, 20)) == 8


def test_a_place_on_a_replica_that_has_gone_is_given_up_in_peace() -> None:
    known = traffic(member("a", max_running=1), member("b", max_running=1), limits=Limits(max_queued_requests=1))
    with ExitStack() as leaving:
        assert len(let_in(known, leaving, 9)) == 4
        known.forget("a")
        known.expect(member("a", max_running=1))
    with ExitStack() as leaving:
        assert len(let_in(known, leaving, 9)) == 4


def test_no_prompt_is_taken_for_longer_than_the_model_reads() -> None:
    known = traffic(member("a", kv_tokens=10_000))
    known.stepped("a", running=4, waiting=0, kv_usage=0.5, now_s=1.0)
    assert refusal(known, "a", prompt_tokens=10**6) is not None
    known.max_model_len = 4096
    assert refusal(known, "a", prompt_tokens=10**6) is None


def test_a_full_cache_refuses_new_requests_but_not_those_that_were_let_in() -> None:
    known = traffic(member("a", kv_tokens=10_000))
    known.stepped("a", running=4, waiting=0, kv_usage=0.99, now_s=1.0)
    refused = refusal(known, "a")
    assert refused is not None
    assert refused.cause == "kv_full"
    assert send(known, "moved here", "a") == "a"


@pytest.mark.parametrize("load", [{"waiting": 300, "kv_usage": 0.5}, {"waiting": 0, "kv_usage": 0.99}], ids=str)
def test_a_load_that_nobody_tells_of_any_more_is_not_believed_for_ever(load: dict[str, float]) -> None:
    """A step comes only while the ingress has a request there: one that refuses them all would never hear better."""
    known = traffic(member("a", kv_tokens=10_000), limits=Limits(max_queued_requests=10))
    send(known, "aborted", "a")
    known.stepped("a", running=64, waiting=int(load["waiting"]), kv_usage=load["kv_usage"], now_s=1.0)
    long_after_s = 1.1 + BELIEVED_S
    assert refusal(known, "a", now_s=long_after_s) is not None  # a step that takes so long may still come
    known.ended("a", "aborted")
    assert refusal(known, "a", now_s=1.0 + BELIEVED_S) is not None
    assert refusal(known, "a", now_s=long_after_s) is None


def test_a_changed_member_counts_from_now_on() -> None:
    known = traffic(member("a", kv_tokens=10_000))
    known.stepped("a", running=4, waiting=0, kv_usage=0.99, now_s=1.0)
    assert refusal(known, "a") is not None
    known.expect(member("a", kv_tokens=10_000_000))
    assert refusal(known, "a") is None


def test_the_speed_follows_what_is_measured() -> None:
    known = traffic(member("a", speed=SLOW))
    assert known.speeds() == {"a": SLOW.decode_tokens_per_s}
    send(known, "r1", "a", max_tokens=500)
    for step in range(1, 200):
        known.computed("a", "r1", 1)
        known.stepped("a", running=1, waiting=0, kv_usage=0.0, now_s=step * SLOW.lone_step_s / 2)
    assert known.speeds()["a"] > 1.5 * SLOW.decode_tokens_per_s


def test_what_is_said_of_a_replica_that_has_gone_is_ignored() -> None:
    known = traffic(member("a"))
    known.forget("a")
    known.computed("a", "r1", 1)
    known.stepped("a", running=1, waiting=0, kv_usage=0.0, now_s=1.0)
    known.ended("a", "r1")
    assert known.speeds() == {}


@given(st.lists(st.tuples(st.sampled_from(["send", "compute", "end"]), st.integers(0, 5)), max_size=40))
def test_what_has_ended_leaves_nothing_behind(actions: list[tuple[str, int]]) -> None:
    known, fresh = (traffic(member("a"), member("b"), limits=Limits(max_queued_requests=1)) for _ in range(2))
    where: dict[str, str] = {}
    for number, (action, index) in enumerate(actions):
        if action == "send":
            where[f"r{number}"] = send(known, f"r{number}", "a", "b") or ""
        elif where:
            name = list(where)[index % len(where)]
            if action == "compute":
                known.computed(where[name], name, 7)
            else:
                known.ended(where.pop(name), name)
    for name, replica in where.items():
        known.ended(replica, name)
    assert refusal(known, "a", "b") is None
    assert spread(known, "a", "b", requests=9) == spread(fresh, "a", "b", requests=9)
