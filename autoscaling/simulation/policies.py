"""The policies that `archipelago simulate --policy` knows, by name: ours, the rivals, and the oracles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from autoscaling.capacity.performance import Performance, PlannedPerformance
from autoscaling.capacity.times import Times
from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation, Pools, pools_of, spelled
from autoscaling.policy.decide import decide
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from autoscaling.simulation.oracles.clairvoyant import best_static, clairvoyant
from autoscaling.simulation.rivals import dynamo, dynamollm, hpa, ray_serve
from autoscaling.simulation.rivals.dynamo import Dynamo
from autoscaling.simulation.rivals.dynamollm import DynamoLlm
from autoscaling.simulation.rivals.hpa import Hpa
from autoscaling.simulation.rivals.pool import pool_of
from autoscaling.simulation.rivals.ray_serve import RayServe
from autoscaling.simulation.rivals.tuning import tuned
from autoscaling.simulation.scenario import Policy, Scenario
from autoscaling.simulation.traces import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Keeps what it is given."""

    pools: Pools = field(hash=False)
    name: str = "static"

    def start(self) -> Any:
        return None

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        reason = f"{spelled(self.pools)}, whatever happens"
        held = Decision(at_s=observation.at_s, kind="hold", cause="cheapest", target=self.pools, reason=reason)
        return held, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One replica more of the first shape while more than `most` requests wait per replica, one less at none."""

    pools: Pools = field(hash=False)
    max_gpus: int
    most: float = 4.0
    patience_ticks: int = 20
    name: str = "queue"

    def start(self) -> Any:
        return self.pools, 0

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        pools, idle = state
        shape, replicas = next(iter(pools.items()))
        if isinstance(observation, Blind):
            held = Decision(at_s=observation.at_s, kind="hold", cause="blind", target=pools, reason=observation.why)
            return held, state
        waiting = observation.waiting / replicas
        idle = 0 if waiting else idle + 1
        wanted = replicas
        if waiting > self.most:
            wanted = replicas + 1
        elif idle >= self.patience_ticks:
            wanted, idle = replicas - 1, 0
        wanted = min(max(1, wanted), math.floor(self.max_gpus / shape.gpus))
        target = pools_of({**pools, shape: wanted})
        decision = Decision(
            at_s=observation.at_s,
            kind="hold" if wanted == replicas else "replicas",
            cause="cheapest",
            target=target,
            reason=f"{waiting:.1f} requests wait per replica; {self.most:g} may",
        )
        return decision, (target, idle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archipelago:
    """The real policy, with its memory as the state. The simulation begins at `begins_s` (since the epoch)."""

    rules: Rules
    performance: Performance
    times: Times = field(hash=False)
    begins_s: float = 0.0
    name: str = "archipelago"

    def start(self) -> Any:
        return Memory()

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        dated = _later(observation, self.begins_s)
        decision, state = decide(dated, state, self.rules, self.performance, self.times)
        return replace(decision, at_s=observation.at_s), state


def _later(observation: Observation | Blind, by_s: float) -> Observation | Blind:
    """The same, seen `by_s` later: at a time of day instead of one of the simulation."""
    at_s = observation.at_s + by_s
    if isinstance(observation, Blind):
        return replace(observation, at_s=at_s)
    history = replace(observation.history, end_s=observation.history.end_s + by_s)
    return replace(observation, at_s=at_s, history=history)


class Maker(Protocol):
    """Makes a policy for a scenario. Only oracles and what is tuned in hindsight may look at the trace.

    `performance` is that of the scenario's site; None makes one. Giving the same one again saves its computations.
    """

    def __call__(self, scenario: Scenario, trace: Trace, performance: Performance | None = None) -> Policy: ...


def rules_of(scenario: Scenario, *, repartition: bool = True, forecast: bool = True) -> Rules:
    """The rules of a scenario, else the default ones, for its SLO, its shapes and its GPUs."""
    given = scenario.rules or Rules(slo=scenario.slo)
    return replace(
        given,
        slo=scenario.slo,
        shapes=scenario.site.shapes,
        max_gpus=scenario.max_gpus if given.max_gpus is None else min(scenario.max_gpus, given.max_gpus),
        floor=scenario.floor,
        repartition=repartition and given.repartition,
        forecast=forecast and given.forecast,
    )


def _ours(name: str, **rules: bool) -> Maker:
    return _priced(
        lambda scenario, trace, performance: Archipelago(
            rules=rules_of(scenario, **rules),
            performance=performance,
            times=scenario.times,
            begins_s=scenario.begins_s or 0.0,
            name=name,
        )
    )


def _priced(make: Callable[[Scenario, Trace, Performance], Policy]) -> Maker:
    def maker(scenario: Scenario, trace: Trace, performance: Performance | None = None) -> Policy:
        return make(scenario, trace, performance or PlannedPerformance(scenario.site))

    return maker


def _ray_serve(scenario: Scenario, trace: Trace, performance: Performance) -> Policy:
    pool = pool_of(scenario)
    return tuned((RayServe(pool=pool, target_ongoing_requests=one) for one in ray_serve.TARGETS), scenario, trace)


def _hpa(name: str, metric: Callable[[Observation], float], targets: Sequence[float]) -> Maker:
    def make(scenario: Scenario, trace: Trace, performance: Performance) -> Policy:
        pool = pool_of(scenario)
        return tuned((Hpa(pool=pool, metric=metric, target=one, name=name) for one in targets), scenario, trace)

    return _priced(make)


def _dynamo(scenario: Scenario, trace: Trace, performance: Performance) -> Policy:
    pool = pool_of(scenario)
    each = (Dynamo(pool=pool, slo=scenario.slo, performance=performance, load=load) for load in dynamo.LOADS)
    return tuned(each, scenario, trace)


def _dynamollm(scenario: Scenario, trace: Trace, performance: Performance) -> Policy:
    each = (
        DynamoLlm(
            shapes=scenario.site.shapes,
            max_gpus=scenario.max_gpus,
            slo=scenario.slo,
            performance=performance,
            load=load,
        )
        for load in dynamollm.LOADS
    )
    return tuned(each, scenario, trace)


POLICIES: dict[str, Maker] = {
    "static": _priced(lambda scenario, trace, performance: Static(pools=scenario.initial)),
    "queue": _priced(lambda scenario, trace, performance: Queue(pools=scenario.initial, max_gpus=scenario.max_gpus)),
    "archipelago": _ours("archipelago"),
    "no-repartition": _ours("no-repartition", repartition=False),
    "no-forecast": _ours("no-forecast", forecast=False),
    "ray-serve": _priced(_ray_serve),
    "hpa-queue": _hpa("hpa-queue", hpa.waiting, hpa.QUEUE_TARGETS),
    "hpa-kv": _hpa("hpa-kv", hpa.kv_usage, hpa.KV_TARGETS),
    "dynamo": _priced(_dynamo),
    "dynamollm": _priced(_dynamollm),
    "best-static": _priced(best_static),
    "clairvoyant": _priced(clairvoyant),
    "clairvoyant-no-repartition": _priced(partial(clairvoyant, repartition=False)),
}
