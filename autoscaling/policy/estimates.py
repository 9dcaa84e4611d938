"""What pools can do for a demand, as the performance model says: each question is asked once in a tick.

Replicas that have been seen doing worse than the model says count for less, by the factor they are trusted with.
"""

import math
from collections.abc import Iterable, Mapping

from autoscaling.capacity.performance import MOST_REPLICAS, Capacity, Performance
from autoscaling.observation import Demand, Pools
from placement import Shape, Slo

_ROUNDING = 1e-9
# Unlike replicas do not get just what each can take: in simulations pools of two shapes keep the SLO up to 70 to 75 %
# of the sum of what they can, pools of one up to 90 to 95 %.
_UNLIKE = 0.8


class Estimates:
    """Answers for one SLO. `trust` is what the rates of a shape are multiplied with; 1 for those that are not in it.

    `ease` is what the rates that keep the SLO are multiplied with beside: above 1 it does without some of their margin.
    """

    def __init__(
        self, performance: Performance, slo: Slo, trust: Mapping[Shape, float] | None = None, ease: float = 1.0
    ) -> None:
        self.slo = slo
        self._performance = performance
        self._trust = trust or {}
        self._ease = ease
        self._known: dict[tuple[Shape, int, float, float], Capacity] = {}

    def capacity(self, shape: Shape, demand: Demand, total: int) -> Capacity:
        """Of one replica of `shape` in a fleet of `total` replicas, as the model has it."""
        total = min(max(total, 1), MOST_REPLICAS)
        key = (shape, total, demand.input_tokens.mean_tokens, demand.output_tokens.mean_tokens)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._performance.capacity(shape, demand, self.slo, replicas=total)
        return known

    def servable_per_s(self, pools: Pools, demand: Demand) -> float:
        """Requests per second, of the lengths of `demand`, that `pools` serve within the SLO."""
        total = sum(pools.values())
        together = sum(
            self.capacity(shape, demand, total).requests_per_s * self._trust.get(shape, 1.0) * replicas
            for shape, replicas in pools.items()
        )
        return together * _matched(pools) * self._ease

    def saturation_per_s(self, pools: Pools, demand: Demand) -> float:
        """Requests per second that `pools` answer at all."""
        total = sum(pools.values())
        return sum(
            self.capacity(shape, demand, total).saturation_per_s * self._trust.get(shape, 1.0) * replicas
            for shape, replicas in pools.items()
        )

    def load(self, pools: Pools, demand: Demand) -> float:
        """Demand over what `pools` serve within the SLO; infinite where they cannot."""
        if demand.requests_per_s <= 0:
            return 0.0
        servable = self.servable_per_s(pools, demand)
        return demand.requests_per_s / servable if servable > 0 else math.inf

    def worst_load(self, pools: Pools, demands: Iterable[Demand]) -> float:
        """The highest load of several demands that come one at a time."""
        return max((self.load(pools, demand) for demand in demands), default=0.0)

    def keeps(self, pools: Pools, demands: Iterable[Demand]) -> bool:
        """Whether enough requests of each demand keep the SLO."""
        return all(self.load(pools, demand) <= 1 + _ROUNDING for demand in demands)

    def attainment(self, pools: Pools, demand: Demand) -> float:
        """Share of requests that keep the SLO in steady state; replicas that can keep it get them all."""
        if demand.requests_per_s <= 0:
            return 1.0
        total = sum(pools.values())
        each = [
            (self.capacity(shape, demand, total), self._trust.get(shape, 1.0), replicas)
            for shape, replicas in pools.items()
        ]
        able = [(one, one.requests_per_s, trust, count) for one, trust, count in each if one.requests_per_s > 0]
        able = able or [(one, one.saturation_per_s, trust, count) for one, trust, count in each]
        most_per_s = sum(rate * trust * count for _, rate, trust, count in able)
        if most_per_s <= 0:
            return 0.0
        load = demand.requests_per_s / (most_per_s * _matched(pools) * self._ease)
        return sum(one.attainment(rate * load) * rate * trust * count for one, rate, trust, count in able) / most_per_s

    def needed(self, shape: Shape, demands: Iterable[Demand], beside: Pools | None = None, *, most: int) -> int | None:
        """Fewest replicas of `shape`, next to `beside`, that keep the SLO for each demand; None where `most` do not."""
        others = {kind: count for kind, count in (beside or {}).items() if kind != shape}
        return max((self._needed(shape, demand, others, most) for demand in demands), default=0, key=_none_last)

    def _needed(self, shape: Shape, demand: Demand, others: Pools, most: int) -> int | None:
        present = sum(others.values())

        def suffices(replicas: int) -> bool:
            return self.keeps({**others, shape: replicas}, (demand,))

        if suffices(0):
            return 0
        best = self.capacity(shape, demand, present + most).requests_per_s * self._trust.get(shape, 1.0) * self._ease
        if best <= 0:
            return None
        missing_per_s = demand.requests_per_s - self.servable_per_s(others, demand)
        # Replicas in company do more each, so this many could be enough, and not many more are.
        fewest = max(1, math.floor(missing_per_s / best))
        return next((replicas for replicas in range(fewest, most + 1) if suffices(replicas)), None)


def _matched(pools: Pools) -> float:
    """The share of what its replicas can that a fleet can."""
    return _UNLIKE if len(pools) > 1 else 1.0


def _none_last(replicas: int | None) -> float:
    return math.inf if replicas is None else replicas
