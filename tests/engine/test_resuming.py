"""A request continues on another engine with the tokens it would have got: real vLLM, every sampling state, every cut.

One engine plays both: an engine keeps nothing of a request that has ended but its KV cache. Few tokens fit into a step
and few blocks into the cache, so that prefills are cut into chunks and requests are preempted, resumed ones too.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from running_system import ENGINE_ARGS, prompts

from deployments.tiny_models import cache_root, make_model

os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.renderers import renderer_from_config
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine import EngineCoreEventType, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor import Executor

from deployments.engine import WORKER_PROBE
from deployments.resuming import inexact, resumed, resuming_scheduler

pytestmark = pytest.mark.engine

TOKENS = 32
EOS = 2
SEEDED = {"temperature": 1.0, "seed": 7}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kinds": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "count", "kinds"],
    "additionalProperties": False,
}


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seed": SEEDED,
    "filters": SEEDED | {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    "repetition penalty": SEEDED | {"repetition_penalty": 1.8},
    "frequency penalty": {"temperature": 0, "frequency_penalty": 2.0, "logit_bias": dict.fromkeys(range(50, 60), 12.0)},
    "presence penalty": SEEDED | {"presence_penalty": 2.0, "logit_bias": dict.fromkeys(range(50, 90), 8.0)},
    "logit bias": SEEDED | {"logit_bias": {100: 3.0, 200: 3.0, 300: -50.0}},
    "end after min_tokens": {"temperature": 0, "min_tokens": 20, "ignore_eos": False, "logit_bias": {EOS: 50.0}},
    "stop token after min_tokens": SEEDED | {"min_tokens": 17, "stop_token_ids": [60], "logit_bias": {60: 50.0}},
    "log probabilities": SEEDED | {"logprobs": 3, "prompt_logprobs": 1},
    # Bytes that are only parts of characters, and a set of tokens to choose from.
    "parts of characters": SEEDED | {"allowed_token_ids": list(range(150, 250))},
    "JSON": {
        "temperature": 0,
        "structured_outputs": StructuredOutputsParams(json=SCHEMA),
        "ignore_eos": False,
        "max_tokens": 48,
    },
    "JSON with a seed": SEEDED
    | {"structured_outputs": StructuredOutputsParams(json=SCHEMA), "ignore_eos": False, "max_tokens": 48},
    "regular expression": SEEDED | {"structured_outputs": StructuredOutputsParams(regex="([a-z]{3}-[0-9]{2} ){8}")},
    "choice": SEEDED
    | {"structured_outputs": StructuredOutputsParams(choice=["a long way to Tipperary", "a long way home"])},
    "grammar after reasoning": SEEDED
    | {
        "structured_outputs": StructuredOutputsParams(regex="[a-z]{40}"),
        "logit_bias": {0: 10.0},
        "reasoning_ended": False,
    },
    "grammar and penalty": SEEDED
    | {
        "structured_outputs": StructuredOutputsParams(regex="[a-z ]{60,80}"),
        "frequency_penalty": 2.0,
        "min_tokens": 10,
    },
}


@dataclass
class Answer:
    """What an engine said to one request, from ``get_output`` to the end."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[list[int], list[float]]] = field(default_factory=list)
    prompt_logprobs: int = 0
    finish: tuple[FinishReason, int | str | None] | None = None


class Engine:
    """An EngineCore in a process of its own, started as ``ShardedEngine`` starts one but without Ray."""

    def __init__(self, config: VllmConfig) -> None:
        self.client = EngineCoreClient.make_client(True, False, config, Executor.get_class(config), log_stats=True)
        self.client.collective_rpc("take_up_resumed_requests")
        self.processor = InputProcessor(config, renderer_from_config(config))
        self.preemptions = 0

    def request(
        self, name: str, prompt: Sequence[int], reasoning_ended: bool = True, **sampling: Any
    ) -> EngineCoreRequest:
        params = SamplingParams(**{"max_tokens": TOKENS, "ignore_eos": True} | sampling)
        request = self.processor.process_inputs(name, tokens_input(list(prompt)), params, ("generate",))
        request.reasoning_ended = reasoning_ended
        return request

    def answers(self, requests: Sequence[EngineCoreRequest]) -> dict[str, Answer]:
        """Send all at once and wait for all."""
        answers = {request.request_id: Answer() for request in requests}
        assert len(answers) == len(requests)
        for request in requests:
            self.client.add_request(request)
        while any(answer.finish is None for answer in answers.values()):
            step = self.client.get_output()
            for output in step.outputs:
                answer = answers[output.request_id]
                events = [event.type for event in output.events or ()]
                self.preemptions += events.count(EngineCoreEventType.PREEMPTED)
                answer.token_ids += output.new_token_ids
                answer.prompt_logprobs += output.new_prompt_logprobs_tensors is not None
                if rows := output.new_logprobs:
                    answer.logprobs += zip(rows.logprob_token_ids.tolist(), rows.logprobs.tolist(), strict=True)
                if output.finished:
                    answer.finish = output.finish_reason, output.stop_reason
        return answers


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    args = ENGINE_ARGS | {"max_model_len": 256, "max_num_batched_tokens": 96, "num_gpu_blocks_override": 32}
    model = make_model("tiny-llama", cache_root(os.environ))
    args["structured_outputs_config"] = {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
        "reasoning_parser": "tiny",
        "reasoning_parser_plugin": str(Path(__file__).with_name("tiny_reasoning.py")),
    }
    config = AsyncEngineArgs(model=str(model), worker_extension_cls=WORKER_PROBE, **args).create_engine_config()
    config.scheduler_config.scheduler_cls = resuming_scheduler(config.scheduler_config)
    started = Engine(config)
    yield started
    started.client.shutdown()


def mismatches(engine: Engine, cases: dict[str, EngineCoreRequest], whole: dict[str, Answer]) -> list[str]:
    """Continue every case at every cut, all at once and among fresh requests; say which cuts went another way."""
    cuts = {f"{name} at {cut}": (name, cut) for name, answer in whole.items() for cut in range(len(answer.token_ids))}
    requests = [resumed(cases[name], whole[name].token_ids[:cut], key) for key, (name, cut) in cuts.items()]
    continued = engine.answers(requests)
    return [key for key, (name, cut) in cuts.items() if not is_rest(continued[key], whole[name], cut)]


def is_rest(rest: Answer, whole: Answer, cut: int) -> bool:
    expected = copy.deepcopy(whole)
    ids_agree = rest.token_ids == expected.token_ids[cut:] and rest.finish == expected.finish
    rows = list(zip(rest.logprobs, expected.logprobs[cut:], strict=True)) if ids_agree else []
    rows_agree = all(got[0] == said[0] and got[1] == pytest.approx(said[1], abs=1e-4) for got, said in rows)
    return ids_agree and rows_agree and rest.prompt_logprobs == (expected.prompt_logprobs if cut == 0 else 0)


@pytest.mark.parametrize("prompt", [prompts()[1], prompts()[5]], ids=["short", "long"])
def test_every_sampling_state_continues_at_every_cut(engine: Engine, prompt: list[int]) -> None:
    cases = {name: engine.request(name, prompt, **sampling) for name, sampling in CASES.items()}
    whole = engine.answers(list(cases.values()))
    assert whole["JSON"].finish == (FinishReason.STOP, None)
    assert 0 in whole["grammar after reasoning"].token_ids[1:-8]
    assert mismatches(engine, cases, whole) == []


def test_bad_words_are_recognised_across_the_cut(engine: Engine) -> None:
    free = engine.request("free", prompts()[2], temperature=0)
    said = engine.answers([free])["free"].token_ids
    words = [engine.processor.tokenizer.decode(pair) for pair in pairwise(said)]
    bound = engine.request(
        "bound", prompts()[2], temperature=0, bad_words=[word for word in words if word.isprintable()]
    )
    whole = engine.answers([bound])
    assert whole["bound"].token_ids != said
    assert mismatches(engine, {"bound": bound}, whole) == []


def test_a_request_that_moves_twice_and_is_preempted_says_the_same(engine: Engine) -> None:
    """Many long answers do not fit into the cache at once."""
    requests = [engine.request(f"{i}", prompts()[4], **SEEDED | {"seed": i, "max_tokens": 90}) for i in range(24)]
    whole = engine.answers(requests)
    once = [resumed(request, whole[request.request_id].token_ids[:20], request.request_id) for request in requests]
    twice = [resumed(request, whole[request.request_id].token_ids[:30], request.request_id) for request in once]
    before = engine.preemptions
    continued = engine.answers(twice)
    assert engine.preemptions > before
    assert {name: answer.token_ids for name, answer in continued.items()} == {
        name: answer.token_ids[30:] for name, answer in whole.items()
    }


def test_tokens_that_the_grammar_refuses_end_their_request_alone(engine: Engine) -> None:
    """As when two replicas had different structured-output backends."""
    wrong = engine.request("wrong", prompts()[0], **CASES["choice"])
    right = engine.request("right", prompts()[0], **CASES["choice"])
    answers = engine.answers([resumed(wrong, [1999, 1998], "wrong"), right])
    assert (answers["wrong"].token_ids, answers["wrong"].finish) == ([], (FinishReason.ERROR, None))
    assert answers["right"].finish == (FinishReason.LENGTH, None)


def test_the_request_of_the_beginning_stays_as_it_was(engine: Engine) -> None:
    request = engine.request("first", prompts()[0], prompt_logprobs=1, extra_args={"mine": 1})
    before = copy.deepcopy(request)
    moved = resumed(request, [5, 6], "second")
    assert request == before
    assert (moved.request_id, moved.sampling_params.prompt_logprobs) == ("second", None)
    assert moved.sampling_params.extra_args == {"mine": 1, "archipelago_resume": [5, 6]}


def test_a_client_cannot_bring_tokens_of_its_own(engine: Engine) -> None:
    """A token id beyond the vocabulary would end the engine for everybody."""
    request = engine.request("first", prompts()[0], extra_args={"archipelago_resume": [10**6]})
    assert resumed(request, [], "first").sampling_params.extra_args is None


@pytest.mark.parametrize(
    ("change", "speculative", "reason"),
    [
        ({}, False, None),
        ({"seed": 1}, False, None),
        ({"temperature": 0, "seed": 1}, True, None),
        ({"seed": 1}, True, "seed is set and the engines speculate"),
        ({"thinking_token_budget": 5}, False, "thinking_token_budget is set"),
    ],
)
def test_what_cannot_be_exact_says_why(change: dict[str, Any], speculative: bool, reason: str | None) -> None:
    request = EngineCoreRequest("a", [1], None, SamplingParams(**change), None, 0.0, None, None, None)
    assert inexact(request, speculative=speculative) == reason
