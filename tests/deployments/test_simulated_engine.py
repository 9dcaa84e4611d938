import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from deployment_builders import layout_of, names_of, ray_id
from placement_builders import LLAMA_70B, cluster_of
from simulated_clock import Clock
from simulation_builders import EOS, VOCABULARY, limits
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.config import SimulatedEngineConfig
from deployments.peer import Frames
from deployments.resuming import resumed
from deployments.simulated_engine import Answers, SimulatedEngine, simulated_engine
from deployments.simulation.pace import Pace
from deployments.simulation.scheduler import Batch, Scheduler
from deployments.verification import Found, verify
from placement import ModelSpec

STEP_S = 0.5
PROMPT = [1, 2, 3, 4]
Step = dict[str, EngineCoreOutputs]


def engine(
    *,
    clock: Clock | None = None,
    scale: float = 1.0,
    mean_tokens: float | None = None,
    sleep: Callable[[float], Awaitable[None]] | None = None,
    **bounds: int,
) -> SimulatedEngine:
    clock = clock or Clock()

    def price(batch: Batch) -> float:
        return STEP_S

    given = limits(**bounds)
    return SimulatedEngine(
        Scheduler(given, price),
        Answers(vocabulary=VOCABULARY, request_tokens=given.request_tokens, mean_tokens=mean_tokens),
        Pace(scale=scale, now_s=clock.now_s, sleep=sleep or clock.sleep),
        (),
    )


def request(
    name: str, *, prompt: list[int] | None = PROMPT, eos: int | None = EOS, priority: int = 0, **sampling: Any
) -> EngineCoreRequest:
    params = SamplingParams(**({"max_tokens": 6} | sampling))
    params.update_from_generation_config({}, eos)
    return EngineCoreRequest(name, prompt, None, params, None, 0.0, None, None, None, priority=priority)


def sent(asked: EngineCoreRequest) -> Frames:
    return [bytes(frame) for frame in MsgpackEncoder().encode(asked)]


async def step_of(simulated: SimulatedEngine) -> Step:
    decoder = MsgpackDecoder(EngineCoreOutputs)
    return {owner: decoder.decode(frames) for owner, frames in (await simulated.next_step()).items()}


async def all_steps(simulated: SimulatedEngine) -> list[Step]:
    steps = []
    while simulated.unfinished_requests:
        steps.append(await step_of(simulated))
    return steps


def served(*asked: EngineCoreRequest, **settings: Any) -> dict[str, list[EngineCoreOutput]]:
    """What each request is answered with by an engine of its own kind."""

    async def play() -> list[Step]:
        simulated = engine(**settings)
        for each in asked:
            await simulated.submit("ingress", sent(each))
        return await all_steps(simulated)

    outputs: dict[str, list[EngineCoreOutput]] = {}
    for step in asyncio.run(play()):
        for output in step["ingress"].outputs if step else ():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens(outputs: list[EngineCoreOutput]) -> list[int]:
    return [token for output in outputs for token in output.new_token_ids]


def end(outputs: list[EngineCoreOutput]) -> tuple[FinishReason | None, int | str | None]:
    assert not any(output.finished for output in outputs[:-1])
    return outputs[-1].finish_reason, outputs[-1].stop_reason


def test_a_step_on_the_wire_has_what_the_ingress_reads() -> None:
    async def play() -> list[Step]:
        simulated = engine(running_requests=1, kv_blocks=64)
        await simulated.submit("ingress", sent(request("a", max_tokens=2)))
        await simulated.submit("ingress", sent(request("b", max_tokens=2)))
        return await all_steps(simulated)

    first, second, third, _ = (step["ingress"] for step in asyncio.run(play()))
    assert first.scheduler_stats is not None
    assert (first.scheduler_stats.num_running_reqs, first.scheduler_stats.num_waiting_reqs) == (1, 1)
    assert first.scheduler_stats.kv_cache_usage == 1 / 64
    assert (first.timestamp, second.timestamp) == (STEP_S, 2 * STEP_S)
    (output,) = first.outputs
    assert (output.request_id, len(output.new_token_ids)) == ("a", 1)
    assert output.prefill_stats is not None
    assert (output.prefill_stats.num_prompt_tokens, output.prefill_stats.num_computed_tokens) == (4, 4)
    (later,) = second.outputs
    assert (later.events, later.prefill_stats) == (None, None)
    # "b" has waited for the two steps of "a".
    assert [(event.type, event.timestamp) for event in third.outputs[0].events or ()] == [
        (EngineCoreEventType.QUEUED, 0.0),
        (EngineCoreEventType.SCHEDULED, 2 * STEP_S),
    ]


def test_vllm_takes_the_steps_for_those_of_an_engine() -> None:
    async def play() -> list[Any]:
        simulated = engine(kv_blocks=36, block_tokens=8)
        processor = OutputProcessor(None, log_stats=True)
        for index in range(3):  # too long for the cache together: one of them is preempted
            asked = request(str(index), prompt=[index] * 90, max_tokens=30, detokenize=False)
            asked.external_req_id = asked.request_id
            processor.add_request(asked, None)
            await simulated.submit("ingress", sent(asked))
        finished, stats = [], IterationStats()
        while simulated.unfinished_requests:
            for step in (await step_of(simulated)).values():
                outputs = processor.process_outputs(step.outputs, step.timestamp, stats)
                finished += [output for output in outputs.request_outputs if output.finished]
        return [finished, stats]

    finished, stats = asyncio.run(play())
    assert {output.request_id: len(output.outputs[0].token_ids) for output in finished} == {"0": 30, "1": 30, "2": 30}
    assert stats.num_preempted_reqs > 0
    assert [each.queued_time for each in stats.finished_requests] == sorted(
        each.queued_time for each in stats.finished_requests
    )
    assert all(each.inference_time > 0 and each.prefill_time > 0 for each in stats.finished_requests)


def test_each_owner_gets_its_own_requests_in_one_message_a_step() -> None:
    async def play() -> list[Step]:
        simulated = engine()
        for owner, name in (("one", "a"), ("two", "b"), ("one", "c")):
            await simulated.submit(owner, sent(request(name, max_tokens=3)))
        return await all_steps(simulated)

    steps = asyncio.run(play())
    assert len(steps) == 3
    for step in steps:
        ids = {owner: [output.request_id for output in message.outputs] for owner, message in step.items()}
        assert ids == {"one": ["a", "c"], "two": ["b"]}


def test_every_engine_gives_the_same_tokens_whatever_else_it_does() -> None:
    alone = served(request("x", seed=5, max_tokens=40))["x"]
    others = [request(str(number), prompt=[number] * 20, max_tokens=30) for number in range(12)]
    crowded = served(*others, request("y", seed=5, max_tokens=40), step_tokens=16, kv_blocks=32, stages=2)["y"]
    assert tokens(crowded) == tokens(alone)
    assert tokens(served(request("x", seed=6, max_tokens=40))["x"]) != tokens(alone)


@pytest.mark.parametrize(
    "settings", [{}, {"mean_tokens": 8.0}, {"stages": 2, "step_tokens": 3}], ids=["cut", "ends", "chunks"]
)
@pytest.mark.parametrize("sampling", [{}, {"min_tokens": 10}, {"seed": 7}, {"ignore_eos": True}], ids=str)
def test_a_request_resumed_at_any_token_goes_on_exactly(settings: dict[str, Any], sampling: dict[str, Any]) -> None:
    asked = request("a", max_tokens=16, **sampling)
    whole = served(asked, **settings)["a"]
    for cut in range(len(tokens(whole))):
        rest = served(resumed(asked, tokens(whole)[:cut], "again"), **settings)["again"]
        assert tokens(rest) == tokens(whole)[cut:]
        assert end(rest) == end(whole)


def test_a_request_resumed_with_its_whole_answer_ends_at_once() -> None:
    asked = request("a")
    whole = served(asked)["a"]
    rest = served(resumed(asked, tokens(whole), "again"))["again"]
    assert (tokens(rest), end(rest)) == ([], end(whole))


@pytest.mark.parametrize(
    ("sampling", "count", "wanted"),
    [
        ({"max_tokens": 3}, 3, (FinishReason.LENGTH, None)),
        ({"max_tokens": None}, 6, (FinishReason.STOP, None)),
        ({"max_tokens": None, "min_tokens": 20}, 21, (FinishReason.STOP, None)),
        ({"max_tokens": None, "ignore_eos": True}, 252, (FinishReason.LENGTH, None)),  # up to the longest request
        ({"max_tokens": None, "ignore_eos": True, "stop_token_ids": [77]}, 6, (FinishReason.STOP, 77)),
        ({"max_tokens": None, "stop_token_ids": [77]}, 6, (FinishReason.STOP, None)),
    ],
    ids=str,
)
def test_an_answer_ends_as_its_sampling_parameters_say(sampling: dict[str, Any], count: int, wanted: Any) -> None:
    outputs = served(request("a", **sampling), mean_tokens=8.0)["a"]
    ids = tokens(outputs)
    assert (len(ids), end(outputs)) == (count, wanted)
    assert not {EOS, 77} & set(ids[:-1])
    if wanted[0] == FinishReason.STOP:
        assert ids[-1] == (wanted[1] or EOS)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            request("a", structured_outputs=StructuredOutputsParams(choice=["x"])),
            "structured output cannot be simulated",
        ),
        (request("a", logprobs=1), "logprobs cannot be simulated"),
        (request("a", prompt_logprobs=0), "logprobs cannot be simulated"),
        (request("a", prompt=None), "only prompts of token ids"),
        (EngineCoreRequest("a", [1], None, None, PoolingParams(), 0.0, None, None, None), "only generation"),
        (request("a", prompt=[1] * 256), "of at most 256 tokens"),
    ],
)
def test_what_cannot_be_simulated_ends_with_an_error_that_says_so(asked: EngineCoreRequest, reason: str) -> None:
    answers = served(asked, request("fine"))
    finish_reason, why = end(answers["a"])
    assert (finish_reason, tokens(answers["a"])) == (FinishReason.ERROR, [])
    assert reason in str(why)
    assert end(answers["fine"]) == (FinishReason.LENGTH, None)


def test_aborted_requests_are_heard_of_no_more() -> None:
    async def play() -> list[Step]:
        simulated = engine()
        for owner, name in (("one", "a"), ("one", "b"), ("two", "c"), ("two", "bad")):
            await simulated.submit(owner, sent(request(name, logprobs=1 if name == "bad" else None)))
        await simulated.abort(["a", "unknown", "bad"])
        await step_of(simulated)  # of the refused one: nobody hears of it
        await step_of(simulated)
        await simulated.abort_all_of("two")
        assert simulated.unfinished_requests == 1
        return await all_steps(simulated)

    steps = asyncio.run(play())
    assert {output.request_id for step in steps for message in step.values() for output in message.outputs} == {"b"}


def test_a_request_that_comes_back_during_a_step_gets_no_token_twice() -> None:
    whole = tokens(served(request("a"))["a"])

    async def play() -> list[Step]:
        simulated = engine()
        await simulated.submit("ingress", sent(request("a")))
        await step_of(simulated)
        under_way = asyncio.create_task(simulated.next_step())
        await asyncio.sleep(0)  # it has begun
        await simulated.abort(["a"])
        await simulated.submit("ingress", sent(resumed(request("a"), whole[:1], "a")))
        assert await under_way == {}
        return await all_steps(simulated)

    steps = asyncio.run(play())
    assert tokens([output for step in steps for output in step["ingress"].outputs]) == whole[1:]


def test_priorities_decide_who_waits() -> None:
    outputs: list[str] = []

    async def play() -> None:
        simulated = engine(running_requests=1)
        for name, priority in (("batch", 5), ("also batch", 5), ("interactive", -1)):
            await simulated.submit("ingress", sent(request(name, priority=priority, max_tokens=1)))
        for step in await all_steps(simulated):
            outputs.extend(output.request_id for output in step["ingress"].outputs)

    asyncio.run(play())
    assert outputs == ["interactive", "batch", "also batch"]


@pytest.mark.parametrize("scale", [1.0, 10.0, 0.1])
def test_time_is_scaled(scale: float) -> None:
    clock = Clock(s=7.0)

    async def play() -> None:
        simulated = engine(clock=clock, scale=scale)
        await simulated.submit("ingress", sent(request("a", max_tokens=20)))
        await all_steps(simulated)

    asyncio.run(play())
    assert clock.s == pytest.approx(7.0 + 20 * STEP_S / scale)


def test_a_step_survives_that_nobody_waits_for_it() -> None:
    async def play() -> list[Step]:
        forever = asyncio.Event()

        async def sleep(duration_s: float) -> None:
            await forever.wait()

        simulated = engine(sleep=sleep)
        await simulated.submit("ingress", sent(request("a", max_tokens=1)))
        waiting = asyncio.create_task(simulated.next_step())
        await asyncio.sleep(0)
        waiting.cancel()
        forever.set()
        return await all_steps(simulated)

    assert [len(step["ingress"].outputs) for step in asyncio.run(play())] == [1]


def test_an_idle_engine_waits_for_a_request() -> None:
    async def play() -> Step:
        simulated = engine()
        waiting = asyncio.create_task(step_of(simulated))
        await asyncio.sleep(0)
        assert not waiting.done()
        await simulated.submit("ingress", sent(request("gone")))
        await simulated.abort(["gone"])
        await simulated.submit("ingress", sent(request("a")))
        return await waiting

    assert [output.request_id for output in asyncio.run(play())["ingress"].outputs] == ["a"]


def test_a_machine_that_cannot_keep_up_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()

    async def slow(duration_s: float) -> None:
        clock.s += STEP_S + 0.2

    async def play() -> None:
        simulated = engine(clock=clock, sleep=slow)
        await simulated.submit("ingress", sent(request("a", max_tokens=10)))
        await all_steps(simulated)

    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        asyncio.run(play())
    assert [record.message for record in caplog.records] == [
        "simulated engine: this machine is too slow for 1 running requests at time_scale 1; what clients measure is "
        "slower than the model"
    ]


def test_the_engine_of_a_replica_says_what_it_is_and_sits_as_planned(caplog: pytest.LogCaptureFixture) -> None:
    model = ModelSpec.from_hf_config(LLAMA_70B, name="Llama-3.1-70B")
    cluster = cluster_of(4, 4)
    layout = layout_of("tp4pp2", cluster)
    nodes = [ray_id(seat.node) for seat in layout.seats]
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        simulated = simulated_engine(
            model,
            layout,
            SimulatedEngineConfig(gpu="h100_sxm", time_scale=4.0),
            {"max_model_len": 4096, "served_model_name": "ignored"},
            bundle_nodes=nodes,
            actor_id="actor",
        )
    workers = asyncio.run(simulated.whereabouts())
    verify(layout, Found(replica_node=nodes[0], bundle_nodes=tuple(nodes), workers=workers), names_of(cluster))
    assert "this replica is SIMULATED: tokens are invented" in caplog.records[0].message
    assert "Llama-3.1-70B as tp4pp2 on h100_sxm, divided by 4" in caplog.records[0].message
    assert (simulated.is_dead, simulated.stalled_s(1e9), simulated.unfinished_requests) == (False, 0.0, 0)
