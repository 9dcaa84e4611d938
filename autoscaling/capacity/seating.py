"""How many GPUs of which islands replicas take, as `placement.layout` packs them: fast enough to ask for every option.

Only counts of GPUs matter here, not nodes or slots: a tensor-parallel group stays on one island, a replica touches as
few islands as possible, and of those that fit the fullest is taken.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from placement.clusters.hardware import Cluster
from placement.layout import free_gpus
from placement.shape import Shape

Islands = tuple[int, ...]  # free GPUs of each


@dataclass(frozen=True, slots=True)
class Seated:
    """One replica, and the GPUs it takes of islands, by their numbers."""

    shape: Shape
    taken: tuple[tuple[int, int], ...]


def islands_of(cluster: Cluster) -> Islands:
    """GPUs of each island."""
    return tuple(free_gpus(cluster, frozenset()).values())


def seat(shape: Shape, free: Sequence[int]) -> Seated | None:
    """`shape` on free GPUs; None where they do not hold it."""
    left, size = shape.pp * shape.dp, shape.tp
    whole = _tightest(free, left * size)
    if whole is not None:
        return Seated(shape, ((whole, left * size),))
    rooms = {at: room for at, room in enumerate(free) if room >= size}
    taken: list[tuple[int, int]] = []
    while left and rooms:
        fitting = [at for at, room in rooms.items() if room >= left * size]
        chosen = min(fitting, key=rooms.__getitem__) if fitting else max(rooms, key=lambda at: rooms[at] // size)
        groups = min(left, rooms.pop(chosen) // size)
        taken.append((chosen, groups * size))
        left -= groups
    return None if left else Seated(shape, tuple(taken))


def _tightest(free: Sequence[int], gpus: int) -> int | None:
    """The first of the islands with the least room that is enough."""
    best = None
    for at, room in enumerate(free):
        if room == gpus:
            return at
        if room > gpus and (best is None or room < free[best]):
            best = at
    return best


def seat_all(shapes: Iterable[Shape], free: Islands) -> list[Seated] | None:
    """Each of `shapes`, in that order; None where one finds no room."""
    rooms = list(free)
    found: list[Seated] = []
    for shape in shapes:
        seated = seat(shape, rooms)
        if seated is None:
            return None
        found.append(seated)
        for island, gpus in seated.taken:
            rooms[island] -= gpus
    return found


@lru_cache(maxsize=256)
def packed(pools: tuple[tuple[Shape, int], ...], islands: Islands) -> tuple[Seated, ...]:
    """Replicas of `pools` on empty islands, without those that find no room."""
    found: list[Seated] = []
    for shape in hardest_first(shape for shape, replicas in pools for _ in range(replicas)):
        seated = seat(shape, islands)
        if seated is not None:
            found.append(seated)
            islands = without(islands, (seated,))
    return tuple(found)


def without(free: Islands, replicas: Iterable[Seated]) -> Islands:
    """What is free beside `replicas`."""
    return _changed(free, replicas, -1)


def freed(free: Islands, replicas: Iterable[Seated]) -> Islands:
    """What is free when `replicas` are gone."""
    return _changed(free, replicas, 1)


def _changed(free: Islands, replicas: Iterable[Seated], sign: int) -> Islands:
    rooms = list(free)
    for replica in replicas:
        for island, gpus in replica.taken:
            rooms[island] += sign * gpus
    return tuple(rooms)


def hardest_first(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """In the order in which the fleet's controller seats them."""
    return tuple(sorted(shapes, key=lambda shape: (-shape.tp, -shape.gpus, str(shape))))


def gpus_held(replicas: Iterable[Seated]) -> int:
    """By all of them."""
    return sum(replica.shape.gpus for replica in replicas)


def missing_shapes(target: Mapping[Shape, int], kept: Iterable[Seated]) -> tuple[Shape, ...]:
    """Those of the target that are not among `kept`, the hardest to seat first."""
    return hardest_first((Counter(target) - Counter(replica.shape for replica in kept)).elements())


def kept_replicas(replicas: Sequence[Seated], target: Mapping[Shape, int], free: Islands) -> list[Seated] | None:
    """As many replicas of the target's shapes as leave room for its others once the rest is gone; None if none do."""
    empty = freed(free, replicas)

    def has_room(kept: Sequence[Seated]) -> bool:
        return seat_all(missing_shapes(target, kept), without(empty, kept)) is not None

    left = Counter(target)
    usual = []
    for replica in replicas:
        if left[replica.shape] > 0:
            left[replica.shape] -= 1
            usual.append(replica)
    if has_room(usual):
        return usual
    if not has_room(()):
        return None
    kept: list[Seated] = []
    for replica in usual:
        if has_room([*kept, replica]):
            kept.append(replica)
    return kept
