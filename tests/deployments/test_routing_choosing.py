import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from routing_builders import SimulatedReplica, arrival, arrivals, candidate, candidates, quick, serve

from deployments.routing import Arrival, Candidate, choose
from deployments.routing.choosing import DECODE_WEIGHT, TIE_SHARE


def chosen(request: Arrival, replicas: list[Candidate], cached: dict[str, int] | None = None, spread: str = "i") -> Any:
    choice = choose(request, replicas, cached or {}, spread)
    return choice and choice.replica


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param({"waiting_prefill_tokens": 2000}, {}, "b", id="fewer prompts before it"),
        pytest.param(
            {"waiting_prefill_tokens": 3000, "prefill_tokens_per_s": 40_000.0},
            {"waiting_prefill_tokens": 2000},
            "a",
            id="more prompts before it, computed sooner",
        ),
        pytest.param({"outstanding_decode_tokens": 5000}, {}, "b", id="less to decode"),
        pytest.param(
            {"outstanding_decode_tokens": 5000, "decode_tokens_per_s": 10_000.0},
            {"outstanding_decode_tokens": 4000},
            "a",
            id="more to decode, decoded sooner",
        ),
        pytest.param({"prefill_tokens_per_s": 20_000.0}, {}, "a", id="the faster of two idle ones"),
        pytest.param(
            {"running": 64, "outstanding_decode_tokens": 12_800},
            {"running": 65, "outstanding_decode_tokens": 12_800, "max_running": 128},
            "b",
            id="a place in the batch before a wait for one",
        ),
        pytest.param(
            {"running": 1, "kv_free_tokens": 1199}, {"waiting_prefill_tokens": 50_000}, "b", id="room before speed"
        ),
        pytest.param(
            {"running": 1, "kv_free_tokens": 1200}, {"waiting_prefill_tokens": 50_000}, "a", id="just enough room"
        ),
        pytest.param(
            {"kv_free_tokens": 3000, "waiting": 1, "waiting_prefill_tokens": 2000, "prefill_tokens_per_s": 1e6},
            {"waiting_prefill_tokens": 50_000},
            "b",
            id="no room behind those that wait",
        ),
        pytest.param(
            {"running": 1, "kv_free_tokens": 0}, {"waiting": 1, "kv_free_tokens": 0}, None, id="no room anywhere"
        ),
        pytest.param({"running": 1, "kv_free_tokens": 0}, {"kv_free_tokens": 0}, "b", id="no room, and none to come"),
    ],
)
def test_a_request_goes_to(a: dict[str, Any], b: dict[str, Any], expected: str | None) -> None:
    assert chosen(arrival(), [candidate("a", **a), candidate("b", **b)]) == expected


def test_nobody_to_choose_from() -> None:
    assert choose(arrival(), [], {}, "i") is None


def test_an_unbounded_answer_does_not_count_as_a_full_context() -> None:
    slow_decoder = candidate("a", decode_tokens_per_s=2000.0)
    queued = candidate("b", waiting_prefill_tokens=2000)
    assert chosen(arrival(max_tokens=100_000), [slow_decoder, queued]) == "a"


def test_the_choice_says_what_it_expects() -> None:
    busy = candidate("a", waiting_prefill_tokens=5000)
    choice = choose(arrival(prompt_tokens=4000), [busy], {"a": 3000}, "i")
    assert choice is not None
    assert choice.predicted_ttft_s == pytest.approx(0.5 + 0.1)
    assert choice.cached_tokens == 3000
    assert choice.reason == (
        "first token in 0.600 s, 0.500 s of it queued; 3000 of 4000 prompt tokens cached; "
        "1 of 1 replicas with room as good"
    )


def test_with_a_full_batch_the_first_token_waits_for_places() -> None:
    # 100 requests with 4 s of work between them: one of 64 places is free when 37 of them have finished.
    full = candidate("a", running=64, waiting=36, outstanding_decode_tokens=10_000, waiting_prefill_tokens=5000)
    choice = choose(arrival(prompt_tokens=1000), [full], {}, "i")
    assert choice is not None
    assert choice.predicted_ttft_s == pytest.approx(4 * 0.37 + 0.1)


def test_a_prompt_that_is_all_cached_still_computes_a_token() -> None:
    choice = choose(arrival(prompt_tokens=64), [candidate("a", prefill_tokens_per_s=10.0)], {"a": 64}, "i")
    assert choice is not None
    assert choice.predicted_ttft_s == pytest.approx(0.1)


@quick
@given(st.integers(0, 4000), st.integers(0, 8000), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_prefix_is_followed_as_long_as_it_saves_more_than_it_queues(cached: int, queued: int, speed: float) -> None:
    request = arrival(prompt_tokens=4000)
    margin_tokens = TIE_SHARE * (4000 + DECODE_WEIGHT * 200 * 10_000 / 2500)
    assume(abs(cached - queued) > margin_tokens + 1)
    speeds = {"prefill_tokens_per_s": 10_000.0 * speed, "decode_tokens_per_s": 2500.0 * speed}
    holder = candidate("holder", waiting_prefill_tokens=queued, **speeds)
    best = chosen(request, [holder, candidate("other", **speeds)], {"holder": cached})
    assert best == ("holder" if cached > queued else "other")


@quick
@given(arrivals, candidates())
def test_nothing_goes_where_the_cache_is_full(request: Arrival, replicas: list[Candidate]) -> None:
    choice = choose(request, replicas, {}, "i")
    known = {each.replica: each for each in replicas if each.kv_free_tokens is not None}
    if choice is None:
        assert len(known) == len(replicas)
    elif (best := known.get(choice.replica)) is not None and (best.running or best.waiting):
        assert best.kv_free_tokens is not None
        assert best.kv_free_tokens > request.prompt_tokens


LOADS = ("waiting_prefill_tokens", "outstanding_decode_tokens", "running", "waiting")


@quick
@given(arrivals, candidates(), st.data())
def test_more_load_never_attracts(request: Arrival, replicas: list[Candidate], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(replicas) - 1))
    more = {name: getattr(replicas[index], name) + data.draw(st.integers(0, 5_000)) for name in LOADS}
    cached = data.draw(st.dictionaries(st.sampled_from([each.replica for each in replicas]), st.integers(0, 60_000)))
    before = chosen(request, replicas, cached)
    loaded = [*replicas[:index], replace(replicas[index], **more), *replicas[index + 1 :]]
    after = chosen(request, loaded, cached)
    assert after == before or after != replicas[index].replica


@quick
@given(arrivals, candidates(), st.randoms())
def test_the_order_of_the_replicas_does_not_matter(
    request: Arrival, replicas: list[Candidate], order: random.Random
) -> None:
    before = chosen(request, replicas)
    order.shuffle(replicas)
    assert chosen(request, replicas) == before


@pytest.mark.parametrize("loads", [[0] * 3, [20_000, 20_040, 20_010]], ids=["idle", "about equally busy"])
def test_ingresses_with_the_same_view_spread_over_equals(loads: list[int]) -> None:
    replicas = [candidate(f"r{index}", waiting_prefill_tokens=load) for index, load in enumerate(loads)]
    # One request of each of 400 ingresses, and 400 requests of one.
    for counts in (
        Counter(chosen(arrival("same"), replicas, spread=f"ingress-{index}") for index in range(400)),
        Counter(chosen(arrival(f"request-{index}"), replicas, spread="ingress") for index in range(400)),
    ):
        assert all(100 < counts[each.replica] < 167 for each in replicas)


def poisson(requests_per_s: float, seed: int) -> Iterator[tuple[float, Arrival]]:
    source = random.Random(seed)
    for index in range(2000):
        request = arrival(f"request-{index}", source.randint(100, 2000), source.randint(20, 400))
        yield source.expovariate(requests_per_s), request


@pytest.mark.parametrize(
    ("utilisation", "least", "most"),
    [pytest.param(0.5, 4.0, 20.0, id="it is sooner done while it is often idle"), (0.95, 1.8, 2.6), (1.2, 1.8, 2.3)],
)
def test_a_replica_twice_as_fast_gets_about_twice_the_tokens(utilisation: float, least: float, most: float) -> None:
    for seed in range(3):
        slow, fast = SimulatedReplica("slow", 10_000, 2500), SimulatedReplica("fast", 20_000, 5000)
        slow_requests_per_s = 1 / (1050 / 10_000 + 210 / 2500)
        serve(poisson(3 * slow_requests_per_s * utilisation, seed), [slow, fast])
        assert least < fast.given_tokens / slow.given_tokens < most
