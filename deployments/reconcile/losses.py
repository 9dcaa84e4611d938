"""What a fleet can still be when hardware is lost.

A pure function of what is left: when the hardware returns, the answer is the fleet that was wanted all along.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deployments.reconcile.states import Desired, Pool, Pools, count_shapes, hardest_first, name_pools
from placement.clusters.hardware import Cluster
from placement.layout import Infeasible, Layout, Place, place
from placement.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """The pools to run for now. `reason` says what differs from the wish and why; empty where nothing does."""

    pools: Pools
    reason: str = ""

    def applied_to(self, desired: Desired) -> Desired:
        """The wish with these pools; asked-for ways do not bind what hardware forces."""
        return replace(desired, pools=self.pools, way=None) if self.reason else desired


def survive(
    desired: Desired,
    cluster: Cluster,
    fits: Callable[[Shape], bool],
    shapes: Sequence[Shape],
    *,
    taken: frozenset[Place] = frozenset(),
) -> Adjusted | Infeasible:
    """The wish on what is left: the same shapes elsewhere, else smaller ones, else fewer replicas.

    Args:
        desired: the wish.
        cluster: the nodes that are alive and stay.
        fits: whether one GPU of a shape holds its part of the model.
        shapes: what may stand in for a replica that finds no room; of those that fit, the one with most GPUs does.
        taken: GPUs of other models.

    Returns:
        Infeasible where not one replica finds room.
    """
    wish = hardest_first(count_shapes(desired.pools))
    found: list[Shape] = []
    homeless: dict[Shape, Infeasible] = {}
    for shape in wish:
        placed = place(shape, cluster, taken, min_memory_bytes=desired.min_memory_bytes)
        if isinstance(placed, Infeasible):
            homeless.setdefault(shape, placed)
        else:
            taken |= placed.places
            found.append(shape)
    if not homeless:
        return Adjusted(pools=desired.pools)
    stand_ins = sorted(filter(fits, shapes), key=lambda shape: -shape.gpus)
    changes = _stand_in(Counter(wish) - Counter(found), stand_ins, cluster, taken, desired.min_memory_bytes)
    found += [shape for _, shape in changes if shape]
    why = next(iter(homeless.values()))
    return _adjusted(desired, found, changes, why) if found else why


def _stand_in(
    homeless: Counter[Shape], shapes: Sequence[Shape], cluster: Cluster, taken: frozenset[Place], min_memory_bytes: int
) -> list[tuple[Shape, Shape | None]]:
    """For each shape without room the first smaller one of `shapes` that has room, or None."""
    found: list[tuple[Shape, Shape | None]] = []
    for shape in homeless.elements():
        smaller = (other for other in shapes if other.gpus < shape.gpus)
        tries = (place(other, cluster, taken, min_memory_bytes=min_memory_bytes) for other in smaller)
        layout = next((placed for placed in tries if isinstance(placed, Layout)), None)
        taken |= layout.places if layout else frozenset()
        found.append((shape, layout.shape if layout else None))
    return found


def _adjusted(
    desired: Desired, found: Sequence[Shape], changes: Sequence[tuple[Shape, Shape | None]], why: Infeasible
) -> Adjusted:
    pools = tuple(Pool(shape=shape, replicas=count) for shape, count in Counter(found).items())
    told = ", ".join(f"{other} instead of {shape}" if other else f"one {shape} fewer" for shape, other in changes)
    difference = f"{name_pools(pools)}, not {name_pools(desired.pools)} ({told})"
    return Adjusted(pools=pools, reason=f"{desired.model} runs {difference}: {why.constraint}.")
