"""The replicas of one model in simulation: they start, serve, drain, and hand over the streams they cannot finish."""

import math
from collections import Counter

import numpy as np

from autoscaling.observation import Pools, pools_of
from autoscaling.simulation.engines import EngineFor
from autoscaling.simulation.reconciling import Step, next_step, refusal, seat
from autoscaling.simulation.records import REFUSED, Records
from autoscaling.simulation.routing import cheapest
from autoscaling.simulation.scenario import Scenario, ScenarioError
from autoscaling.simulation.units import Phase, Unit, new_unit
from placement import Layout, Shape

_DRAIN_LOOK_S = 1.0  # how often the controller looks whether a replica has drained


class Fleet:
    """What runs, and which requests it has.

    `advance` must be called at every `next_s`, in the order of time with `arrive` and `want`. `held` are pools that
    hold GPUs, each with the time from which on.
    """

    def __init__(
        self,
        scenario: Scenario,
        records: Records,
        engine_for: EngineFor,
        lengths: tuple[float, float],
        generator: np.random.Generator,
    ) -> None:
        self.desired = pools_of(scenario.initial)
        self.version = 1
        self.units: list[Unit] = []
        self.shapes: list[Shape] = []  # of every replica there ever was, by number
        self.serving: list[Unit] = []
        self.next_s = math.inf
        self.held: list[tuple[float, Pools]] = []
        self._scenario, self._records, self._generator = scenario, records, generator
        self._engine_for, self._lengths = engine_for, lengths
        self._unrouted: list[int] = []
        if why := refusal(self.desired, scenario):
            raise ScenarioError(f"initial pools: {why}.")
        for layout in seat(Counter(self.desired).elements(), (), scenario) or ():
            self._add(layout, "serving", math.inf)
        self._look(0.0)

    def arrive(self, index: int, at_s: float) -> None:
        """A request arrives: it goes to a replica, is held while none serves, or is refused."""
        if not self.serving:
            self._unrouted.append(index)
            return
        scenario, records = self._scenario, self._records
        prompt = records.requests.prompts[index]
        unit = cheapest(self.serving, at_s, prompt, self._lengths[1], scenario.max_ttft_s, scenario.max_queued_requests)
        if unit is None:
            records.units[index] = REFUSED
            return
        unit.replica.send(at_s, index)
        records.units[index] = unit.number

    def want(self, pools: Pools, at_s: float) -> tuple[str, str]:
        """A new target: on which way it will be reached, and why not if it cannot be (the old one then stays)."""
        if why := refusal(pools, self._scenario):
            return "none", why
        self.desired = pools_of(pools)
        self.version += 1
        way = self._look(at_s)
        return way, ""

    def advance(self, at_s: float) -> None:
        """Starts and drains that are over at `at_s`, and what follows from them."""
        for unit in [unit for unit in self.units if unit.phase == "starting" and unit.until_s <= at_s]:
            unit.phase, unit.until_s = "serving", math.inf
            unit.replica.now_s = at_s
        self.serving = [unit for unit in self.units if unit.phase == "serving"]
        self._route_held(at_s)
        for unit in [unit for unit in self.units if unit.phase == "draining"]:
            unit.replica.advance(at_s)
            if not unit.replica.outstanding or unit.until_s <= at_s:
                unit.phase, unit.until_s = "stopping", at_s + self._scenario.times.stop_s
                self._move(unit, at_s)
        self.units = [unit for unit in self.units if unit.phase != "stopping" or unit.until_s > at_s]
        self._look(at_s)

    def catch_up(self, at_s: float) -> None:
        """Let every replica do what it has done by `at_s`."""
        for unit in self.units:
            unit.replica.advance(at_s)

    def use_lengths(self, input_tokens: float, output_tokens: float, at_s: float) -> None:
        """From now on requests are about so long: the replicas take the tables of these lengths."""
        self._lengths = input_tokens, output_tokens
        for unit in self.units:
            unit.use(self._engine_for(unit.shape, input_tokens, output_tokens), at_s)

    def pools(self, phase: Phase) -> Pools:
        """Replicas in this phase."""
        return pools_of(Counter(unit.shape for unit in self.units if unit.phase == phase))

    @property
    def is_changing(self) -> bool:
        """Whether the target is not reached yet."""
        return len(self.serving) < len(self.units) or self.pools("serving") != self.desired

    @property
    def waits_unrouted(self) -> int:
        """Requests that wait for any replica to serve."""
        return len(self._unrouted)

    def _look(self, at_s: float) -> str:
        """Carry out steps towards the target until there is nothing more to do now; the first one's way."""
        first = "none"
        while True:
            step = next_step(self.units, self.desired, self._scenario)
            first = step.way if first == "none" else first
            if not (step.starts or step.cancels or step.drains):
                break
            self._carry_out(step, at_s)
        self.serving = [unit for unit in self.units if unit.phase == "serving"]
        self.next_s = min((self._event_s(unit, at_s) for unit in self.units), default=math.inf)
        holds = pools_of(Counter(unit.shape for unit in self.units))
        if not self.held or self.held[-1][1] != holds:
            self.held.append((at_s, holds))
        return first

    def _carry_out(self, step: Step, at_s: float) -> None:
        for unit in step.cancels:
            self.units.remove(unit)
        for layout in step.starts:
            self._add(layout, "starting", at_s + self._start_s(layout))
        # In a swap nothing serves until the seats are free: streams are taken out at once.
        drain_s = 0.0 if step.way == "swap" else self._scenario.times.drain_s
        for unit in step.drains:
            unit.phase, unit.until_s = "draining", at_s + drain_s

    def _event_s(self, unit: Unit, at_s: float) -> float:
        if unit.phase == "draining":
            return min(unit.until_s, at_s + _DRAIN_LOOK_S)
        return unit.until_s

    def _add(self, layout: Layout, phase: Phase, until_s: float) -> None:
        engine = self._engine_for(layout.shape, *self._lengths)
        patience_s, requests = self._scenario.patience_s, self._records.requests
        self.units.append(new_unit(len(self.shapes), layout, phase, until_s, engine, requests, patience_s))
        self.shapes.append(layout.shape)

    def _start_s(self, layout: Layout) -> float:
        variance = math.log1p(self._scenario.start_spread**2)
        drawn = float(self._generator.lognormal(-variance / 2, math.sqrt(variance)))
        return self._scenario.times.start_s(layout.shape) * drawn

    def _move(self, unit: Unit, at_s: float) -> None:
        """What a unit has not finished goes on elsewhere, the tokens it was given recomputed as part of the prompt."""
        for index, given in unit.replica.give_up(at_s):
            self._records.move(index, given, at_s)
            self._unrouted.append(index)
        self._route_held(at_s)

    def _route_held(self, at_s: float) -> None:
        """Requests that were taken are not refused any more, but their clients may have left."""
        if not self.serving:
            return
        records = self._records
        for index in sorted(self._unrouted):
            arrival_s, begun = records.arrivals_s[index], index in records.began_s
            if not begun and at_s - arrival_s > self._scenario.patience_s:
                continue
            prompt = records.requests.prompts[index]
            unit = cheapest(self.serving, at_s, prompt, self._lengths[1], math.inf, len(records.units))
            assert unit is not None
            unit.replica.send(at_s, index)
            records.units[index] = unit.number
            if not begun:  # patience counts from the arrival
                records.requests.sent_s[index] = arrival_s
        self._unrouted.clear()
