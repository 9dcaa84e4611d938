"""What replicas of a shape can do for a demand: the highest rate that keeps the SLO, and how many keep it at a rate.

The tails decide, so rates are tried request by request (`ceiling`), which takes milliseconds, while a decision asks
hundreds of times. So ceilings are found at the points of a lattice over what they depend on smoothly, and kept; what
is asked is read off between the points around it, which makes it continuous.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple, Protocol

from autoscaling.capacity.ceiling import LOADS, Binding, Case, Ceiling, ceiling_of
from autoscaling.capacity.corrections import Corrections
from autoscaling.capacity.lattice import Vertex, around
from autoscaling.capacity.site import Site
from autoscaling.observation import Demand, Pools
from placement.shape import Shape
from placement.workload import MAX_MEAN_TOKENS, MAX_SPREAD, Lengths, Slo

MOST_REPLICAS = 8  # more share their queue no better
_STEP = math.log(2) / 2  # of lengths
_FACTOR_STEP = math.log(1.1)
_LEAST_COMPUTED = 2**-6  # share of prompt tokens; fewer change nothing
_SPREAD_STEP = math.log(1.4)  # points are at spreads 0, 0.4, 0.96, 1.74, ...: what can be done bends between
_KEPT_KINDS, _KEPT_ANSWERS = 1_000, 100_000  # the latter are some 100 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What ONE replica does among `replicas` equal ones that share the demand. Rates are per replica.

    `requests_per_s` is the most at which the SLO's percentile of requests keep it, 0 where not even requests alone
    do; `saturation_per_s` is the most that is answered at all. `lone_ttft_s` and `lone_tpot_s` are those of a request
    of mean lengths alone, infinite where the model does not fit. `room_tokens` is the KV cache of all data-parallel
    ranks, `prefill_tokens_per_s` how fast prompts are read when nothing is written. `binding` gives way first when the
    rate goes up. `attainments` are (load, share of requests that keep the SLO) by rising load, which is a share of
    `requests_per_s`, or of `saturation_per_s` where that is 0.
    """

    shape: Shape
    requests_per_s: float
    saturation_per_s: float
    lone_ttft_s: float
    lone_tpot_s: float
    room_tokens: float
    prefill_tokens_per_s: float
    binding: Binding
    attainments: tuple[tuple[float, float], ...]

    def attainment(self, requests_per_s: float) -> float:
        """Share of requests that keep the SLO at this rate per replica in the long run: 0 beyond saturation."""
        if requests_per_s >= self.saturation_per_s:
            return 0.0
        whole = self.requests_per_s or self.saturation_per_s
        load, most = requests_per_s / whole, self.saturation_per_s / whole
        before = self.attainments[0]
        for after in (*self.attainments, (most, 0.0)):
            if load < after[0]:
                share = (load - before[0]) / (after[0] - before[0]) if load > before[0] else 0.0
                return before[1] + (after[1] - before[1]) * share
            before = after
        return before[1]


class Performance(Protocol):
    """What options are priced with."""

    def capacity(self, shape: Shape, demand: Demand, slo: Slo, *, replicas: int = 1) -> Capacity:
        """Of one replica of `shape` among `replicas`, for requests like those of `demand`, whatever their rate."""
        ...

    def attainment(self, pools: Pools, demand: Demand, slo: Slo) -> float:
        """Share of requests that keep the SLO in steady state, each replica being sent what it is able to answer."""
        ...


class _Asked(NamedTuple):
    """What a capacity depends on beside the shape."""

    input_tokens: Lengths
    output_tokens: Lengths
    prefix_hit_rate: float
    dispersion: float
    slo: Slo
    replicas: int
    step_factor: float


class PlannedPerformance:
    """`Performance` by the cost model of `placement`. The same question has the same answer, whatever came before.

    `corrections` scale the step times of each shape. Methods raise `ShapeError` for a shape that is not the site's.
    """

    def __init__(self, site: Site, corrections: Corrections | None = None) -> None:
        self.site = site
        self._corrections: Corrections = corrections or {}
        known: Callable[[_Like], _Ceilings] = lru_cache(maxsize=_KEPT_KINDS)(lambda like: {})
        self._answer: Callable[[Shape, _Asked], Capacity] = lru_cache(maxsize=_KEPT_ANSWERS)(
            lambda shape, asked: _read_off(site, known, shape, asked)
        )

    def corrected(self, corrections: Corrections) -> "PlannedPerformance":
        """The same with other corrections; what has been computed is shared."""
        other = copy(self)
        other._corrections = corrections
        return other

    def capacity(self, shape: Shape, demand: Demand, slo: Slo, *, replicas: int = 1) -> Capacity:
        known = self._corrections.get(shape)
        asked = _Asked(
            demand.input_tokens,
            demand.output_tokens,
            demand.prefix_hit_rate,
            demand.dispersion,
            slo,
            min(max(replicas, 1), MOST_REPLICAS),
            known.step_factor if known else 1.0,
        )
        return self._answer(shape, asked)

    def attainment(self, pools: Pools, demand: Demand, slo: Slo) -> float:
        if demand.requests_per_s <= 0:
            return 1.0
        replicas = sum(pools.values())
        found = [(self.capacity(shape, demand, slo, replicas=replicas), count) for shape, count in pools.items()]
        shares = [(one, one.requests_per_s, count) for one, count in found if one.requests_per_s]
        # Where none keeps the SLO, some still answer sooner than others.
        shares = shares or [(one, one.saturation_per_s, count) for one, count in found if one.saturation_per_s]
        most_per_s = sum(able_per_s * count for _, able_per_s, count in shares)
        if not most_per_s:
            return 0.0
        load = demand.requests_per_s / most_per_s
        kept_per_s = sum(one.attainment(able_per_s * load) * able_per_s * count for one, able_per_s, count in shares)
        return kept_per_s / most_per_s


class _Like(NamedTuple):
    """Cases that differ in what is read off between only."""

    shape: Shape
    slo: Slo


_Ceilings = dict[Vertex, Ceiling]  # of cases that are alike


def _read_off(site: Site, known: Callable[[_Like], _Ceilings], shape: Shape, asked: _Asked) -> Capacity:
    like = _Like(shape, asked.slo)
    exact = (
        math.log(asked.input_tokens.mean_tokens) / _STEP,
        math.log(asked.output_tokens.mean_tokens) / _STEP,
        math.log(max(1 - asked.prefix_hit_rate, _LEAST_COMPUTED)) / _STEP,
        math.log1p(asked.input_tokens.spread) / _SPREAD_STEP,
        math.log1p(asked.output_tokens.spread) / _SPREAD_STEP,
        math.log2(max(asked.dispersion, 1.0)),
        math.log2(asked.replicas),
        math.log(asked.step_factor) / _FACTOR_STEP,
    )
    # Rounded, so that what should be whole is: another point would be asked for with hardly any weight.
    coordinates = [round(value, 6) for value in exact]
    ceilings = known(like)
    corners = []
    for vertex, weight in around(coordinates):
        ceiling = ceilings.get(vertex)
        if ceiling is None:
            ceiling = ceilings[vertex] = ceiling_of(site, _case(like, vertex))
        corners.append((ceiling, weight))
    return blended(shape, corners)


def _case(like: _Like, vertex: Vertex) -> Case:
    length_in, length_out, computed, spread_in, spread_out, dispersion, doublings, factor = vertex
    return Case(
        shape=like.shape,
        input_tokens=_lengths(length_in, spread_in),
        output_tokens=_lengths(length_out, spread_out),
        computed_share=math.exp(computed * _STEP),
        dispersion=2.0**dispersion,
        slo=like.slo,
        replicas=2**doublings,
        step_factor=math.exp(factor * _FACTOR_STEP),
    )


def _lengths(length: int, spread: int) -> Lengths:
    return Lengths(
        mean_tokens=min(math.exp(length * _STEP), MAX_MEAN_TOKENS),
        spread=min(math.expm1(spread * _SPREAD_STEP), MAX_SPREAD),
    )


def blended(shape: Shape, corners: Sequence[tuple[Ceiling, float]]) -> Capacity:
    """What lies between `corners`. Attainments are those of the corners that keep the SLO at all."""
    nearest = max(corners, key=itemgetter(1))[0]
    keeping = [corner for corner in corners if corner[0].requests_per_s] or corners
    fitting = [corner for corner in corners if corner[0].saturation_per_s] or corners
    whole = sum(weight for _, weight in keeping)
    kept = [0.0] * len(LOADS)
    for ceiling, weight in keeping:
        kept = [value + weight * more for value, more in zip(kept, ceiling.attainments, strict=True)]
    saturation_per_s = _mean([(one.saturation_per_s, weight) for one, weight in corners])
    return Capacity(
        shape=shape,
        requests_per_s=saturation_per_s * _within_slo(corners),
        saturation_per_s=saturation_per_s,
        lone_ttft_s=_mean([(one.lone_ttft_s, weight) for one, weight in fitting]),
        lone_tpot_s=_mean([(one.lone_tpot_s, weight) for one, weight in fitting]),
        room_tokens=_mean([(one.room_tokens, weight) for one, weight in corners]),
        prefill_tokens_per_s=_mean([(one.prefill_tokens_per_s, weight) for one, weight in corners]),
        binding=nearest.binding,
        attainments=tuple(zip(LOADS, [value / whole for value in kept], strict=True)),
    )


def _within_slo(corners: Sequence[tuple[Ceiling, float]]) -> float:
    """The share of the saturation at which the SLO is kept.

    Unlike rates it does not go with powers of lengths: it falls to 0 where tails grow. A corner where next to nothing
    keeps the SLO counts as one where nothing does, and a geometric mean would be dragged down by it however small its
    weight.
    """
    shares = [(one.requests_per_s / one.saturation_per_s, weight) for one, weight in corners if one.saturation_per_s]
    return sum(share * weight for share, weight in shares) / sum(weight for _, weight in corners)


def _mean(values: Sequence[tuple[float, float]]) -> float:
    """Geometric, as rates and times go with powers of lengths; arithmetic where a value is 0."""
    if len(values) == 1:
        return values[0][0]
    total = sum(weight for _, weight in values)
    if all(value > 0 for value, _ in values):
        return math.exp(sum(math.log(value) * weight for value, weight in values) / total)
    return sum(value * weight for value, weight in values) / total
