"""A request that began on one engine continues on another with the same tokens. Part of the vLLM adapter (0.32).

What the next token depends on is more than prompt + tokens so far: penalties, min_tokens and bad words look at *output*
tokens, a grammar is somewhere in its automaton, a seeded generator has made some draws. So the original request travels
again with the tokens it has got, and the new engine is made to believe that it produced them, as it already does for a
request of its own that it preempted and computes again:

    ingress     ``resumed``             writes the tokens into ``extra_args``, the only part of a request that reaches
                                        scheduler and workers and is free for others
    EngineCore  ``ResumingScheduler``   makes them output tokens, and advances the grammar by them
    worker      ``resume_in_runner``    makes them output tokens, and advances the seeded generator by them

The tokens are the same as far as the model computes the same: KV entries of a prefill and of a decode step may differ
in their last bits, as they do after a preemption or in another batch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import SchedulerConfig
from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

CARRIED = "archipelago_resume"


# --- in the ingress --------------------------------------------------------------------------------------------------


def resumed(request: EngineCoreRequest, generated_token_ids: Sequence[int], request_id: str) -> EngineCoreRequest:
    """Return ``request`` so that an engine continues it after ``generated_token_ids``; ``request`` stays as it is.

    ``request`` is the one of the beginning, and the tokens are all since then, however often it has moved. With no
    tokens it is a plain copy. Send first attempts through here too: a client can write into ``extra_args`` (OpenAI's
    ``vllm_xargs``), and token ids that no engine made could crash one.
    """
    copied = copy(request)
    copied.request_id = request_id
    if request.sampling_params is None:
        return copied
    copied.sampling_params = sampling = copy(request.sampling_params)
    extra_args = {name: value for name, value in (sampling.extra_args or {}).items() if name != CARRIED}
    if generated_token_ids:
        extra_args[CARRIED] = list(generated_token_ids)
        # These went out with the first token.
        sampling.prompt_logprobs = sampling.prompt_logprob_token_ids = sampling.prompt_logprob_start = None
    sampling.extra_args = extra_args or None
    return copied


def inexact(request: EngineCoreRequest, *, speculative: bool) -> str | None:
    """Say why ``request`` could get other tokens when it continues elsewhere; None: it gets the same.

    ``speculative``: the engines draft tokens. How many draws a seeded generator has then made is known to nobody else.
    """
    sampling = request.sampling_params
    if sampling is None:
        return "it does not generate tokens"
    reasons = {
        "its prompt is a stream": request.resumable,
        "its prompt is made of embeddings": request.prompt_embeds is not None,
        # Rebuilt from output tokens by other rules than it is kept by (vllm/v1/sample/thinking_budget_state.py:277).
        "thinking_token_budget is set": sampling.thinking_token_budget is not None,
        "seed is set and the engines speculate": speculative and sampling.sampling_type == SamplingType.RANDOM_SEED,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


# --- in EngineCore ---------------------------------------------------------------------------------------------------


def carried_token_ids(sampling: SamplingParams | None) -> list[int]:
    """Tokens that another engine made for this request."""
    return (sampling.extra_args or {}).get(CARRIED, []) if sampling is not None else []


class ResumingScheduler(Scheduler):
    """vLLM's scheduler, which takes up requests after tokens that another engine made.

    vLLM schedules by ``num_tokens``, output included (v1/core/sched/scheduler.py:1127), and knows a new request from a
    preempted one by its status alone: a new request with output tokens is prefilled with them and decodes on.
    """

    def add_request(self, request: Request) -> None:
        """Queue a request; carried tokens are its output from the start, so the prefix cache can have them."""
        if carried := carried_token_ids(request.sampling_params):
            # A request has one prefill in the statistics: the first engine's. (Nor may a second one hit the cache
            # beyond the prompt, scheduler.py:1076.)
            request.take_prefill_stats()
            if not request.use_structured_output:
                request.append_output_token_ids(carried)
        super().add_request(request)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        waits_for_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        is_ready = super()._handle_blocked_waiting_request(request)
        if not (is_ready and waits_for_grammar) or self._replay(request):
            return is_ready
        # The grammar of this engine is not the one that made the tokens. Fail as when it cannot be compiled.
        refused: Future[StructuredOutputGrammar] = Future()
        refused.set_exception(ValueError(f"grammar rejects the tokens carried by {request.request_id}"))
        assert request.structured_output_request is not None
        request.structured_output_request.grammar = refused
        request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        return super()._handle_blocked_waiting_request(request)

    def _replay(self, request: Request) -> bool:
        # One by one and each after it is appended, as in update_from_output: the end of reasoning, where the grammar
        # begins, is looked for in the newest token and all before it.
        for token_id in carried_token_ids(request.sampling_params):
            request.append_output_token_ids(token_id)
            if not self.structured_output_manager.accept_tokens(request, [token_id]):
                return False
        return True


class ResumingAsyncScheduler(ResumingScheduler, AsyncScheduler):
    """The same over the scheduler that runs one step ahead of the GPU."""


def resuming_scheduler(config: SchedulerConfig) -> str:
    """Name the scheduler class for a complete ``config``, in place of the one vLLM would choose.

    Raises:
        ValueError: a scheduler class is set already.
    """
    if config.scheduler_cls is not None:
        raise ValueError(
            f"scheduler_cls {config.scheduler_cls} is set: it could not continue requests of a lost engine"
        )
    chosen = ResumingAsyncScheduler if config.async_scheduling else ResumingScheduler
    return f"{chosen.__module__}.{chosen.__qualname__}"


# --- in a worker -----------------------------------------------------------------------------------------------------


def resume_in_runner(runner: "GPUModelRunner") -> None:
    """Have V1's model runner start requests with the tokens they carry.

    It creates the state of a new request without output (v1/worker/gpu_model_runner.py:1275) and hands it to the input
    batch at the end of ``_update_states``: the one place between creation and first use.

    Model Runner V2 needs nothing. It is given all tokens as prefill (v1/core/sched/scheduler.py:1418), takes what lies
    beyond the prompt for output (v1/worker/gpu/states.py:106; sample/penalties.py:66, logit_bias.py:95 and 242,
    bad_words.py:132), and a seed's noise depends on the position (sample/sampler.py:350). Read, not run.
    """
    add = runner.input_batch.add_request
    blank_logits = torch.zeros(1, runner.input_batch.vocab_size, device=runner.device)

    def draw(generator: torch.Generator) -> None:
        """Draw as for one token, by whatever the sampler of this platform takes from a generator."""
        runner.sampler.topk_topp_sampler(blank_logits.clone(), {0: generator}, None, None)

    def add_resumed(request: "CachedRequestState") -> int:
        if not request.output_token_ids:  # else: back in the batch after a preemption
            request.output_token_ids.extend(carried_token_ids(request.sampling_params))
            if request.generator is not None:
                request.generator = _advanced(request.generator, request, draw)
        return add(request)

    runner.input_batch.add_request = add_resumed  # type: ignore[method-assign]


def _advanced(
    generator: torch.Generator, request: "CachedRequestState", draw: Callable[[torch.Generator], None]
) -> torch.Generator:
    """Return the fresh ``generator`` after one draw for every output token."""
    if generator.device.type == "cpu":
        return RewindableGenerator(generator.initial_seed(), request, draw)
    draws = len(request.output_token_ids)
    if draws:
        # Philox is a counter: its state is (seed, offset), and a draw of one row of logits always moves the offset as
        # far (by 4 unless the vocabulary exceeds four values for each of the GPU's threads). vLLM takes a draw back by
        # the same means (gpu_model_runner.py:3502).
        start = generator.get_offset()
        draw(generator)
        generator.set_offset(start + draws * (generator.get_offset() - start))
    return generator


class RewindableGenerator(torch.Generator):
    """A seeded CPU generator that stands after one draw for every output token, and can go back there.

    vLLM takes the draw of an unfinished prefill back by moving the generator's offset (gpu_model_runner.py:3502). A CPU
    generator has none and raises, which ends EngineCore: here any offset means "after the tokens there are".
    """

    def __new__(cls, *_: Any) -> "RewindableGenerator":
        """Make a CPU generator: torch would take the first argument for a device."""
        return super().__new__(cls)

    def __init__(self, seed: int, request: "CachedRequestState", draw: Callable[[torch.Generator], None]) -> None:
        self._seed = seed
        self._request = request
        self._draw = draw
        self.set_offset(0)

    def get_offset(self) -> int:
        """Nothing: there is one place to go back to."""
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        """Start from the seed and draw once for every output token."""
        self.manual_seed(self._seed)
        for _ in self._request.output_token_ids:
            self._draw(self)
        return self
