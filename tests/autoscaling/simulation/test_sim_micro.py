"""The micro-scenarios pose the question they say: what runs at first is right before, and `right` is after."""

from dataclasses import replace

import numpy as np
import pytest

from autoscaling.capacity.performance import PlannedPerformance
from autoscaling.observation import Pools, gpus_of
from autoscaling.simulation.micro import CHANGE_S, MICROS, Micro
from autoscaling.simulation.policies import POLICIES, Static
from autoscaling.simulation.result import Result
from autoscaling.simulation.run import run
from placement import ModelSpec
from placement.models import catalogue

_SETTLED_S = 120.0


def _model(name: str) -> ModelSpec:
    config = catalogue.config(name)
    assert config is not None
    return ModelSpec.from_hf_config(config, name=name)


def _run(micro: Micro, pools: Pools) -> Result:
    scenario = replace(micro.scenario(_model), initial=pools)
    return run(micro.trace(seed=1), scenario, Static(pools=pools), seed=0)


def _kept(result: Result, from_s: float, until_s: float = np.inf) -> float:
    """Attainment of the arrivals between two times."""
    minutes = [
        (rate, share)
        for at_s, rate, share in zip(
            result.series.minute_s, result.series.requests_per_s, result.series.attainment, strict=True
        )
        if from_s <= at_s < until_s and share is not None
    ]
    return sum(rate * share for rate, share in minutes) / sum(rate for rate, _ in minutes)


@pytest.mark.slow
@pytest.mark.parametrize("name", MICROS)
def test_the_right_answer_is_right(name: str) -> None:
    micro = MICROS[name]
    before, after = _run(micro, micro.initial), _run(micro, micro.right)
    settled_s = CHANGE_S + _SETTLED_S
    assert _kept(before, _SETTLED_S, CHANGE_S) >= micro.slo.percentile
    assert _kept(after, settled_s) >= micro.slo.percentile
    if gpus_of(micro.right) >= gpus_of(micro.initial) and micro.right != micro.initial:
        assert _kept(before, settled_s) < micro.slo.percentile, "nothing would have to be done"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", MICROS)
def test_our_policy_gives_the_right_answer(name: str) -> None:
    """On five traces, as one may be right by luck."""
    micro = MICROS[name]
    scenario = micro.scenario(_model)
    performance = PlannedPerformance(scenario.site)
    ends = []
    for seed in range(5):
        trace = micro.trace(seed)
        result = run(trace, scenario, POLICIES["archipelago"](scenario, trace, performance), seed)
        changes = [decision.target for decision in result.decisions if decision.kind != "hold" and decision.accepted]
        ends.append(changes[-1] if changes else _spelled(micro.initial))
    assert ends == [_spelled(micro.right)] * 5


def _spelled(pools: Pools) -> dict[str, int]:
    return {str(shape): count for shape, count in pools.items()}
