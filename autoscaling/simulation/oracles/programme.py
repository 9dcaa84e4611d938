"""The dynamic programme over (fleet, minute) that knows what every fleet would miss in every minute.

It minimises GPU-seconds plus a price for each request that misses the SLO. A change that fits beside what runs is begun
early enough to serve in time: it costs the GPUs that start and drain, and nothing else. One that does not fit takes
its minutes, in which less serves.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoscaling.capacity.transitions import Transition, transition
from autoscaling.observation import Array, Pools, gpus_of
from autoscaling.simulation.oracles.trials import MINUTE_S, Trials
from autoscaling.simulation.scenario import Scenario
from placement import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A change that takes whole minutes: what is missed in each of them by row of trials, and what is held."""

    minutes: int
    gpu_s: float
    shares: tuple[
        tuple[tuple[int, float], ...], ...
    ]  # of each minute: (row, share of it), the last row where nothing serves


class Programme:
    """Made once for some trials, solved for any price of a miss."""

    def __init__(self, trials: Trials, scenario: Scenario) -> None:
        self.trials, self._scenario = trials, scenario
        self._gpus = np.array([gpus_of(pools) for pools in trials.fleets], dtype=float)
        self._lump_gpu_s, self._lead_s = self._surges()
        self._moves: dict[tuple[int, int], Move | None] = {}
        # A row more for the time in which nothing serves.
        self._missed = np.vstack([trials.missed, trials.arrivals])

    def plan(self, gpu_s_per_miss: float) -> tuple[Pools, ...]:
        """What shall serve in every minute."""
        fleets, minutes = self.trials.missed.shape
        price = self._missed * gpu_s_per_miss
        best = np.zeros((minutes + 1, fleets))
        after = np.zeros((minutes, fleets), dtype=int)
        took = np.ones((minutes, fleets), dtype=int)
        for minute in range(minutes - 1, -1, -1):
            stay = price[:fleets, minute] + self._gpus * MINUTE_S + best[minute + 1]
            # From row to column: the change is over when the minute begins.
            cost = np.where(self._lead_s <= minute * MINUTE_S, self._lump_gpu_s + stay, math.inf)
            np.fill_diagonal(cost, stay)
            after[minute] = np.argmin(cost, axis=1)
            best[minute] = cost[np.arange(fleets), after[minute]]
            self._try_moves(minute, price, best, after, took)
        return self._walked(after, took)

    def _try_moves(self, minute: int, price: Array, best: Array, after: Array, took: Array) -> None:
        """Changes that cannot be begun early, where one could be better than what was found."""
        minutes = self.trials.missed.shape[1]
        least = best[minute + 1] + self._gpus * MINUTE_S
        late = (self._lead_s > minute * MINUTE_S) & (least[None, :] < best[minute][:, None])
        for one, other in zip(*np.nonzero(late), strict=True):
            move = self._move(int(one), int(other))
            if move is None or minute + move.minutes > minutes:
                continue
            cost = move.gpu_s + best[minute + move.minutes, other]
            for passed, shares in enumerate(move.shares):
                cost += sum(share * price[row, minute + passed] for row, share in shares)
            if cost < best[minute, one]:
                best[minute, one], after[minute, one], took[minute, one] = cost, other, move.minutes

    def _walked(self, after: Array, took: Array) -> tuple[Pools, ...]:
        minutes, row = len(after), self._row(self._scenario.initial)
        found: list[Pools] = []
        while len(found) < minutes:
            minute = len(found)
            row, length = int(after[minute, row]), int(took[minute, row])
            found += [self.trials.fleets[row]] * length
        return tuple(found)

    def _surges(self) -> tuple[Array, Array]:
        """From each fleet to each: GPU-seconds beyond what serves, and how early to begin; infinite without room."""
        fleets, scenario, times = self.trials.fleets, self._scenario, self._scenario.times
        gpu_s = np.zeros((len(fleets), len(fleets)))
        lead_s = np.zeros_like(gpu_s)
        for row, before in enumerate(fleets):
            for column, after in enumerate(fleets):
                more = {shape: count - before.get(shape, 0) for shape, count in after.items()}
                more = {shape: count for shape, count in more.items() if count > 0}
                fewer_gpus = gpus_of(before) + gpus_of(more) - gpus_of(after)
                fits = gpus_of(before) + gpus_of(more) <= scenario.max_gpus
                lead_s[row, column] = max((lead(scenario, shape) for shape in more), default=0.0) if fits else math.inf
                started = sum(shape.gpus * count * times.start_s(shape) for shape, count in more.items())
                gpu_s[row, column] = started + fewer_gpus * (times.drain_s + times.stop_s)
        return gpu_s, lead_s

    def _move(self, one: int, other: int) -> Move | None:
        if (one, other) not in self._moves:
            scenario, fleets = self._scenario, self.trials.fleets
            way = transition(
                fleets[one], fleets[other], gpus=scenario.max_gpus, times=scenario.times, floor=scenario.floor
            )
            self._moves[one, other] = None if way is None else self._measured(way)
        return self._moves[one, other]

    def _measured(self, way: Transition) -> Move:
        minutes = max(1, math.ceil(way.serves_s / MINUTE_S))
        ends_s = [*(stage.from_s for stage in way.stages[1:]), max(way.duration_s, minutes * MINUTE_S)]
        shares: list[list[tuple[int, float]]] = [[] for _ in range(minutes)]
        gpu_s = 0.0
        for stage, end_s in zip(way.stages, ends_s, strict=True):
            gpu_s += stage.gpus * (end_s - stage.from_s)
            row = self._nearest(stage.serving)
            for minute in range(minutes):
                begin_s = max(stage.from_s, minute * MINUTE_S)
                part_s = min(end_s, (minute + 1) * MINUTE_S) - begin_s
                if part_s > 0:
                    shares[minute].append((row, part_s / MINUTE_S))
        # What is held after the last minute is the target, which the next state pays for.
        held_s = max(0.0, way.duration_s - minutes * MINUTE_S)
        gpu_s -= way.stages[-1].gpus * held_s
        return Move(minutes=minutes, gpu_s=gpu_s, shares=tuple(map(tuple, shares)))

    def _row(self, pools: Pools) -> int:
        return self.trials.fleets.index(dict(pools))

    def _nearest(self, serving: Pools) -> int:
        """The largest fleet tried that `serving` contains."""
        within = [
            row
            for row, pools in enumerate(self.trials.fleets)
            if all(serving.get(shape, 0) >= count for shape, count in pools.items())
        ]
        return max(within, key=lambda row: self._gpus[row], default=len(self.trials.fleets))


def lead(scenario: Scenario, shape: Shape) -> float:
    """How early a replica must be wanted to serve in time: starts vary, and the policy is asked only every tick."""
    return scenario.times.start_s(shape) * (1 + 2 * scenario.start_spread) + scenario.tick_s
