"""A model whose capacities can be worked out on paper, observations of it, and a fleet that does what is decided."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from placement_builders import cluster_of

from autoscaling.capacity.performance import Capacity
from autoscaling.capacity.times import Times
from autoscaling.capacity.transitions import transition
from autoscaling.decision import Decision
from autoscaling.observation import (
    Blind,
    Demand,
    Fleet,
    History,
    Observation,
    PoolLoad,
    Pools,
    gpus_of,
    pools_of,
    spelled,
)
from autoscaling.policy.decide import decide
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from placement import Cluster, Lengths, Shape, Slo

TICK_S, WINDOW_S, STEP_S = 15.0, 60.0, 60.0
START_S = 90.0
TP1, TP2, TP4, TP8 = (Shape(tp=tp) for tp in (1, 2, 4, 8))
TP8EP8, EP16 = Shape(tp=8, ep=8), Shape(tp=8, ep=16, dp=2)
NODE = cluster_of(8, 8, 8, 8)


@dataclass(frozen=True, slots=True)
class Analytic:
    """`Performance` by formulas. Requests go through at tokens/s that grow with gpus^`scaling`.

    TPOT of a lone request is 5 ms + 60 ms / gpus, TTFT its prompt over 8,000 tokens/s x gpus^0.9; the KV cache has
    80,000 tokens per GPU less 70,000. What the SLO leaves beyond the lone times is the share of saturation that keeps
    it. With whole experts (`ep`) tokens go through at `expert_gain` times the speed, and lone ones take 10 ms longer.
    """

    slower: Mapping[Shape, float] = field(default_factory=dict)
    expert_gain: float = 1.5
    scaling: float = 0.9

    def capacity(self, shape: Shape, demand: Demand, slo: Slo, *, replicas: int = 1) -> Capacity:
        gpus, inputs, outputs = shape.gpus, demand.input_tokens.mean_tokens, demand.output_tokens.mean_tokens
        speed = gpus**self.scaling * (self.expert_gain if shape.ep > 1 else 1.0) / self.slower.get(shape, 1.0)
        lone_tpot_s = 0.005 + 0.060 / gpus + (0.010 if shape.ep > 1 else 0.0)
        lone_ttft_s = inputs / (8000 * gpus**0.9)
        room = 80_000 * gpus - 70_000
        concurrent = room / (inputs + outputs)
        saturation = min(1 / (inputs / (8000 * speed) + outputs / (1500 * speed)), concurrent / (outputs * lone_tpot_s))
        left = {
            "tpot": 1 - lone_tpot_s / slo.tpot_s if slo.tpot_s else 0.9,
            "ttft": 1 - lone_ttft_s / slo.ttft_s if slo.ttft_s else 0.9,
            "kv": 0.9 if concurrent >= 2 else 0.0,
        }
        binding = min(left, key=left.__getitem__)
        return Capacity(
            shape=shape,
            requests_per_s=saturation * max(0.0, min(0.9, left[binding])),
            saturation_per_s=saturation,
            lone_ttft_s=lone_ttft_s,
            lone_tpot_s=lone_tpot_s,
            room_tokens=room,
            prefill_tokens_per_s=8000 * speed,
            binding=binding,
            attainments=((0.0, 1.0), (1.0, slo.percentile), (1.5, 0.0)) if left[binding] > 0 else ((0.0, 0.0),),
        )

    def attainment(self, pools: Pools, demand: Demand, slo: Slo) -> float:
        raise AssertionError("the policy reads attainment off the capacities")


TIMES = Times(starts_s=dict.fromkeys((TP1, TP2, TP4, TP8, TP8EP8, EP16), START_S), drain_s=30.0)


def pools(text: str) -> Pools:
    """`pools("2 x tp2 + 1 x tp8")`; `pools("")` is nothing."""
    parts = (part.split(" x ") for part in text.split(" + ") if part)
    return pools_of({Shape.parse(name): int(replicas) for replicas, name in parts})


def demand(rate: float, inputs: float = 512, outputs: float = 128) -> Demand:
    return Demand(
        requests_per_s=rate,
        input_tokens=Lengths(mean_tokens=inputs, spread=0.5),
        output_tokens=Lengths(mean_tokens=outputs, spread=0.5),
    )


def rules(tpot_ms: float | None = 60, ttft_ms: float | None = 1000, **given: Any) -> Rules:
    slo = Slo(
        ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
        tpot_s=None if tpot_ms is None else tpot_ms / 1e3,
        percentile=0.95,
    )
    return Rules(slo=slo, **{"shapes": (TP1, TP2, TP4, TP8), "forecast": False, **given})


def history(demands: Iterable[Demand], end_s: float) -> History:
    """One demand for each step."""
    rows = [
        (one.requests_per_s, one.requests_per_s * one.input_tokens.mean_tokens, one.decode_tokens_per_s)
        for one in demands
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return History(
        step_s=STEP_S,
        end_s=end_s,
        requests_per_s=columns[0],
        answered_per_s=columns[0],
        input_tokens_per_s=columns[1],
        output_tokens_per_s=columns[2],
    )


def fleet(serving: Pools, *, desired: Pools | None = None, changing: bool = False, **given: Any) -> Fleet:
    desired = serving if desired is None else desired
    return Fleet(
        version=1,
        desired=desired,
        serving=serving,
        starting={},
        changing=changing,
        **{"cluster": NODE, **given},
    )


def observation(
    at_s: float, asked: Demand, of: Fleet, past: History | None = None, *, waiting: float = 0.0, **given: Any
) -> Observation:
    loads = tuple(
        PoolLoad(
            shape=shape, replicas=replicas, running=8.0 * replicas, waiting=waiting, kv_usage=0.3, requests_per_s=1
        )
        for shape, replicas in of.serving.items()
    )
    return Observation(
        at_s=at_s,
        window_s=WINDOW_S,
        demand=asked,
        history=past or history([asked] * 5, at_s),
        pools=loads,
        fleet=of,
        **given,
    )


@dataclass(frozen=True, slots=True)
class Act:
    """A decision that was no hold."""

    at_s: float
    kind: str
    target: str


@dataclass(slots=True)
class Play:
    """A fleet that carries every decision out, as the controller would, under a demand that is given over time.

    Rates and lengths are seen as means over the last minute. `decisions` are all of them, `acts` those that changed
    something. `blind` are the times at which nothing can be seen.
    """

    asked: Callable[[float], Demand]
    initial: Pools
    rules: Rules
    performance: Analytic = field(default_factory=Analytic)
    cluster: Cluster = NODE
    blind: Callable[[float], bool] = lambda at_s: False
    seen: Mapping[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    desired: Pools = field(default_factory=dict)
    before: Pools = field(default_factory=dict)
    ready_s: float = 0.0
    _means: dict[tuple[float, float], Demand] = field(default_factory=dict)

    def until(self, end_s: float, *, start_s: float = 0.0) -> "Play":
        """Every tick from `start_s` to `end_s`."""
        self.desired = self.before = self.initial
        for tick in range(int((end_s - start_s) // TICK_S)):
            self._tick(start_s + tick * TICK_S)
        return self

    def pools_at(self, at_s: float) -> str:
        """The target at a time."""
        changed = [act.target for act in self.acts if act.at_s <= at_s]
        return changed[-1] if changed else spelled(self.initial)

    def _tick(self, at_s: float) -> None:
        decision, self.memory = decide(self._seen(at_s), self.memory, self.rules, self.performance, TIMES)
        self.decisions.append(decision)
        if decision.kind == "hold":
            return
        way = transition(
            self.desired, decision.target, gpus=gpus_of_cluster(self.cluster), times=TIMES, floor=self.rules.floor
        )
        assert way is not None, f"no way from {spelled(self.desired)} to {spelled(decision.target)}"
        self.acts.append(Act(at_s, decision.kind, spelled(decision.target)))
        self.before, self.desired, self.ready_s = self.desired, decision.target, at_s + way.duration_s

    def _seen(self, at_s: float) -> Observation | Blind:
        if self.blind(at_s):
            return Blind(at_s=at_s, kind="stale", why="the last sample is old")
        changing = at_s < self.ready_s
        of = fleet(
            self.before if changing else self.desired, desired=self.desired, changing=changing, cluster=self.cluster
        )
        end_s = math.floor(at_s / STEP_S) * STEP_S
        steps = [self._mean(end_s - step * STEP_S, STEP_S) for step in range(30)][::-1]
        return observation(at_s, self._mean(at_s, WINDOW_S), of, history(steps, end_s), **self.seen)

    def _mean(self, end_s: float, window_s: float) -> Demand:
        if (end_s, window_s) not in self._means:
            self._means[end_s, window_s] = self._averaged(end_s, window_s)
        return self._means[end_s, window_s]

    def _averaged(self, end_s: float, window_s: float) -> Demand:
        samples = [self.asked(end_s - (part + 0.5) * window_s / 12) for part in range(12)]
        rate = sum(one.requests_per_s for one in samples) / len(samples)
        if not rate:
            return demand(0.0)
        inputs = sum(one.requests_per_s * one.input_tokens.mean_tokens for one in samples) / len(samples) / rate
        outputs = sum(one.decode_tokens_per_s for one in samples) / len(samples) / rate
        return demand(rate, inputs, outputs)


def gpus_of_cluster(cluster: Cluster) -> int:
    return sum(node.gpus for node in cluster.nodes)


def held(decisions: Iterable[Decision]) -> list[int]:
    """GPUs of each target."""
    return [gpus_of(decision.target) for decision in decisions]
