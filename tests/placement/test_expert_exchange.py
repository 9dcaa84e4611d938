"""How tokens get to their experts is a choice of the engine's, and changes which shapes pay."""

from dataclasses import replace

import pytest
import yaml
from planner_builders import DEEPSEEK_V3, cluster, model, region, requests, slo

from placement.collectives import ExpertBackend
from placement.cost.constants import shipped
from placement.cost.prediction import Question, predict
from placement.planning.emit import served_configuration
from placement.planning.plan import plan
from placement.shape import Shape

WIDE = Shape(dp=32, ep=32)
FOUR = "4x dgx-h200"


def exchange_s(backend: ExpertBackend, shape: Shape, on: str = FOUR) -> tuple[float, ...]:
    """Of a decode step, from one running request to the most."""
    question = Question(model=model(DEEPSEEK_V3), workload=requests(), constants=shipped())
    (found,) = predict(replace(question, exchange=backend), [(shape, region(on))])
    return tuple(load.parts_s["exchange_s"] for load in found.loads)


def test_low_latency_kernels_pay_with_few_tokens_and_not_with_many() -> None:
    """They send a copy for each of 8 experts over the network, where gathering sends each token to a machine once."""
    gathered, direct = (exchange_s(each, WIDE) for each in ("allgather_reducescatter", "deepep_low_latency"))
    assert direct[0] < 0.8 * gathered[0]
    assert direct[-1] > gathered[-1]


def test_only_data_parallel_attention_exchanges_tokens() -> None:
    assert set(exchange_s("deepep_low_latency", Shape(tp=8, ep=8))) == {0.0}


def test_one_sided_kernels_help_inside_an_island_and_fall_back_outside() -> None:
    inside, rack = Shape(dp=16, ep=16), "1x gb200-nvl72"
    assert exchange_s("one_sided", inside, rack)[-1] < exchange_s("allgather_reducescatter", inside, rack)[-1]
    assert exchange_s("one_sided", WIDE) == exchange_s("allgather_reducescatter", WIDE)


@pytest.mark.parametrize(
    ("backend", "written"),
    [
        ("allgather_reducescatter", None),
        ("deepep_low_latency", "deepep_low_latency"),
        ("one_sided", "flashinfer_nvlink_one_sided"),
    ],
)
def test_the_configuration_asks_vllm_for_the_exchange_that_was_planned(
    backend: ExpertBackend, written: str | None
) -> None:
    found = plan(model(DEEPSEEK_V3), cluster(FOUR), requests(requests_per_s=20), slo(tpot_ms=40), exchange=backend)
    assert found.best is not None
    assert found.best.shape.dp > 1
    engine = yaml.safe_load(served_configuration(found, DEEPSEEK_V3))["models"][0]["engine"]
    assert engine.get("all2all_backend") == written
