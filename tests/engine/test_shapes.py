"""Every shape that runs here gives the tokens of a single process, from where its layout puts it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from running_system import prompts

from deployments.verification import verify

pytestmark = pytest.mark.engine

# The last cuts in three ways, and pipelines are in test_repartition; the others are slow.
SHAPES = [
    pytest.param("tiny-llama", "tp2pp2", 2, id="tp2pp2", marks=pytest.mark.slow),
    pytest.param("tiny-llama", "tp1", 1, id="tp1", marks=pytest.mark.slow),
    pytest.param("tiny-llama", "tp2", 1, id="tp2", marks=pytest.mark.slow),
    pytest.param("tiny-llama", "pp2", 1, id="pp2", marks=pytest.mark.slow),
    pytest.param("tiny-moe", "tp2ep2", 1, id="tp2ep2", marks=pytest.mark.slow),
    pytest.param("tiny-moe", "tp2ep4dp2", 2, id="tp2ep4dp2"),
]


@pytest.mark.parametrize(("model", "shape", "islands"), SHAPES)
def test_a_shape_gives_the_tokens_of_a_single_process(
    model: str,
    shape: str,
    islands: int,
    deploy: Callable[..., Any],
    expected_tokens: Callable[[str], list[dict[str, Any]]],
) -> None:
    expected = expected_tokens(model)
    deployed = deploy(model, {shape: 1})
    with ThreadPoolExecutor() as pool:  # together, so that steps hold several requests
        answers = list(pool.map(deployed.complete, prompts()))
    assert [answer["token_ids"] for answer in answers] == [one["token_ids"] for one in expected]
    for answer, one in zip(answers, expected, strict=True):
        assert answer["logprobs"]["token_logprobs"] == pytest.approx(one["logprobs"], abs=1e-4)

    report = deployed.report()
    verify(report.layout, report.found, report.node_names)
    assert len({seat.island for seat in report.layout.seats}) == islands
    assert len({worker.pid for worker in report.found.workers}) == report.layout.shape.gpus
