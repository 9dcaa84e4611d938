"""The run itself: arrivals, starts, drains and ticks of the policy, in the order of time."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from autoscaling.decision import Decision, Option
from autoscaling.observation import Pools, pools_of
from autoscaling.simulation.engines import EngineFor, engines_of
from autoscaling.simulation.figures import Change, result_of
from autoscaling.simulation.fleet import Fleet
from autoscaling.simulation.observing import Observer
from autoscaling.simulation.records import records_of
from autoscaling.simulation.result import Decided, Result
from autoscaling.simulation.scenario import Policy, Scenario
from autoscaling.simulation.traces import Trace, TraceError
from placement import Shape

_SETTLES_S = 7200.0  # after the last arrival changes go on for so long, for the streams that are under way


def run(trace: Trace, scenario: Scenario, policy: Policy, seed: int, *, engine_for: EngineFor | None = None) -> Result:
    """Every request of `trace` through the fleet of `scenario` under `policy`; equal arguments give equal results.

    `engine_for` replaces the cost model's step tables. The policy is asked until the last arrival; what is then under
    way goes on to its end. Raises `TraceError` for a trace without requests, `ScenarioError` where the fleet cannot be.
    """
    if not len(trace):
        raise TraceError("the trace has no requests; give at least one.")
    made = engine_for or engines_of(scenario.site, scenario.truth, scenario.prefix_hit_rate)
    records = records_of(trace)
    begin = (float(trace.input_tokens[:100].mean()), float(trace.output_tokens[:100].mean()))
    fleet = Fleet(scenario, records, made, begin, np.random.default_rng(seed))
    control = _Control(scenario, policy, fleet, Observer(scenario, records, fleet))
    next_s = min(control.next_s, fleet.next_s)
    for index, at_s in enumerate(records.arrivals_s):
        while next_s <= at_s:
            if fleet.next_s <= next_s:
                fleet.advance(next_s)
            else:
                control.tick(next_s, index)
            next_s = min(control.next_s, fleet.next_s)
        fleet.arrive(index, at_s)
    _finish(fleet, trace.duration_s)
    return result_of(
        records,
        scenario,
        policy=policy.name,
        seed=seed,
        held=fleet.held,
        changes=control.changes,
        decisions=control.decisions,
    )


def _finish(fleet: Fleet, end_s: float) -> None:
    """Let changes come to their end, and then every answer."""
    while fleet.next_s < end_s + _SETTLES_S and (fleet.waits_unrouted or fleet.is_changing):
        fleet.advance(fleet.next_s)
    for unit in fleet.units:
        unit.replica.run(math.inf)


class _Control:
    """The policy's side: asked every tick, and its decisions passed on."""

    def __init__(self, scenario: Scenario, policy: Policy, fleet: Fleet, observer: Observer) -> None:
        self.next_s = scenario.tick_s
        self.changes: list[Change] = []
        self.decisions: list[Decided] = []
        self._tick_s, self._policy, self._fleet, self._observer = scenario.tick_s, policy, fleet, observer
        self._state = policy.start()

    def tick(self, at_s: float, arrived: int) -> None:
        self.next_s = at_s + self._tick_s
        fleet = self._fleet
        fleet.catch_up(at_s)
        observation = self._observer.look(at_s, arrived)
        fleet.use_lengths(*self._observer.lengths(), at_s)
        decision, self._state = self._policy.decide(observation, self._state)
        target = pools_of(decision.target)
        if decision.kind == "hold" or target == fleet.desired:
            self._note_hold(decision)
            return
        before = fleet.desired
        way, why = fleet.want(target, at_s)
        if not why:
            self.changes.append((at_s, before, target))
        self.decisions.append(replace(decided(decision), way=way, accepted=not why, answer=why))

    def _note_hold(self, decision: Decision) -> None:
        last = self.decisions[-1] if self.decisions else None
        if last is not None and last.kind == "hold" and last.cause == decision.cause:
            self.decisions[-1] = replace(last, ticks=last.ticks + 1)
        else:
            self.decisions.append(replace(decided(decision), kind="hold"))


def decided(decision: Decision) -> Decided:
    """A decision as plain values."""
    return Decided(
        at_s=decision.at_s,
        kind=decision.kind,
        cause=decision.cause,
        target=_counts(decision.target),
        reason=decision.reason,
        expected=None if decision.expected is None else asdict(decision.expected),
        options=tuple(_plain(option) for option in decision.options),
    )


def _plain(option: Option) -> dict[str, Any]:
    return {
        "kind": option.kind,
        "pools": _counts(option.pools),
        "price": asdict(option.price),
        "why": option.why,
    }


def _counts(pools: Pools | Mapping[Shape, int]) -> dict[str, int]:
    return {str(shape): replicas for shape, replicas in pools.items()}
