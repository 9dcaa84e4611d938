"""Small simulated fleets whose every step can be worked out by hand, for the tests of `autoscaling.simulation`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from autoscaling.capacity.site import Site, site_of
from autoscaling.capacity.times import Times
from autoscaling.decision import Decision, Kind
from autoscaling.observation import Blind, Observation, Pools, pools_of
from autoscaling.simulation.engines import Engine, EngineFor, engine_of
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace
from placement import ModelSpec, Shape, Slo, cluster_of
from placement.cost.simulation_replica import StepTable
from placement.models import catalogue

TP2, TP4, TP8 = (Shape(tp=width) for width in (2, 4, 8))

# A pass takes 10 ms with decodes, and 1 ms more for each 100 prompt tokens.
PLAIN = StepTable(
    stages=1,
    ranks=1,
    decodes=(1.0, 16.0),
    prompt_tokens=(0.0, 8192.0),
    decode_s=(0.01, 0.01),
    added_s=((0.0, 0.0), (0.08192, 0.08192)),
    prompt_only_s=(0.0, 0.08192),
    http_s=0.0,
    request_s=0.0,
    computed_share=1.0,
)


@cache
def site(machines: int = 1) -> Site:
    """A 70B model on eight H100 each."""
    config = catalogue.config("meta-llama/Llama-3.1-70B")
    assert config is not None
    model = ModelSpec.from_hf_config(config, name="meta-llama/Llama-3.1-70B")
    return site_of(model, cluster_of("dgx-h100", machines), shapes=(TP2, TP4, TP8))


def scenario(**changes: Any) -> Scenario:
    """One tp4 on eight GPUs; replicas start in exactly 60 s."""
    fields: dict[str, Any] = {
        "site": site(),
        "slo": Slo(ttft_s=1.0, tpot_s=0.05, percentile=0.9),
        "initial": {TP4: 1},
        "max_gpus": 8,
        "times": Times(starts_s={TP2: 60.0, TP4: 60.0, TP8: 60.0}, drain_s=30.0, stop_s=5.0),
        "start_spread": 0.0,
    }
    return Scenario(**(fields | changes))


def plain(*, room_tokens: float = 1e6, max_running: int = 256) -> EngineFor:
    """Every replica of every shape is `PLAIN`."""

    @cache
    def engine(input_tokens: float, output_tokens: float) -> Engine:
        return engine_of(
            PLAIN,
            room_tokens=room_tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            max_running=max_running,
        )

    return lambda shape, input_tokens, output_tokens: engine(100.0, 100.0)


def even(rate: float, duration_s: float, prompt: int = 100, answer: int = 11) -> Trace:
    """Equal requests at equal distances."""
    count = math.floor(rate * duration_s)
    return Trace(
        arrivals_s=np.arange(1, count + 1) / rate,
        input_tokens=np.full(count, float(prompt)),
        output_tokens=np.full(count, float(answer)),
        name="even",
    )


@dataclass(slots=True, kw_only=True)
class Scripted:
    """Wants what the script says from the first tick at or after its times on, and keeps what it was shown."""

    script: Mapping[float, Pools]
    seen: list[Observation | Blind] = field(default_factory=list)
    name: str = "scripted"

    def start(self) -> Any:
        return None

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        self.seen.append(observation)
        due = [pools for at_s, pools in self.script.items() if at_s <= observation.at_s]
        target = pools_of(due[-1]) if due else state
        kind: Kind = "hold" if target is None or target == state else "replicas"
        decision = Decision(
            at_s=observation.at_s, kind=kind, cause="cheapest", target=target or {}, reason="the script says so"
        )
        return decision, target
