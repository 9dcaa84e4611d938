"""The project's engine with a stopwatch: requests that start in the same step, and the time of each step."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from deployments.crossover.record import Work
from deployments.engine import ShardedEngine

OWNER = "stopwatch"


class TimedEngine(ShardedEngine):
    """ShardedEngine driven step by step, without an ingress."""

    async def time_steps(self, work: Work, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Run one request for each prompt, all in the same batch; return the seconds of each step of that kind.

        The scheduler is stopped while the requests arrive. Otherwise the first would start alone, and a pipeline would
        keep it in a micro-batch of its own.
        """
        await self._client.call_utility_async("pause_scheduler", "keep", False)
        for index, prompt in enumerate(prompts):
            frames: Sequence[Any] = self._encoder.encode(_request(index, prompt, work))
            await self.submit(OWNER, [bytes(frame) for frame in frames])
        times_s = [time.perf_counter()]
        await self._client.call_utility_async("resume_scheduler")
        while self.unfinished_requests:
            if OWNER in await self.next_step():
                times_s.append(time.perf_counter())
        steps_s = [end_s - start_s for start_s, end_s in pairwise(times_s)]
        return steps_s[:1] if work.is_prefill else steps_s[1:]


def _request(index: int, prompt: Sequence[int], work: Work) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=f"{OWNER}-{index}",
        prompt_token_ids=list(prompt),
        mm_features=None,
        sampling_params=SamplingParams(temperature=0, max_tokens=work.output_tokens, ignore_eos=True, detokenize=False),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
