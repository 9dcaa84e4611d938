"""What the cost of a step and the fluid model of serving must obey, whatever the constants are."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner_builders import DEEPSEEK_V3, LLAMA_70B, model, region, requests

from placement.cost.constants import shipped
from placement.cost.prediction import Question, factors_for, work_in
from placement.cost.serving import Demand, Served, closed_loop, prompt_alone_s, with_running
from placement.cost.step import Step, experts_touched, reading, step
from placement.cost.work import Array, Work, message_s, stack
from placement.shape import Shape

SHAPES = {LLAMA_70B: ("tp4", "tp8", "tp4pp2", "tp16"), DEEPSEEK_V3: ("tp8", "tp8ep8", "ep8dp8", "tp8ep16dp2")}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]
ROOM = 256.0


@cache
def case(name: str, shape: str) -> tuple[Work, dict[str, Array]]:
    """Work and constants of one shape, as arrays with one entry."""
    where = region("8x dgx-h200")
    question = Question(model=model(name), workload=requests(), constants=shipped())
    return stack([work_in(question, Shape.parse(shape), where)]), factors_for(question, [where])


def one_step(name: str, shape: str, decodes: float, prefill_tokens: float = 0) -> Step:
    work, factors = case(name, shape)
    return step(work, factors, np.array([decodes]), np.array([prefill_tokens]))


def demand(tokens_in: float = 1024, tokens_out: float = 256, room: float = ROOM) -> Demand:
    return Demand(np.array([tokens_in]), np.array([tokens_out]), np.array([room]))


def clients(name: str, shape: str, count: float, **changed: float) -> Served:
    return closed_loop(*case(name, shape), demand(**changed), np.array([count]))


def capacity(name: str, shape: str) -> float:
    return float(clients(name, shape, ROOM).requests_per_s[0])


cases = st.sampled_from(CASES)
decodes = st.floats(1, 1024)


# --- one step --------------------------------------------------------------------------------------------------------


@given(of=cases, count=decodes, tokens=st.floats(0, 16384))
def test_parts_are_not_negative_and_sum_to_the_step(of: tuple[str, str], count: float, tokens: float) -> None:
    found = one_step(*of, count, tokens)
    parts = {name: float(value[0]) for name, value in found._asdict().items()}
    assert min(parts.values()) >= 0
    assert float(found.total_s[0]) == pytest.approx(sum(parts.values()))
    assert float(found.communication_s[0]) == pytest.approx(
        parts["all_reduce_s"] + parts["exchange_s"] + parts["send_s"]
    )


@given(of=cases, count=decodes, more=st.floats(1.01, 8), tokens=st.floats(0, 8192))
def test_more_requests_or_prompt_tokens_never_shorten_a_step(
    of: tuple[str, str], count: float, more: float, tokens: float
) -> None:
    base = one_step(*of, count, tokens).total_s
    assert one_step(*of, count * more, tokens).total_s >= base
    assert one_step(*of, count, tokens + 100 * more).total_s > base


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, 64, 512])
def test_tensor_parallelism_in_an_island_divides_matrices_and_kv_reads(name: str, count: int) -> None:
    steps = [one_step(name, f"tp{tp}", count) for tp in (2, 4, 8)]
    for wide, wider in pairwise(steps):
        assert wider.matrices_s < wide.matrices_s
        assert wider.kv_reads_s <= wide.kv_reads_s
        assert wider.all_reduce_s > 0
    assert one_step(name, "tp1", count).all_reduce_s == 0


def test_kv_heads_stop_dividing_and_latent_caches_never_do() -> None:
    reads = {tp: float(one_step(LLAMA_70B, f"tp{tp}", 64).kv_reads_s[0]) for tp in (4, 8, 16)}
    assert reads[8] < 0.6 * reads[4]
    assert reads[16] > 0.9 * reads[8]  # 8 key-value heads: the ninth GPU holds a copy
    latent = {tp: case(DEEPSEEK_V3, f"tp{tp}")[0].kv_read_bytes for tp in (1, 8)}
    assert latent[1] == latent[8]


def test_the_network_costs_more_than_the_island() -> None:
    inside, across = (one_step(LLAMA_70B, shape, 64).all_reduce_s for shape in ("tp8", "tp16"))
    assert across > 2 * inside


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_reading_prompts_slows_kernels_and_not_messages(name: str, shape: str) -> None:
    _, factors = case(name, shape)
    slow = {**factors, "prefill": np.array([3.0])}
    alone, read = one_step(name, shape, 16, 2048), reading(one_step(name, shape, 16, 2048), slow)
    assert read.communication_s == alone.communication_s
    assert read.total_s - read.communication_s == pytest.approx(3 * (alone.total_s - alone.communication_s))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_first_token_waits_for_the_steps_of_others(name: str, shape: str) -> None:
    """A client alone waits for nobody; among many, longer steps make it wait as many of them as the constant says."""
    work, factors = case(name, shape)
    more = {**factors, "waited": factors["waited"] + 1}
    for count, waits in ((1.0, 0.0), (64.0, 63 / 64)):
        found, later = (closed_loop(work, each, demand(), np.array([count])) for each in (factors, more))
        assert later.ttft_s - found.ttft_s == pytest.approx(waits * found.tpot_s)


def test_only_data_parallel_attention_exchanges_and_only_stages_send() -> None:
    parts = {shape: one_step(name, shape, 64) for name, shape in CASES}
    assert parts["tp8ep16dp2"].exchange_s > parts["ep8dp8"].exchange_s > 0
    assert parts["tp8ep8"].exchange_s == parts["tp8"].exchange_s == 0
    assert parts["tp4pp2"].send_s > 0
    assert parts["tp4"].send_s == 0


@given(experts=st.sampled_from([8, 64, 128, 256, 384]), chosen=st.sampled_from([1, 2, 6, 8]), tokens=st.floats(1, 1e5))
def test_experts_touched_grow_to_all_of_them(experts: int, chosen: int, tokens: float) -> None:
    def touched(count: float) -> float:
        return float(experts_touched(np.array([experts]), np.array([chosen]), np.array([count]))[0])

    assert touched(1) == pytest.approx(chosen)
    assert touched(tokens) <= min(experts, chosen * tokens) * (1 + 1e-9)
    assert touched(tokens) <= touched(tokens + 1)
    assert touched(1e6) == pytest.approx(experts)


@given(exponent=st.floats(10, 30), more=st.floats(0, 3))
def test_longer_messages_take_longer_and_tiny_ones_what_one_kib_takes(exponent: float, more: float) -> None:
    table = case(LLAMA_70B, "tp16")[0].all_reduce_s
    short, long = (message_s(table, np.array([2.0**size])) for size in (exponent, exponent + more))
    assert short <= long * (1 + 1e-9)
    assert message_s(table, np.array([10.0])) == message_s(table, np.array([1024.0]))


def test_a_message_between_two_measured_sizes_is_between_their_times() -> None:
    table = case(LLAMA_70B, "tp8")[0].all_reduce_s
    low, middle, high = (float(message_s(table, np.array([size]))[0]) for size in (2.0**20, 2**20.5, 2.0**21))
    assert middle == pytest.approx((low * high) ** 0.5)


def test_many_cases_at_once_are_what_each_is_alone() -> None:
    where = region("8x dgx-h200")
    question = Question(model=model(), workload=requests(), constants=shipped())
    shapes = [Shape.parse(shape) for shape in SHAPES[LLAMA_70B]]
    works = stack([work_in(question, shape, where) for shape in shapes])
    batch = step(works, factors_for(question, [where] * len(shapes)), np.full(len(shapes), 32.0), np.zeros(len(shapes)))
    for index, shape in enumerate(shapes):
        assert batch.total_s[index] == pytest.approx(float(one_step(LLAMA_70B, str(shape), 32).total_s[0]))


# --- a replica -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_stages_do_not_shorten_the_tokens_of_one_request(pp: int) -> None:
    one, many = (clients(LLAMA_70B, shape, 1).tpot_s for shape in ("tp4", f"tp4pp{pp}"))
    assert many >= one


def test_stages_answer_more_requests_but_not_more_per_gpu() -> None:
    one, two = (
        capacity(LLAMA_70B, "tp4"),
        float(clients(LLAMA_70B, "tp4pp2", 2 * ROOM, room=2 * ROOM).requests_per_s[0]),
    )
    assert one < two <= 2 * one * 1.02


@given(of=cases, count=st.floats(1, ROOM), more=st.floats(1, 4))
def test_more_running_requests_give_more_and_slower_tokens(of: tuple[str, str], count: float, more: float) -> None:
    few, many = (with_running(*case(*of), demand(room=2000), np.array([running])) for running in (count, count * more))
    assert many.running / many.tpot_s >= few.running / few.tpot_s * (1 - 1e-9)
    assert many.requests_per_s >= few.requests_per_s * (1 - 1e-9)
    assert many.tpot_s >= few.tpot_s * (1 - 1e-9)
    assert many.ttft_s >= few.ttft_s * (1 - 1e-9)
    assert many.prompt_busy >= few.prompt_busy * (1 - 1e-9)


@given(of=cases, count=st.floats(1, 4 * ROOM))
def test_clients_either_run_or_wait_for_room(of: tuple[str, str], count: float) -> None:
    found = clients(*of, count)
    assert found.running == min(count, ROOM)
    full = clients(*of, ROOM)
    if count > ROOM:
        assert found.ttft_s > full.ttft_s
        assert found.tpot_s == full.tpot_s
        assert found.requests_per_s == full.requests_per_s


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_running_requests_follow_littles_law(name: str, shape: str) -> None:
    found = clients(name, shape, ROOM / 4)
    stay_s = found.ttft_s - found.queue_s + 256 * found.tpot_s
    assert found.running == pytest.approx(found.requests_per_s * stay_s, rel=0.1)


@given(of=cases, tokens=st.floats(1, 60_000), more=st.floats(1, 3))
def test_a_longer_prompt_is_read_longer(of: tuple[str, str], tokens: float, more: float) -> None:
    short, long = (prompt_alone_s(*case(*of), demand(tokens_in=size)) for size in (tokens, tokens * more))
    assert 0 < short <= long * (1 + 1e-9)


def test_a_prompt_of_many_chunks_flows_through_the_stages() -> None:
    """A prompt of 8 chunks keeps 4 stages busy most of the time, one of a single chunk never more than one."""
    speedups = [
        float((prompt_alone_s(*case(LLAMA_70B, "tp2"), wanted) / prompt_alone_s(*case(LLAMA_70B, "tp2pp4"), wanted))[0])
        for wanted in (demand(tokens_in=8192), demand(tokens_in=8 * 8192))
    ]
    assert speedups[0] == pytest.approx(1, abs=0.1)
    assert 2 < speedups[1] < 4
