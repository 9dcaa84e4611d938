"""A request continues under the scheduler that runs one step ahead of the GPU.

vLLM has no asynchronous scheduling on CPU, so the scheduler is real and the model runner is this file: it keeps what
the real one keeps and computes the next token from all tokens before it, wrong or missing ones included.
"""

import os
import zlib
from collections import deque
from collections.abc import Iterable, Sequence

import pytest
import torch
from running_system import ENGINE_ARGS
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from deployments.resuming import ResumingAsyncScheduler, carried_token_ids, resumed, resuming_scheduler
from deployments.tiny_models import cache_root, make_model

pytestmark = pytest.mark.engine

BLOCK_TOKENS = 4
BLOCKS = 24
TOKENS = 20


def next_token(token_ids: Sequence[int]) -> int:
    return zlib.crc32(repr(list(token_ids)).encode()) % 1000


class Runner:
    """Knows of each request what vLLM's runner knows; samples unless the prefill goes on."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        computed = {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
        for new in step.scheduled_new_reqs:
            self.tokens[new.req_id] = [*(new.prompt_token_ids or ()), *carried_token_ids(new.sampling_params)]
        cached = step.scheduled_cached_reqs
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        sampled: list[list[int]] = []
        for name, scheduled in step.num_scheduled_tokens.items():
            tokens, end = self.tokens[name], computed[name] + scheduled
            assert end <= len(tokens), f"{name}: token {end} of {len(tokens)} is scheduled"
            sampled.append([next_token(tokens)] if end == len(tokens) else [])
            tokens += sampled[-1]
        names = list(step.num_scheduled_tokens)
        return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled)


@pytest.fixture
def scheduler() -> ResumingAsyncScheduler:
    args = ENGINE_ARGS | {
        "block_size": BLOCK_TOKENS,
        "max_num_batched_tokens": 32,
        "max_num_seqs": 16,
        "max_model_len": 64,
    }
    config = EngineArgs(model=str(make_model("tiny-llama", cache_root(os.environ))), **args).create_engine_config()
    config.scheduler_config.async_scheduling = True
    config.cache_config.num_gpu_blocks = BLOCKS
    assert resuming_scheduler(config.scheduler_config).endswith(ResumingAsyncScheduler.__name__)
    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return ResumingAsyncScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
        log_stats=True,
    )


def answers(scheduler: ResumingAsyncScheduler, requests: Iterable[EngineCoreRequest]) -> dict[str, list[int]]:
    """Run as EngineCore does with a batch queue of two: schedule a step before the last one's tokens are known."""
    init_none_hash(hash)
    said: dict[str, list[int]] = {}
    for request in requests:
        said[request.request_id] = []
        hasher = get_request_block_hasher(BLOCK_TOKENS, lambda content: repr(content).encode())
        scheduler.add_request(Request.from_engine_core_request(request, hasher))
    runner, running = Runner(), deque[tuple[SchedulerOutput, ModelRunnerOutput]]()
    while scheduler.has_unfinished_requests():
        step = scheduler.schedule()
        running.append((step, runner.execute(step)))
        if len(running) == 2:
            for outputs in scheduler.update_from_output(*running.popleft()).values():
                for output in outputs.outputs:
                    said[output.request_id] += output.new_token_ids
    return said


def request(name: str, prompt: Sequence[int]) -> EngineCoreRequest:
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    return EngineCoreRequest(name, list(prompt), None, sampling, None, 0.0, None, None, None)


def test_every_cut_continues_with_chunks_preemptions_and_cached_prefixes(scheduler: ResumingAsyncScheduler) -> None:
    firsts = [request(f"{i}", range(i, i + 11)) for i in range(3)]
    whole = answers(scheduler, firsts)
    assert all(len(tokens) == TOKENS for tokens in whole.values())
    cuts = {f"{first.request_id} at {cut}": (first, cut) for first in firsts for cut in range(TOKENS)}
    continued = answers(
        scheduler, [resumed(first, whole[first.request_id][:cut], name) for name, (first, cut) in cuts.items()]
    )
    assert continued == {name: whole[first.request_id][cut:] for name, (first, cut) in cuts.items()}
