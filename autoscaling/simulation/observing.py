"""What the policy is told: what a scrape of the metrics showed some time ago, and the fleet's state of now.

As with the live metrics, the lengths of requests and their latencies are known when an answer is complete, the rate of
arrivals at once, refused ones among them. Nothing of the trace is told before it has happened.
"""

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autoscaling.observation import Array, Blind, Demand, History, Observation, PoolLoad, ReplicaLoad
from autoscaling.observation import Fleet as FleetState
from autoscaling.observing.dispersion import index_of_dispersion
from autoscaling.simulation.fleet import Fleet
from autoscaling.simulation.records import REFUSED, Records
from autoscaling.simulation.scenario import Scenario
from placement import Cluster, Lengths, Shape, Slo
from placement.workload import MAX_SPREAD

# Before the first answer; as `autoscaling.observing.reading` takes it.
_UNKNOWN = Lengths(mean_tokens=512, spread=1.0), Lengths(mean_tokens=128, spread=1.0)
_ENOUGH = 30  # answers; where the window has fewer, older ones tell how long requests are
_DISPERSION_S, _BIN_S = 1800.0, 30.0

Flags = npt.NDArray[np.bool_]


@dataclass(slots=True, kw_only=True)
class Answers:
    """Complete answers in the order of their ends: the first `count` of every array."""

    count: int
    ended_s: Array
    ttft_s: Array
    tpot_s: Array
    inputs: Array
    outputs: Array
    units: Array

    def between(self, from_s: float, until_s: float) -> slice:
        """Those that ended after `from_s` and until `until_s`."""
        ended_s = self.ended_s[: self.count]
        start, end = np.searchsorted(ended_s, (from_s, until_s), side="right").tolist()
        return slice(start, end)


class Observer:
    """Looks at the fleet at every tick, and tells what a scrape `scrape_delay_s` before would have shown."""

    def __init__(self, scenario: Scenario, records: Records, fleet: Fleet) -> None:
        self._scenario, self._records, self._fleet = scenario, records, fleet
        count = len(records.arrivals_s)
        self._answers = Answers(count=0, **{name: np.empty(count) for name in Answers.__slots__ if name != "count"})
        self._arrived = 0
        self._open: list[int] = []
        steps = int(records.trace.duration_s // scenario.history_step_s) + 1
        arrived_in = (records.trace.arrivals_s // scenario.history_step_s).astype(int)
        self._requests = np.bincount(arrived_in, minlength=steps).astype(np.float64)
        self._answered, self._inputs, self._outputs = np.zeros(steps), np.zeros(steps), np.zeros(steps)
        self._loads: deque[tuple[float, dict[Shape, PoolLoad]]] = deque()

    def look(self, at_s: float, arrived: int) -> Observation | Blind:
        """What is known at `at_s`, when the first `arrived` requests of the trace have come."""
        self._collect(at_s, arrived)
        self._loads.append((at_s, self._loads_now()))
        scenario = self._scenario
        for from_s, until_s in scenario.outages:
            if from_s <= at_s < until_s:
                return Blind(at_s=at_s, kind="unreachable", why="the metrics cannot be reached")
        seen_s = at_s - scenario.scrape_delay_s
        while len(self._loads) > 1 and self._loads[1][0] <= seen_s:
            self._loads.popleft()
        return self._observation(at_s, max(0.0, seen_s))

    def lengths(self, at_least: int = _ENOUGH) -> tuple[float, float]:
        """Mean tokens of the prompts and answers that arrived in the last window: what the replicas really have."""
        trace, scenario = self._records.trace, self._scenario
        end = self._arrived
        start = int(np.searchsorted(trace.arrivals_s, trace.arrivals_s[max(0, end - 1)] - scenario.window_s))
        recent = slice(max(0, min(start, end - at_least)), max(1, end))
        return float(trace.input_tokens[recent].mean()), float(trace.output_tokens[recent].mean())

    def _collect(self, at_s: float, arrived: int) -> None:
        """Move what has ended from the open requests to the answers."""
        records, answers = self._records, self._answers
        ends_s = records.requests.ended_s
        self._open += [index for index in range(self._arrived, arrived) if records.units[index] != REFUSED]
        self._arrived = arrived
        ended = sorted((index for index in self._open if ends_s[index] <= at_s), key=ends_s.__getitem__)
        self._open = [index for index in self._open if ends_s[index] > at_s]
        if not ended:
            return
        new = slice(answers.count, answers.count + len(ended))
        answers.count = new.stop
        trace = records.trace
        answers.ended_s[new] = [ends_s[index] for index in ended]
        answers.units[new] = [records.units[index] for index in ended]
        first_s = np.array([records.first_s(index) for index in ended])
        answers.ttft_s[new] = first_s - trace.arrivals_s[ended]
        answers.inputs[new], answers.outputs[new] = trace.input_tokens[ended], trace.output_tokens[ended]
        more = answers.outputs[new] - 1
        answers.tpot_s[new] = np.where(more > 0, (answers.ended_s[new] - first_s) / np.maximum(more, 1), 0.0)
        steps = (answers.ended_s[new] // self._scenario.history_step_s).astype(int)
        last = len(self._inputs) - 1
        np.add.at(self._answered, np.minimum(steps, last), 1.0)
        np.add.at(self._inputs, np.minimum(steps, last), answers.inputs[new])
        np.add.at(self._outputs, np.minimum(steps, last), answers.outputs[new])

    def _observation(self, at_s: float, seen_s: float) -> Observation:
        scenario, records, answers = self._scenario, self._records, self._answers
        window_s = min(scenario.window_s, seen_s) or scenario.window_s
        times_s = records.trace.arrivals_s
        start, end = np.searchsorted(times_s, (seen_s - window_s, seen_s), side="right").tolist()
        units = np.array(records.units[start:end])
        refused = int(np.count_nonzero(units == REFUSED))
        seen = answers.between(seen_s - window_s, seen_s)
        ttft_s, tpot_s = answers.ttft_s[seen], answers.tpot_s[seen]
        lengths = slice(max(0, min(seen.start, seen.stop - _ENOUGH)), seen.stop)
        good, known = int(np.count_nonzero(keeps(scenario.slo, ttft_s, tpot_s))), len(ttft_s) + refused
        return Observation(
            at_s=at_s,
            window_s=scenario.window_s,
            demand=Demand(
                requests_per_s=(end - start) / window_s,
                input_tokens=_lengths(answers.inputs[lengths], _UNKNOWN[0]),
                output_tokens=_lengths(answers.outputs[lengths], _UNKNOWN[1]),
                prefix_hit_rate=scenario.prefix_hit_rate,
                dispersion=_dispersion(times_s, seen_s),
            ),
            history=self._history(seen_s),
            pools=self._pools(units, seen, window_s),
            fleet=self._state(),
            ttft_s=at_percentile(ttft_s, scenario.slo.percentile),
            tpot_s=at_percentile(tpot_s, scenario.slo.percentile),
            attainment=good / known if known else None,
        )

    def _history(self, seen_s: float) -> History:
        step_s = self._scenario.history_step_s
        steps = int(seen_s // step_s)
        rows = (self._requests, self._answered, self._inputs, self._outputs)
        requests, answered, inputs, outputs = (row[:steps] / step_s for row in rows)
        return History(
            step_s=step_s,
            end_s=steps * step_s,
            requests_per_s=requests,
            answered_per_s=answered,
            input_tokens_per_s=inputs,
            output_tokens_per_s=outputs,
        )

    def _loads_now(self) -> dict[Shape, PoolLoad]:
        """Gauges of every pool that serves."""
        by_shape: dict[Shape, list[ReplicaLoad]] = {}
        for unit in self._fleet.serving:
            replica = unit.replica
            waiting = len(replica.waiting) + len(replica.coming)
            used = 1 - replica.free_tokens / (replica.room_tokens * replica.table.ranks)
            load = ReplicaLoad(
                replica=f"{unit.shape}-{unit.number}",
                running=float(replica.outstanding - waiting),
                waiting=float(waiting),
                kv_usage=min(1.0, max(0.0, used)),
            )
            by_shape.setdefault(unit.shape, []).append(load)
        return {
            shape: PoolLoad(
                shape=shape,
                replicas=len(each),
                running=sum(one.running for one in each),
                waiting=sum(one.waiting for one in each),
                kv_usage=sum(one.kv_usage for one in each) / len(each),
                requests_per_s=0.0,
                each=tuple(each),
            )
            for shape, each in by_shape.items()
        }

    def _pools(self, units: Array, seen: slice, window_s: float) -> tuple[PoolLoad, ...]:
        """The gauges of the last scrape, with the rates and latencies of the window."""
        percentile, answers = self._scenario.slo.percentile, self._answers
        shapes = self._fleet.shapes
        found = []
        for shape, load in self._loads[0][1].items():
            numbers = [number for number, other in enumerate(shapes) if other == shape]
            of_pool = np.isin(answers.units[seen], numbers)
            found.append(
                replace(
                    load,
                    requests_per_s=float(np.count_nonzero(np.isin(units, numbers))) / window_s,
                    ttft_s=at_percentile(answers.ttft_s[seen][of_pool], percentile),
                    tpot_s=at_percentile(answers.tpot_s[seen][of_pool], percentile),
                )
            )
        return tuple(found)

    def _state(self) -> FleetState:
        fleet = self._fleet
        return FleetState(
            version=fleet.version,
            desired=fleet.desired,
            serving=fleet.pools("serving"),
            starting=fleet.pools("starting"),
            changing=fleet.is_changing,
            cluster=self._cluster,
        )

    @property
    def _cluster(self) -> Cluster:
        return self._scenario.site.cluster


def keeps(slo: Slo, ttft_s: Array, tpot_s: Array) -> Flags:
    """Whether each answer keeps the SLO."""
    most_ttft_s = math.inf if slo.ttft_s is None else slo.ttft_s
    most_tpot_s = math.inf if slo.tpot_s is None else slo.tpot_s
    kept: Flags = (ttft_s <= most_ttft_s) & (tpot_s <= most_tpot_s)
    return kept


def at_percentile(values: Array, percentile: float) -> float | None:
    """The smallest value that so many do not exceed, None of none."""
    if not len(values):
        return None
    return float(np.sort(values)[math.ceil(percentile * len(values) - 1e-9) - 1])


def _lengths(tokens: Array, unknown: Lengths) -> Lengths:
    if not len(tokens):
        return unknown
    mean = float(tokens.mean())
    return Lengths(mean_tokens=mean, spread=min(MAX_SPREAD, float(tokens.std()) / mean))


def _dispersion(arrivals_s: Array, seen_s: float) -> float:
    """From windows of 30 s in the last half hour, as `autoscaling.observing.past` asks Prometheus for them."""
    last = int(seen_s // _BIN_S)
    edges = np.arange(max(0, last - round(_DISPERSION_S / _BIN_S)), last + 1) * _BIN_S
    return index_of_dispersion(np.diff(np.searchsorted(arrivals_s, edges)).astype(float))
