"""One model taken stock of: which replicas stay, which are too many, which are missing, and which seats are free when.

Replicas stay where they are as long as the missing ones find room beside them. Where free GPUs are too scattered for
that, as few replicas as possible are given up, to be started again elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from deployments.reconcile.states import Desired, Phase, ReplicaState, count_shapes, hardest_first
from placement.clusters.hardware import Cluster
from placement.layout import Infeasible, Layout, Place, free_gpus, place, place_all
from placement.room import have_room
from placement.shape import Shape

Layouts = tuple[Layout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """GPUs on nodes that stay. `taken` are not free now; `lasting` are those that other models will keep.

    `suspect` are those where starts have failed: a replica sits there only where it would find no room elsewhere.
    """

    cluster: Cluster
    taken: frozenset[Place]
    lasting: frozenset[Place]
    min_memory_bytes: int
    suspect: frozenset[Place] = frozenset()

    def seat(self, shapes: Sequence[Shape], taken: frozenset[Place]) -> Layouts | Infeasible:
        """A layout for each of `shapes`, in that order, beside what is `taken`."""
        if not self.suspect:
            return place_all(shapes, self.cluster, taken, min_memory_bytes=self.min_memory_bytes)
        layouts: list[Layout] = []
        beside = taken
        for shape in shapes:
            placed = self._place(shape, beside)
            if isinstance(placed, Infeasible):
                return self._trusting.seat(shapes, taken)
            layouts.append(placed)
            beside |= placed.places
        return tuple(layouts)

    def seat_first(
        self, shapes: Sequence[Shape], taken: frozenset[Place], later: frozenset[Place]
    ) -> Layout | Infeasible:
        """The first of `shapes` beside `taken`, such that the others find room beside `later` afterwards."""
        placed = self._place(shapes[0], taken)
        if isinstance(placed, Infeasible):
            return placed
        refusal = self.refusal(shapes[1:], later | placed.places)
        if refusal and self.suspect:
            return self._trusting.seat_first(shapes, taken, later)
        return refusal or placed

    def refusal(self, shapes: Sequence[Shape], taken: frozenset[Place]) -> Infeasible | None:
        """Why `shapes` have no room beside what is `taken`, wherever starts have failed; None where they have."""
        if have_room(shapes, self.free(taken)):
            return None
        seats = self._trusting.seat(shapes, taken)
        return seats if isinstance(seats, Infeasible) else None

    def free(self, taken: frozenset[Place]) -> dict[str, int]:
        """GPUs of each island beside what is `taken`."""
        return free_gpus(self.cluster, taken, min_memory_bytes=self.min_memory_bytes)

    def gpus_by_island(self, replicas: Iterable[ReplicaState]) -> Counter[str]:
        """How many GPUs come free on which islands when the replicas go."""
        nodes = {node.name: node for node in self.cluster.nodes if node.gpu.memory_bytes >= self.min_memory_bytes}
        places = (place for place in places_of(replicas) if place[0] in nodes)
        return Counter(nodes[node].island for node, slot in places if slot < nodes[node].gpus)

    @property
    def _trusting(self) -> "Room":
        """This room with no suspicion: what stays clear of some GPUs may leave the others too scattered."""
        return replace(self, suspect=frozenset())

    def _place(self, shape: Shape, taken: frozenset[Place]) -> Layout | Infeasible:
        elsewhere = place(shape, self.cluster, taken | self.suspect, min_memory_bytes=self.min_memory_bytes)
        if isinstance(elsewhere, Layout) or not self.suspect:
            return elsewhere
        return place(shape, self.cluster, taken, min_memory_bytes=self.min_memory_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """The replicas of one model: `kept` start or serve, `surplus` serve, `going` serve nobody new or never will.

    `missing` are the shapes still to start, the hardest to seat first. `taken_later` is what is taken once all that
    goes and the surplus are gone.
    """

    desired: Desired
    room: Room
    kept: tuple[ReplicaState, ...]
    surplus: tuple[ReplicaState, ...]
    going: tuple[ReplicaState, ...]
    missing: tuple[Shape, ...]
    taken_later: frozenset[Place]

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
    names = {one.name for one in kept}
    surplus = tuple(one for one in live if one.name not in names and one.phase is Phase.SERVING)
    going += [one for one in live if one.name not in names and one.phase is Phase.STARTING]
    return Stock(
        desired=desired,
        room=room,
        kept=kept,
        surplus=surplus,
        going=tuple(going),
        missing=_missing(desired, kept),
        taken_later=room.lasting | places_of(kept),
    )


def places_of(replicas: Iterable[ReplicaState]) -> frozenset[Place]:
    """All seats of the replicas."""
    return frozenset(place for one in replicas for place in one.layout.places)


def _keep(desired: Desired, room: Room, live: Sequence[ReplicaState]) -> tuple[ReplicaState, ...]:
    def has_room(kept: tuple[ReplicaState, ...]) -> bool:
        return have_room(_missing(desired, kept), room.free(room.lasting | places_of(kept)))

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
