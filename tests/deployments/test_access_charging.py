"""A request's tokens reach the key that asked for it, from wherever they are computed."""

import asyncio
from copy import copy
from typing import Any

from access_builders import Hands, made_key
from link_builders import Fleet, member, run, settled
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackEncoder

from deployments.access.quotas import Charge, Quotas, current_charge
from deployments.engine import packed
from deployments.fleet_engine import FleetCore


def engine_request(name: str, prompt_tokens: int) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=list(range(prompt_tokens)),
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=50),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def choices(request: EngineCoreRequest, count: int) -> list[EngineCoreRequest]:
    """As AsyncLLM asks for several (vllm/v1/engine/async_llm.py, add_request)."""
    assert request.sampling_params is not None
    request.sampling_params.n, request.external_req_id = count, request.request_id
    parent, children = ParentRequest(request), [copy(request) for _ in range(count)]
    for index, child in enumerate(children):
        child.request_id, child.sampling_params = parent.get_child_info(index)
    return children


def admitted() -> Charge:
    charge = Quotas(Hands()).admit(made_key()[1], 0)
    assert isinstance(charge, Charge)
    return charge


async def step(core: FleetCore, fleet: Fleet, replica: str, wire_id: str, *token_ids: int, **more: Any) -> None:
    outputs = [EngineCoreOutput(wire_id, list(token_ids), **more)]
    made = EngineCoreOutputs(outputs=outputs, scheduler_stats=SchedulerStats(), timestamp=0.0, engine_index=0)
    fleet.link.stepped(replica, packed(MsgpackEncoder().encode(made)))
    await core.get_output_async()


def test_prompt_and_answer_are_charged_as_they_are_computed_on_whatever_replica() -> None:
    charge = admitted()

    async def scenario(fleet: Fleet) -> None:
        core = FleetCore(fleet.link, fleet.traffic, speculative=False)
        token = current_charge.set(charge)
        # In a task of its own, as vLLM's handlers are (vllm/entrypoints/utils.py, with_cancellation).
        await asyncio.create_task(core.add_request_async(engine_request("r1", 10)))
        current_charge.reset(token)
        assert charge.used_tokens == 10
        await core.add_request_async(engine_request("of another", 1000))
        await step(core, fleet, "a", "r1", 7, 8, 9)
        assert charge.used_tokens == 13
        await step(core, fleet, "a", "of another", *range(100))
        fleet.add(member("b"))
        await settled()
        fleet.change("a", leaves=True)
        await settled()
        await step(core, fleet, "b", "r1~1", 5, finish_reason=FinishReason.LENGTH)
        assert charge.used_tokens == 14

    run(scenario, "a")


def test_a_prompt_is_charged_once_however_many_choices_it_has() -> None:
    """As the answer says (`usage.prompt_tokens`): ten answers to a long question do not ask it ten times."""
    charge = admitted()

    async def scenario(fleet: Fleet) -> None:
        core = FleetCore(fleet.link, fleet.traffic, speculative=False)
        token = current_charge.set(charge)
        for child in choices(engine_request("r1", 100), 3):
            await core.add_request_async(child)
        assert charge.used_tokens == 100
        for child in choices(engine_request("r2", 100), 2):  # another prompt of the same request, though of equal text
            await core.add_request_async(child)
        current_charge.reset(token)
        assert charge.used_tokens == 200
        await step(core, fleet, "a", "0_r1", 7, 8)
        await step(core, fleet, "a", "2_r1", 9)
        assert charge.used_tokens == 203

    run(scenario, "a")


def test_beam_search_is_charged_for_its_prompt_once_and_for_what_its_beams_are_made_of() -> None:
    """It asks for one token after another, each time with all before it as the prompt."""
    charge = admitted()
    prompt = list(range(1000))
    beams = [prompt]
    charge.use_prompt(prompt)
    charge.use(1)
    for _ in range(9):
        beams = [[*beam, token] for beam in beams for token in (7, 8)][:4]
        for beam in beams:
            charge.use_prompt(beam)
        charge.use(len(beams))
    generated, split = 1 + 2 + 8 * 4, 1 + 2
    assert charge.used_tokens == 1000 + generated + split


def test_prompts_that_only_look_like_beams_are_charged() -> None:
    """Nothing was generated for them that could have been paid for."""
    charge = admitted()
    for length in range(1, 5):
        charge.use_prompt(list(range(length)))
    assert charge.used_tokens == 1 + 2 + 3 + 4


def test_a_charge_ends_with_its_request() -> None:
    """A map of all requests that ever were would fill the memory of an ingress."""

    async def scenario(fleet: Fleet) -> None:
        core = FleetCore(fleet.link, fleet.traffic, speculative=False)
        for number in range(10):
            token = current_charge.set(admitted())
            await core.add_request_async(engine_request(f"r{number}", 1))
            current_charge.reset(token)
            del token
        await settled()  # what was still to be sent had been asked for on behalf of the last one
        assert len(core._charges) == 0

    run(scenario, "a")
