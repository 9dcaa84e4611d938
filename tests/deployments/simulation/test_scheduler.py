import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_builders import limits, one_second, request, run, scheduler, tokens_of, whole_answer

from deployments.simulation.scheduler import Batch, Limits, Request, Scheduler

REQUESTS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(1, 50), st.integers(-1, 1), st.floats(0, 0.99), st.integers(0, 60)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200)
@given(
    asked=REQUESTS,
    stages=st.integers(1, 4),
    running=st.integers(1, 8),
    budget=st.integers(1, 100),
    blocks=st.integers(32, 100),
)
def test_every_request_gets_its_whole_answer_within_all_limits(
    asked: list[tuple[int, int, int, float, int]], stages: int, running: int, budget: int, blocks: int
) -> None:
    bounds = limits(stages=stages, running_requests=running, step_tokens=budget, kv_blocks=blocks)
    replica = Scheduler(bounds, one_second)
    requests = [
        (request(str(index), prompt=prompt, tokens=tokens, priority=priority, carried=int(share * tokens)), at)
        for index, (prompt, tokens, priority, share, at) in enumerate(asked)
    ]
    given_tokens: dict[str, list[int]] = {}
    for number in range(100_000):
        for each, at in requests:
            if at == number:
                replica.add(each)
        if number > 60 and not replica.has_work:
            break
        if replica.has_work:
            step = replica.step()
            assert step.batch.decodes + step.batch.prompt_tokens <= budget
            assert step.running <= running
            assert 0 <= step.kv_usage <= 1
            for written in step.written:
                given_tokens.setdefault(written.request_id, []).append(written.token)
    assert not replica.has_work
    assert step.kv_usage == 0
    assert given_tokens == {each.request_id: whole_answer(each) for each, _ in requests}


@pytest.mark.parametrize("cut", range(5))
def test_a_resumed_request_goes_on_where_it_was_cut(cut: int) -> None:
    replica = scheduler()
    replica.add(request("a", carried=cut))
    steps = run(replica)
    assert tokens_of(steps)["a"] == whole_answer(request("a"))[cut:]
    assert steps[0].batch.prompt_tokens == 10 + cut  # what it brings along is read like the prompt


def test_a_long_prompt_is_read_in_chunks_while_others_write() -> None:
    replica = scheduler(step_tokens=50)
    replica.add(request("short", prompt=10, tokens=20))
    replica.step()
    replica.add(request("long", prompt=120, tokens=2))
    batches = [replica.step().batch for _ in range(4)]
    # One token of each budget goes to "short".
    assert [(batch.decodes, batch.prompt_tokens) for batch in batches] == [(1, 49), (1, 49), (1, 22), (2, 0)]
    assert [batch.prompt_reach for batch in batches] == [49 * 49, 49 * (49 + 98), 22 * (98 + 120), 0]
    assert [batch.admitted for batch in batches] == [1, 0, 0, 0]


def test_the_context_of_decodes_is_what_is_in_the_cache() -> None:
    replica = scheduler()
    replica.add(request("a", prompt=10))
    replica.add(request("b", prompt=20))
    assert [step.batch.decode_context for step in run(replica)] == [0, 30, 32, 34, 36]


def test_waiting_requests_are_let_in_by_priority_and_then_by_arrival() -> None:
    replica = scheduler(running_requests=1)
    for name, priority in (("first", 1), ("second", 1), ("urgent", 0), ("last", 2)):
        replica.add(request(name, priority=priority))
    admitted = [name for step in run(replica) for name in step.admitted]
    assert admitted == ["urgent", "first", "second", "last"]


def test_without_kv_blocks_requests_wait() -> None:
    replica = scheduler(kv_blocks=32)  # room for 256 tokens
    for name in "ab":
        replica.add(request(name, prompt=150, tokens=3))
    step = replica.step()
    while not step.written:
        step = replica.step()
    assert (step.running, step.waiting) == (1, 1)
    assert step.kv_usage == 19 / 32
    assert set(tokens_of(run(replica))) == {"a", "b"}


def test_when_the_cache_is_full_the_last_in_turn_is_put_back_and_computed_again() -> None:
    replica = scheduler(kv_blocks=32)
    replica.add(request("batch", prompt=100, tokens=60, priority=1))
    replica.add(request("urgent", prompt=100, tokens=60, priority=0))
    steps = run(replica)
    assert [name for step in steps for name in step.preempted] == ["batch"]
    assert [name for step in steps for name in step.admitted] == ["urgent", "batch", "batch"]
    assert tokens_of(steps) == {
        name: whole_answer(request(name, prompt=100, tokens=60)) for name in ("urgent", "batch")
    }
    last_of = {written.request_id: number for number, step in enumerate(steps) for written in step.written}
    assert last_of["urgent"] < last_of["batch"]


def test_nobody_is_let_in_by_a_step_that_puts_somebody_back() -> None:
    replica = scheduler(kv_blocks=32)
    for name in "ab":
        replica.add(request(name, prompt=100, tokens=60))
    while replica.step().running != 2:
        pass
    replica.add(request("urgent", prompt=80, priority=-1))  # finds no room before
    steps = run(replica)
    assert [step.preempted for step in steps if step.preempted] == [["b"]]
    assert not any(step.preempted and step.admitted for step in steps)


def test_a_dropped_request_leaves_its_place_at_once() -> None:
    replica = scheduler(running_requests=1, stages=2)
    replica.add(request("a"))
    replica.add(request("b"))
    replica.step()
    replica.drop("a")  # while it is in the pipeline
    replica.drop("a")
    replica.drop("never there")
    steps = run(replica)
    assert tokens_of(steps) == {"b": whole_answer(request("b"))}
    assert steps[-1].kv_usage == 0


def test_micro_batches_of_a_pipeline_share_the_requests_and_keep_it_full() -> None:
    replica = scheduler(stages=4)
    for name in "abcdefgh":
        replica.add(request(name, prompt=8, tokens=40))
    steps = run(replica)
    middle = steps[40:60]
    assert {step.batch.decodes for step in middle} == {2}
    # A request gets a token every four micro-batches.
    assert [sum(written.request_id == "a" for written in step.written) for step in middle].count(1) == 5


def test_a_lone_request_in_a_pipeline_waits_for_the_whole_pass() -> None:
    replica = Scheduler(limits(stages=4), lambda batch: 0.25)
    replica.add(request("a", tokens=3))
    assert sum(step.duration_s for step in run(replica)) == 3 * 4 * 0.25


@pytest.mark.parametrize(
    "refused", [request("a", prompt=250, tokens=7), request("a", carried=5), request("a", prompt=256, tokens=0)]
)
def test_what_can_never_run_is_refused(refused: Request) -> None:
    with pytest.raises(ValueError, match="give one that is not finished, of at most 256 tokens"):
        scheduler().add(refused)


def test_a_cache_too_small_for_one_request_is_refused() -> None:
    with pytest.raises(ValueError, match="room for 248 tokens, but a request may have 256; give a max_model_len of"):
        limits(kv_blocks=31)


def test_the_price_is_asked_for_the_batch() -> None:
    seen: list[Batch] = []

    def price(batch: Batch) -> float:
        seen.append(batch)
        return 0.5

    replica = Scheduler(
        Limits(running_requests=1, step_tokens=64, request_tokens=64, kv_blocks=8, block_tokens=8), price
    )
    replica.add(request("a", prompt=10, tokens=2))
    assert [step.duration_s for step in run(replica)] == [0.5, 0.5]
    assert seen == [Batch(prompt_tokens=10, prompt_reach=100, admitted=1), Batch(decodes=1, decode_context=10)]
