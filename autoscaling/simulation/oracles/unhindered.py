"""What a fleet misses at the least around a moment of a trace, whatever serves before and after.

Each stretch of the trace is served by itself: the fleet has nothing to do when it begins, and nothing arrives after it.
Its middle half is counted. Stretches overlap by a half, so that every request is counted once, but for those at both
ends of the trace.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from autoscaling.observation import Array, Pools, gpus_of, pools_of
from autoscaling.simulation.engines import EngineFor, engines_of
from autoscaling.simulation.observing import keeps
from autoscaling.simulation.reconciling import refusal, seat
from autoscaling.simulation.routing import cheapest
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.traces import Trace
from autoscaling.simulation.units import Unit, new_unit
from placement import Layout
from placement.cost.simulation_replica import Requests

_ENOUGH = 30  # requests that say how long they are, as in `observing`


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Unhindered:
    """`missed` has a row for each of `fleets`, the empty one first, and a column for each stretch.

    Stretch n lasts from `n * window_s` for two windows. `arrivals` are those of the whole trace that count.
    """

    window_s: float
    fleets: tuple[Pools, ...]
    missed: Array
    arrivals: int


def unhindered(trace: Trace, scenario: Scenario, window_s: float) -> Unhindered:
    """Of all fleets that the cluster holds. One that is larger than one that misses nothing misses nothing."""
    fleets, served = _fleets(scenario), _Stretches(trace, scenario, window_s)
    known: dict[tuple[int, ...], Array] = {}
    for pools in fleets:
        counts = tuple(pools.get(shape, 0) for shape in scenario.site.shapes)
        fewer = [known[less] for less in _one_less(counts) if less in known]
        known[counts] = served.missed(pools, np.min(fewer, axis=0) > 0) if fewer else served.missed_by_nobody()
    return Unhindered(
        window_s=window_s,
        fleets=fleets,
        missed=np.array(list(known.values())),
        arrivals=int(np.count_nonzero(trace.arrivals_s >= scenario.settling_s)),
    )


def _fleets(scenario: Scenario) -> tuple[Pools, ...]:
    """Nothing, and every fleet there is room for; smaller ones before those that contain them."""
    shapes, most = scenario.site.shapes, scenario.max_gpus
    counts = product(*(range(most // shape.gpus + 1) for shape in shapes))
    every = [pools_of(dict(zip(shapes, each, strict=True))) for each in counts]
    fitting = [pools for pools in every if not pools or not refusal(pools, scenario)]
    return tuple(sorted(fitting, key=gpus_of))


def _one_less(counts: Sequence[int]) -> Iterable[tuple[int, ...]]:
    for at, count in enumerate(counts):
        if count:
            yield (*counts[:at], count - 1, *counts[at + 1 :])


class _Stretches:
    """Serves stretches of a trace."""

    def __init__(self, trace: Trace, scenario: Scenario, window_s: float) -> None:
        self._trace, self._scenario, self._window_s = trace, scenario, window_s
        self._engine_for: EngineFor = engines_of(scenario.site, scenario.truth, scenario.prefix_hit_rate)
        self._count = max(0, math.ceil(trace.duration_s / window_s) - 1)
        half_s = np.arange(2 * self._count + 3) * window_s / 2
        self._borders = np.searchsorted(trace.arrivals_s, half_s).tolist()
        self._counted = trace.arrivals_s >= scenario.settling_s
        count = len(trace)
        self._requests = Requests(
            prompts=trace.input_tokens.tolist(),
            answers=trace.output_tokens.tolist(),
            sent_s=[math.inf] * count,
            first_s=[math.inf] * count,
            ended_s=[math.inf] * count,
        )
        self._arrivals_s = trace.arrivals_s.tolist()

    def missed_by_nobody(self) -> Array:
        """Where nothing serves all is missed, unless it may wait for what comes."""
        ttft_s = self._scenario.slo.ttft_s
        waits = ttft_s is None or ttft_s > self._window_s / 2
        return np.array([0.0 if waits else self._counted[self._middle(one)].sum() for one in range(self._count)])

    def missed(self, pools: Pools, where: Array) -> Array:
        """What `pools` miss in the stretches of `where`; 0 elsewhere."""
        shapes = [shape for shape, replicas in pools.items() for _ in range(replicas)]
        layouts = seat(sorted(shapes, key=lambda shape: (-shape.tp, -shape.gpus, str(shape))), (), self._scenario)
        assert layouts is not None
        found = np.zeros(self._count)
        for stretch in np.flatnonzero(where).tolist():
            found[stretch] = self._missed(layouts, stretch)
        return found

    def _missed(self, layouts: Sequence[Layout], stretch: int) -> float:
        begin, end, middle = self._borders[2 * stretch], self._borders[2 * stretch + 4], self._middle(stretch)
        requests, trace = self._requests, self._trace
        requests.first_s[begin:end] = requests.ended_s[begin:end] = [math.inf] * (end - begin)
        self._serve(layouts, begin, end, stretch * self._window_s)
        first_s, ended_s = np.array(requests.first_s[middle]), np.array(requests.ended_s[middle])
        more = trace.output_tokens[middle] - 1
        with np.errstate(invalid="ignore"):  # of what never ended
            tpot_s = np.where(more > 0, (ended_s - first_s) / np.maximum(more, 1), 0.0)
            good = np.isfinite(ended_s) & keeps(self._scenario.slo, first_s - trace.arrivals_s[middle], tpot_s)
        return float(np.count_nonzero(self._counted[middle] & ~good))

    def _middle(self, stretch: int) -> slice:
        return slice(self._borders[2 * stretch + 1], self._borders[2 * stretch + 3])

    def _serve(self, layouts: Sequence[Layout], begin: int, end: int, from_s: float) -> None:
        """The requests from `begin` to `end` and no others; the replicas are as fast as at that time of the trace."""
        scenario, requests = self._scenario, self._requests
        tick = math.floor(from_s / scenario.tick_s)
        inputs, outputs = self._lengths(tick)
        units: list[Unit] = []
        for number, layout in enumerate(layouts):
            engine = self._engine_for(layout.shape, inputs, outputs)
            units.append(new_unit(number, layout, "serving", math.inf, engine, requests, scenario.patience_s))
        for index in range(begin, end):
            at_s = self._arrivals_s[index]
            while (tick + 1) * scenario.tick_s <= at_s:
                tick += 1
                inputs, outputs = self._lengths(tick)
                for unit in units:
                    unit.use(self._engine_for(unit.shape, inputs, outputs), tick * scenario.tick_s)
            prompt, most_s = requests.prompts[index], scenario.max_ttft_s
            taken = cheapest(units, at_s, prompt, outputs, most_s, scenario.max_queued_requests)
            if taken is not None:
                taken.replica.send(at_s, index)
        for unit in units:
            unit.replica.run(math.inf)

    def _lengths(self, tick: int) -> tuple[float, float]:
        """Mean tokens of prompts and answers that the replicas go by from this tick on."""
        trace = self._trace
        if not tick:
            recent = slice(0, 100)
        else:
            end = int(np.searchsorted(trace.arrivals_s, tick * self._scenario.tick_s))
            last_s = trace.arrivals_s[max(0, end - 1)]
            start = int(np.searchsorted(trace.arrivals_s, last_s - self._scenario.window_s))
            recent = slice(max(0, min(start, end - _ENOUGH)), max(1, end))
        return float(trace.input_tokens[recent].mean()), float(trace.output_tokens[recent].mean())
