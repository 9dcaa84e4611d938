"""From what happened to every request to the figures of a result."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from autoscaling.observation import Array, Pools
from autoscaling.simulation.observing import Flags, at_percentile, keeps
from autoscaling.simulation.records import REFUSED, Records
from autoscaling.simulation.result import Decided, Percentiles, Result, Series
from autoscaling.simulation.scenario import Scenario
from placement import Shape

_MINUTE_S = 60.0
_WORST_MINUTES = 5
_KEPT = 0.99
_HOUR_S = 3600.0
_REVERSAL_S = 600.0
Change = tuple[float, Pools, Pools]  # when, from, to
Held = Sequence[tuple[float, Pools]]


def result_of(
    records: Records,
    scenario: Scenario,
    *,
    policy: str,
    seed: int,
    held: Held,
    changes: Sequence[Change],
    decisions: Sequence[Decided],
) -> Result:
    """The figures of a run that is over."""
    trace, requests = records.trace, records.requests
    first_s = np.array(requests.first_s)
    for index, began_s in records.began_s.items():
        first_s[index] = began_s
    for index in records.moved_s:
        records.note_stall(index)
    ended_s = np.array(requests.ended_s)
    counted = trace.arrivals_s >= scenario.settling_s
    ended = counted & np.isfinite(ended_s)
    refused = counted & (np.array(records.units) == REFUSED)
    more = trace.output_tokens - 1
    ttft_s = first_s - trace.arrivals_s
    with np.errstate(invalid="ignore"):  # of what never ended
        tpot_s = np.where(more > 0, (ended_s - first_s) / np.maximum(more, 1), 0.0)
        good = ended & keeps(scenario.slo, ttft_s, tpot_s)
    duration_s = trace.duration_s - scenario.settling_s
    arrivals, kept = int(counted.sum()), int(good.sum())
    minutes = _Minutes(trace.arrivals_s, counted, good, duration_s=trace.duration_s)
    return Result(
        policy=policy,
        trace=trace.name,
        seed=seed,
        duration_s=duration_s,
        arrivals=arrivals,
        good=kept,
        late=int(ended.sum()) - kept,
        refused=int(refused.sum()),
        unfinished=arrivals - int(ended.sum()) - int(refused.sum()),
        attainment=_share(kept, arrivals),
        gpu_hours=_gpu_s(held, scenario.settling_s, trace.duration_s) / _HOUR_S,
        goodput_requests_per_s=kept / duration_s if duration_s > 0 else 0.0,
        goodput_tokens_per_s=float(trace.output_tokens[good].sum()) / duration_s if duration_s > 0 else 0.0,
        worst_5_minutes=minutes.worst,
        minutes_kept=minutes.kept,
        ttft_s=_percentiles(np.where(np.isfinite(first_s), ttft_s, math.inf)[counted & ~refused]),
        tpot_s=_percentiles(tpot_s[ended & (more > 0)]),
        actions=_actions(changes),
        reversals=_reversals(changes),
        moved_requests=records.moved_requests,
        recomputed_tokens=records.recomputed_tokens,
        longest_stall_s=records.longest_stall_s,
        attainment_by_class=_by_class(trace.classes, counted, good),
        decisions=tuple(decisions),
        series=_series(records, minutes, ended, ttft_s, tpot_s, held),
    )


class _Minutes:
    """Arrivals and good ones of every minute."""

    def __init__(self, arrivals_s: Array, counted: Flags, good: Flags, *, duration_s: float) -> None:
        self.count = int(duration_s // _MINUTE_S) + 1
        self.of = (arrivals_s // _MINUTE_S).astype(int)
        self.arrivals = np.bincount(self.of[counted], minlength=self.count)
        self.good = np.bincount(self.of[good], minlength=self.count)

    @property
    def kept(self) -> float:
        """Share of the minutes with arrivals in which 99 % of them kept the SLO."""
        busy = self.arrivals > 0
        return _share(int(np.count_nonzero(self.good[busy] >= _KEPT * self.arrivals[busy])), int(busy.sum()))

    @property
    def worst(self) -> float:
        """Least share in five minutes."""
        arrivals, good = (
            np.convolve(each, np.ones(min(_WORST_MINUTES, self.count)), mode="valid")
            for each in (self.arrivals, self.good)
        )
        busy = arrivals > 0
        return float((good[busy] / arrivals[busy]).min()) if busy.any() else 1.0

    @property
    def attainment(self) -> tuple[float | None, ...]:
        return tuple(
            good / arrivals if arrivals else None
            for good, arrivals in zip(self.good.tolist(), self.arrivals.tolist(), strict=True)
        )


def _series(records: Records, minutes: _Minutes, ended: Flags, ttft_s: Array, tpot_s: Array, held: Held) -> Series:
    trace, count = records.trace, minutes.count

    def rate(weights: Array | None) -> tuple[float, ...]:
        return tuple((np.bincount(minutes.of, weights, minlength=count) / _MINUTE_S).tolist())

    borders = np.searchsorted(minutes.of, np.arange(count + 1))

    def p99(values: Array) -> tuple[float | None, ...]:
        return tuple(at_percentile(values[start:end][ended[start:end]], 0.99) for start, end in pairwise(borders))

    edges = np.arange(count + 1, dtype=np.float64) * _MINUTE_S
    shapes = sorted({shape for _, pools in held for shape in pools}, key=lambda shape: (shape.gpus, str(shape)))
    return Series(
        minute_s=tuple(edges[:-1].tolist()),
        requests_per_s=rate(None),
        input_tokens_per_s=rate(trace.input_tokens),
        output_tokens_per_s=rate(trace.output_tokens),
        attainment=minutes.attainment,
        ttft_p99_s=p99(ttft_s),
        tpot_p99_s=p99(tpot_s),
        gpus={str(shape): _gpus_in(held, shape, edges) for shape in shapes},
    )


def _gpus_in(held: Held, shape: Shape, edges: Array) -> tuple[float, ...]:
    """GPUs that replicas of `shape` held on average between neighbouring edges."""
    times_s = np.array([at_s for at_s, _ in held])
    gpus = np.array([shape.gpus * pools.get(shape, 0) for _, pools in held], dtype=np.float64)
    before: Array = np.concatenate([[0.0], np.cumsum(gpus[:-1] * np.diff(times_s))])  # GPU-seconds until each change
    last = np.searchsorted(times_s, edges, side="right") - 1
    total: Array = before[last] + gpus[last] * (edges - times_s[last])
    return tuple((np.diff(total) / np.diff(edges)).tolist())


def _gpu_s(held: Held, from_s: float, until_s: float) -> float:
    """GPU-seconds held between two times."""
    if until_s <= from_s:
        return 0.0
    edges = np.array([from_s, until_s])
    shapes = {shape for _, pools in held for shape in pools}
    return sum(_gpus_in(held, shape, edges)[0] * (until_s - from_s) for shape in sorted(shapes, key=str))


def _actions(changes: Sequence[Change]) -> dict[str, int]:
    counts = {"up": 0, "down": 0, "repartition": 0}
    for _, before, after in changes:
        added = [after.get(shape, 0) - before.get(shape, 0) for shape in {*before, *after}]
        kind = "repartition" if min(added) < 0 < max(added) else "up" if max(added) > 0 else "down"
        counts[kind] += 1
    return counts


def _reversals(changes: Sequence[Change]) -> int:
    """Changes by which a shape gets more after it got less, or less after more, soon after the change before."""
    count = 0
    for (early_s, first, second), (late_s, _, third) in pairwise(changes):
        shapes = {*first, *second, *third}
        turned = any(
            (second.get(shape, 0) - first.get(shape, 0)) * (third.get(shape, 0) - second.get(shape, 0)) < 0
            for shape in shapes
        )
        count += turned and late_s - early_s <= _REVERSAL_S
    return count


def _by_class(classes: Sequence[str], counted: Flags, good: Flags) -> dict[str, float]:
    names = np.array(classes)
    return {
        str(name): _share(int((good & (names == name)).sum()), int((counted & (names == name)).sum()))
        for name in np.unique(names)
        if (counted & (names == name)).any()
    }


def _percentiles(values: Array) -> Percentiles:
    def at(percentile: float) -> float:
        return at_percentile(values, percentile) or 0.0

    mean = float(values.mean()) if len(values) else 0.0
    return Percentiles(mean=mean, p50=at(0.5), p90=at(0.9), p95=at(0.95), p99=at(0.99))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
