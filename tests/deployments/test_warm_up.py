"""What a new engine does before its first client: the steps of which the first of a kind takes long."""

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engine import warm_up_requests


def config(*, ranks: int = 1, runner_type: str = "generate", is_encoder_decoder: bool = False) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(runner_type=runner_type, is_encoder_decoder=is_encoder_decoder),
        parallel_config=SimpleNamespace(data_parallel_size=ranks),
    )


def test_every_rank_sees_batches_of_one_two_and_three_with_log_probabilities() -> None:
    requests = warm_up_requests(config(ranks=2))
    assert len({request.request_id for request in requests}) == len(requests)
    for rank in range(2):
        (first, second, third) = [each.sampling_params for each in requests if each.data_parallel_rank == rank]
        assert first.max_tokens < second.max_tokens < third.max_tokens
        for sampling in (first, second, third):
            assert (sampling.logprobs, sampling.ignore_eos) == (1, True)


def test_without_data_parallelism_no_rank_is_asked_for() -> None:
    assert {request.data_parallel_rank for request in warm_up_requests(config())} == {None}


@pytest.mark.parametrize("other", [{"runner_type": "pooling"}, {"is_encoder_decoder": True}])
def test_a_model_that_does_not_continue_a_prompt_of_tokens_is_not_asked_to(other: dict[str, Any]) -> None:
    assert warm_up_requests(config(**other)) == []
