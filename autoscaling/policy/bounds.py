"""How far a fleet may go now: the bounds that always hold, and those of the schedule.

What the schedule wants must serve when its time begins, so it counts from as long before as replicas take to start.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from autoscaling.observation import Pools, gpus_of
from autoscaling.policy.rules import Rules
from autoscaling.schedule import Due, Scheduled, due
from placement import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a fleet may go: GPUs and replicas, and the GPUs that one change may start or stop.

    `due` is what of the schedule is in them.
    """

    min_gpus: int
    max_gpus: int
    min_replicas: int
    max_shapes: int
    max_change_gpus: int | None
    repartition: bool
    due: tuple[Due, ...] = ()

    def allow(self, pools: Pools) -> bool:
        """Whether a fleet may be so."""
        return not any(self._beyond(pools))

    def are_nearer(self, pools: Pools, before: Pools) -> bool:
        """Whether a fleet is less far outside than the one before, and in no respect farther."""
        pairs = list(zip(self._beyond(pools), self._beyond(before), strict=True))
        return all(now <= then for now, then in pairs) and any(now < then for now, then in pairs)

    def _beyond(self, pools: Pools) -> tuple[int, int, int, int]:
        """By how much a fleet is outside: GPUs too few and too many, replicas too few, shapes too many."""
        gpus, replicas = gpus_of(pools), sum(pools.values())
        return (
            max(0, self.min_gpus - gpus),
            max(0, gpus - self.max_gpus),
            max(0, self.min_replicas - replicas),
            max(0, len(pools) - self.max_shapes),
        )

    def allow_change(self, before: Pools, after: Pools) -> bool:
        """Whether so much may change at once."""
        return self.max_change_gpus is None or max(_started_and_stopped(before, after)) <= self.max_change_gpus

    def fewest(self, shape: Shape, others: Pools) -> int:
        """Replicas of `shape` that fill the minimum next to `others`."""
        missing_gpus = max(0, self.min_gpus - gpus_of(others))
        return max(self.min_replicas - sum(others.values()), -(-missing_gpus // shape.gpus), 0)

    def most(self, shape: Shape, others: Pools) -> int:
        """Replicas of `shape` that there is room for next to `others`."""
        return max(0, self.max_gpus - gpus_of(others)) // shape.gpus

    def raised(self, wanted: Iterable[Due]) -> "Bounds":
        """With what the schedule wants at least."""
        wanted = tuple(wanted)
        return replace(
            self,
            min_gpus=max((self.min_gpus, *(one.bounds.min_gpus for one in wanted))),
            min_replicas=max((self.min_replicas, *(one.bounds.min_replicas for one in wanted))),
            due=(*self.due, *wanted),
        )


def bounds(rules: Rules, gpus: int, at_s: float) -> Bounds:
    """The bounds at a time, on a cluster with `gpus` for this model: the highest lower and the lowest upper one."""
    now = due(rules.schedule, at_s, at_s)
    most = (rules.max_gpus, *(one.bounds.max_gpus for one in now))
    return Bounds(
        min_gpus=rules.min_gpus,
        max_gpus=min((gpus, *(one for one in most if one is not None))),
        min_replicas=rules.min_replicas,
        max_shapes=rules.max_shapes,
        max_change_gpus=rules.max_change_gpus,
        repartition=rules.repartition,
    ).raised(now)


def bounds_ahead(
    rules: Rules, gpus: int, current: Pools, at_s: float, *, step_s: float
) -> tuple[Bounds, tuple[Due, ...]]:
    """The bounds with what must be started now to serve in time; and what is coming that must not be given up before.

    What does not fit under the upper bound of now, in the widest of the present shapes, waits until it begins.
    `step_s` is how long a change takes that starts replicas.
    """
    limits = bounds(rules, gpus, at_s)
    leads_s = {one: _lead_s(one, current, rules, step_s) for one in rules.schedule}
    until_s = at_s + rules.lookback_s + max(leads_s.values(), default=0.0)
    coming = tuple(
        one
        for one in due(rules.schedule, at_s, until_s)
        if one.opens_s > at_s and _filling_gpus(one.bounds, current) <= limits.max_gpus
    )
    return limits.raised(one for one in coming if one.opens_s - at_s <= leads_s[one.bounds]), coming


def _lead_s(wanted: Scheduled, current: Pools, rules: Rules, step_s: float) -> float:
    """How long before they begin there is something to do: several changes, where one may start only so many GPUs."""
    missing_gpus = max(1, _filling_gpus(wanted, current) - gpus_of(current))
    return step_s * math.ceil(missing_gpus / (rules.max_change_gpus or missing_gpus))


def _filling_gpus(wanted: Scheduled, current: Pools) -> int:
    """GPUs of as many replicas of the widest present shape as are wanted at least."""
    gpus = max((shape.gpus for shape in current), default=1)
    return gpus * max(wanted.min_replicas, math.ceil(wanted.min_gpus / gpus))


def gives_up(wanted: Scheduled, before: Pools, after: Pools) -> bool:
    """Whether a change leaves fewer GPUs or replicas than are wanted, and than there were."""
    return gpus_of(after) < min(wanted.min_gpus, gpus_of(before)) or sum(after.values()) < min(
        wanted.min_replicas, sum(before.values())
    )


def _started_and_stopped(before: Pools, after: Pools) -> tuple[int, int]:
    shapes = {*before, *after}
    moves = [shape.gpus * (after.get(shape, 0) - before.get(shape, 0)) for shape in shapes]
    return sum(gpus for gpus in moves if gpus > 0), -sum(gpus for gpus in moves if gpus < 0)
