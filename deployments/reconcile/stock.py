"""One model taken stock of: which replicas stay, which are too many, which are missing, and which seats are free when.

Replicas stay where they are as long as the missing ones find room beside them. Where free GPUs are too scattered for
that, as few replicas as possible are given up, to be started again elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deployments.reconcile.states import Desired, Phase, ReplicaState, count_shapes, hardest_first
from placement.clusters.hardware import Cluster
from placement.layout import Infeasible, Layout, Place, place
from placement.shape import Shape

Layouts = tuple[Layout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """GPUs on nodes that stay. `taken` are not free now; `lasting` are those that other models will keep."""

    cluster: Cluster
    taken: frozenset[Place]
    lasting: frozenset[Place]
    min_memory_bytes: int

    def seat(self, shapes: Iterable[Shape], taken: frozenset[Place]) -> Layouts | Infeasible:
        """A layout for each of `shapes`, in that order, beside what is `taken`."""
        layouts: list[Layout] = []
        for shape in shapes:
            placed = place(shape, self.cluster, taken, min_memory_bytes=self.min_memory_bytes)
            if isinstance(placed, Infeasible):
                return placed
            layouts.append(placed)
            taken |= placed.places
        return tuple(layouts)

    def seat_first(
        self, shapes: Sequence[Shape], taken: frozenset[Place], later: frozenset[Place]
    ) -> Layout | Infeasible:
        """The first of `shapes` beside `taken`, such that the others find room beside `later` afterwards."""
        placed = self.seat(shapes[:1], taken)
        if isinstance(placed, Infeasible):
            return placed
        rest = self.seat(shapes[1:], later | placed[0].places)
        return rest if isinstance(rest, Infeasible) else placed[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """The replicas of one model: `kept` start or serve, `surplus` serve, `going` serve nobody new or never will."""

    desired: Desired
    room: Room
    kept: tuple[ReplicaState, ...]
    surplus: tuple[ReplicaState, ...]
    going: tuple[ReplicaState, ...]

    @property
    def missing(self) -> tuple[Shape, ...]:
        """The shapes still to start, the hardest to seat first."""
        return _missing(self.desired, self.kept)

    @property
    def serving(self) -> tuple[ReplicaState, ...]:
        """What takes requests now."""
        return tuple(one for one in (*self.kept, *self.surplus) if one.phase is Phase.SERVING)

    @property
    def starting(self) -> tuple[ReplicaState, ...]:
        """What is wanted and not there yet."""
        return tuple(one for one in self.kept if one.phase is Phase.STARTING)

    @property
    def taken_soon(self) -> frozenset[Place]:
        """What is taken once all that goes now is gone."""
        return self.taken_later | places_of(self.surplus)

    @property
    def taken_later(self) -> frozenset[Place]:
        """What is taken once the surplus is gone too."""
        return self.room.lasting | places_of(self.kept)


def take_stock(
    desired: Desired, room: Room, replicas: Iterable[ReplicaState], is_live: Callable[[ReplicaState], bool]
) -> Stock:
    """Sort the model's `replicas`; those that are not live are going."""
    live: list[ReplicaState] = []
    going: list[ReplicaState] = []
    for one in replicas:
        (live if is_live(one) else going).append(one)
    # What serves stays before what starts, then the older; nothing that changes with every request is looked at.
    live.sort(key=lambda one: (one.phase is not Phase.SERVING, one.since_s, one.index))
    kept = _keep(desired, room, live)
    surplus = tuple(one for one in live if one not in kept and one.phase is Phase.SERVING)
    going += [one for one in live if one not in kept and one.phase is Phase.STARTING]
    return Stock(desired=desired, room=room, kept=kept, surplus=surplus, going=tuple(going))


def places_of(replicas: Iterable[ReplicaState]) -> frozenset[Place]:
    """All seats of the replicas."""
    return frozenset(place for one in replicas for place in one.layout.places)


def _keep(desired: Desired, room: Room, live: Sequence[ReplicaState]) -> tuple[ReplicaState, ...]:
    def has_room(kept: tuple[ReplicaState, ...]) -> bool:
        seats = room.seat(_missing(desired, kept), room.lasting | places_of(kept))
        return not isinstance(seats, Infeasible)

    usual = _first_of_each(desired, live)
    if has_room(usual) or not has_room(()):
        return usual
    kept: tuple[ReplicaState, ...] = ()
    for one in sorted(live, key=lambda one: one not in usual):
        more = (*kept, one)
        if len(_first_of_each(desired, more)) == len(more) and has_room(more):
            kept = more
    return kept


def _first_of_each(desired: Desired, live: Iterable[ReplicaState]) -> tuple[ReplicaState, ...]:
    left = count_shapes(desired.pools)
    first = []
    for one in live:
        if left[one.layout.shape] > 0:
            left[one.layout.shape] -= 1
            first.append(one)
    return tuple(first)


def _missing(desired: Desired, kept: Iterable[ReplicaState]) -> tuple[Shape, ...]:
    return hardest_first(count_shapes(desired.pools) - Counter(one.layout.shape for one in kept))
