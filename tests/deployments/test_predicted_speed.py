"""What ingresses are told of the speed of replicas before these have made a step."""

import pytest
from planner_builders import cluster, model

from deployments.config import ModelConfig
from deployments.predicted_speed import predicted_speeds
from deployments.routing import PredictedSpeed
from placement import Cluster, Gpu, Node, Shape

SHAPES = [Shape(tp=tp) for tp in (2, 4, 8)]
GIB = 2**30


def config(**simulated: object) -> ModelConfig:
    return ModelConfig.model_validate({"source": "llama", "simulated": simulated or None})


def speeds(given: ModelConfig, on: Cluster) -> dict[Shape, PredictedSpeed]:
    return predicted_speeds(given, model(), SHAPES, on)


def test_wider_replicas_of_known_gpus_are_said_to_be_faster() -> None:
    found = speeds(config(), cluster("1x dgx-h100"))
    two, four, eight = (found[shape] for shape in SHAPES)
    assert eight.lone_step_s < four.lone_step_s < two.lone_step_s
    assert eight.prefill_tokens_per_s > 1.3 * four.prefill_tokens_per_s
    assert eight.decode_tokens_per_s > four.decode_tokens_per_s > two.decode_tokens_per_s
    # The weights are read once for each token: 141 GB by eight GPUs of 3.35 TB/s.
    assert 141 / 8 / 3350 < eight.lone_step_s < 3 * 141 / 8 / 3350


def test_of_unknown_gpus_nothing_is_said() -> None:
    gpu = Gpu(name="simulated", memory_bytes=200 * GIB)
    assert speeds(config(), Cluster(nodes=(Node(name="a", island="a", gpus=8, gpu=gpu),))) == {}


def test_a_simulated_engine_is_as_fast_as_it_is_told_to_be() -> None:
    gpu = Gpu(name="simulated", memory_bytes=GIB)
    on = Cluster(nodes=(Node(name="a", island="a", gpus=8, gpu=gpu),))
    usual, hurried = (speeds(config(gpu="h100_sxm", time_scale=scale), on)[Shape(tp=8)] for scale in (1.0, 10.0))
    assert hurried.decode_tokens_per_s == pytest.approx(10 * usual.decode_tokens_per_s)
    assert hurried.lone_step_s == pytest.approx(usual.lone_step_s / 10)


def test_a_shape_that_the_islands_cannot_hold_has_no_speed() -> None:
    assert Shape(tp=8) not in speeds(config(), cluster("l40s-4"))
