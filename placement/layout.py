"""A shape put on concrete GPUs: every rank gets an island, a node and a slot.

A tensor-parallel group is the unit: it never leaves an island, and stays on one node where one has room. Islands are
then chosen so that a replica touches as few as possible, and among equals the fullest that still fits (best fit),
so that large free islands stay whole for the next replica. Every level (data-parallel ranks and stages onto islands,
groups and single ranks onto nodes) is the same packing of equal units, `pack`; it leaves a unit out only where no bin
has room, so a layout is found whenever the free GPUs of the islands hold the groups at all.

The complexity comes from one rule of vLLM's Ray executor: the first readers of its broadcast queue are taken to be on
rank 0's node, so of each data-parallel rank the ranks on that node must be a prefix 0..n-1. `_ordered` sees to it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from placement.clusters.hardware import Cluster, Node
from placement.room import islands_of_ranks, pack
from placement.shape import Shape

_GIB = 1024**3

Place = tuple[str, int]  # node name and slot
Group = tuple[Place, ...]  # the places of one tensor-parallel group, in the order of tp_rank


class LayoutError(ValueError):
    """A layout breaks an invariant. The message names the rank and the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One rank on one GPU. `rank` counts over the whole replica: dp_rank*(pp*tp) + pp_rank*tp + tp_rank."""

    rank: int
    dp_rank: int
    pp_rank: int
    tp_rank: int
    island: str
    node: str
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`seats[i]` is rank i."""

    shape: Shape
    seats: tuple[Seat, ...]

    @property
    def places(self) -> frozenset[Place]:
        """The (node, slot) pairs in use, to pass as `taken` when placing the next replica."""
        return frozenset((seat.node, seat.slot) for seat in self.seats)

    def check(self, cluster: Cluster) -> None:
        """Raise `LayoutError` unless the layout obeys every rule on `cluster`."""
        if len(self.seats) != self.shape.gpus:
            raise LayoutError(f"{self.shape} has {self.shape.gpus} ranks; the layout has {len(self.seats)} seats.")
        nodes = {node.name: node for node in cluster.nodes}
        for rank, seat in enumerate(self.seats):
            _check_seat(seat, rank, self.shape, nodes)
        if len(self.places) != len(self.seats):
            raise LayoutError(
                f"{self.shape} has {len(self.seats)} ranks on {len(self.places)} GPUs; it needs one each."
            )
        for start in range(0, self.shape.gpus, self.shape.tp):
            group = self.seats[start : start + self.shape.tp]
            if len({seat.island for seat in group}) > 1:
                raise LayoutError(f"The tensor-parallel group of rank {start} is on more than one island.")
        for start in range(0, self.shape.gpus, self.shape.tp * self.shape.pp):
            _check_prefix(self.seats[start : start + self.shape.tp * self.shape.pp])


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """An answer, not an error: what binds, with its numbers, and the nearest change that would work."""

    constraint: str
    nearest: str

    def __str__(self) -> str:
        return f"{self.constraint}. Nearest: {self.nearest}"


def place(
    shape: Shape, cluster: Cluster, taken: frozenset[Place] = frozenset(), *, min_memory_bytes: int = 0
) -> Layout | Infeasible:
    """Seat `shape` on GPUs of `cluster` that are not `taken` and have at least `min_memory_bytes`."""
    free = _free(cluster, taken, min_memory_bytes)
    placed = _place(shape, free, _count(free), min_memory_bytes)
    if isinstance(placed, Layout):
        placed.check(cluster)
    return placed


def place_replicas(shape: Shape, cluster: Cluster, count: int) -> tuple[Layout, ...] | Infeasible:
    """`count` times `shape`, one after the other, on a cluster that nothing else uses."""
    return place_all((shape,) * count, cluster)


def place_all(
    shapes: Iterable[Shape], cluster: Cluster, taken: frozenset[Place] = frozenset(), *, min_memory_bytes: int = 0
) -> tuple[Layout, ...] | Infeasible:
    """A layout for each of `shapes`, one after the other as `place` would."""
    free = _free(cluster, taken, min_memory_bytes)
    room = _count(free)
    layouts = []
    for shape in shapes:
        placed = _place(shape, free, room, min_memory_bytes)
        if isinstance(placed, Infeasible):
            return placed
        layouts.append(placed)
    return tuple(layouts)


def _place(
    shape: Shape, free: dict[str, dict[str, list[int]]], room: dict[str, int], min_memory_bytes: int
) -> Layout | Infeasible:
    """Take the slots of one replica out of `free`, whose GPUs per island `room` counts."""
    if sum(gpus // shape.tp for gpus in room.values()) < shape.pp * shape.dp:
        return _infeasible(shape, room, min_memory_bytes)
    seats: list[Seat] = []
    for dp_rank, islands in enumerate(islands_of_ranks(shape, room)):
        groups = []
        for island, count in islands.items():
            groups += [(island, group) for group in _take(free[island], count, shape.tp)]
            room[island] -= count * shape.tp
        seats += _seats(shape, dp_rank, groups)
    return Layout(shape=shape, seats=tuple(seats))


def free_gpus(cluster: Cluster, taken: frozenset[Place], *, min_memory_bytes: int = 0) -> dict[str, int]:
    """Free GPUs of each island."""
    room = dict.fromkeys((node.island for node in cluster.nodes), 0)
    nodes = {node.name: node for node in cluster.nodes if node.gpu.memory_bytes >= min_memory_bytes}
    for node in nodes.values():
        room[node.island] += node.gpus
    for name, slot in taken:
        if name in nodes and slot < nodes[name].gpus:
            room[nodes[name].island] -= 1
    return room


def _free(cluster: Cluster, taken: frozenset[Place], min_memory_bytes: int) -> dict[str, dict[str, list[int]]]:
    """Island -> node -> free slots, lowest first."""
    return {
        island: {
            node.name: [slot for slot in range(node.gpus) if (node.name, slot) not in taken]
            for node in nodes
            if node.gpu.memory_bytes >= min_memory_bytes
        }
        for island, nodes in cluster.islands.items()
    }


def _count(free: Mapping[str, Mapping[str, list[int]]]) -> dict[str, int]:
    return {island: sum(map(len, nodes.values())) for island, nodes in free.items()}


def _take(nodes: dict[str, list[int]], count: int, tp: int) -> list[Group]:
    """Take `count` tensor-parallel groups out of the free slots of one island, ordered for the prefix rule."""
    groups = [
        _pop(nodes, {name: tp})
        for name, units in pack(count, tp, {name: len(slots) for name, slots in nodes.items()}).items()
        for _ in range(units)
    ]
    while len(groups) < count:
        groups.append(_pop(nodes, pack(tp, 1, {name: len(slots) for name, slots in nodes.items()})))
    return _ordered(groups)


def _pop(nodes: dict[str, list[int]], counts: Mapping[str, int]) -> Group:
    return tuple((name, nodes[name].pop(0)) for name, count in counts.items() for _ in range(count))


def _ordered(groups: list[Group]) -> list[Group]:
    """Groups on one node stay in order, but a group over several nodes comes right after those on its first node.

    Such a group starts with the node that had most slots left, and took them all: that node has a share in no other
    group over several nodes, so led by it the ranks on rank 0's node are a prefix.
    """
    over_nodes = [group for group in groups if _nodes(group) > 1]
    if not over_nodes:
        return groups
    lead = over_nodes[0]
    on_lead = [group for group in groups if _nodes(group) == 1 and group[0][0] == lead[0][0]]
    rest = [group for group in groups if group != lead and group not in on_lead]
    return [*on_lead, lead, *rest]


def _nodes(group: Group) -> int:
    return len({node for node, _ in group})


def _seats(shape: Shape, dp_rank: int, groups: list[tuple[str, Group]]) -> Iterator[Seat]:
    for pp_rank, (island, group) in enumerate(groups):
        for tp_rank, (node, slot) in enumerate(group):
            rank = (dp_rank * shape.pp + pp_rank) * shape.tp + tp_rank
            yield Seat(
                rank=rank, dp_rank=dp_rank, pp_rank=pp_rank, tp_rank=tp_rank, island=island, node=node, slot=slot
            )


def _check_seat(seat: Seat, rank: int, shape: Shape, nodes: Mapping[str, Node]) -> None:
    stage, tp_rank = divmod(rank, shape.tp)
    dp_rank, pp_rank = divmod(stage, shape.pp)
    if (seat.rank, seat.dp_rank, seat.pp_rank, seat.tp_rank) != (rank, dp_rank, pp_rank, tp_rank):
        raise LayoutError(f"Seat {rank} must be rank {rank} = dp {dp_rank}, pp {pp_rank}, tp {tp_rank}; it is {seat}.")
    node = nodes.get(seat.node)
    if node is None or node.island != seat.island:
        raise LayoutError(f"Rank {rank} is on node {seat.node} of {seat.island}; the cluster has no such node there.")
    if not 0 <= seat.slot < node.gpus:
        raise LayoutError(f"Rank {rank} is in slot {seat.slot} of {seat.node}, which has slots 0 to {node.gpus - 1}.")


def _check_prefix(seats: tuple[Seat, ...]) -> None:
    first = seats[0]
    together = sum(seat.node == first.node for seat in seats)
    stray = [seat.rank for seat in seats[together:] if seat.node == first.node]
    if stray:
        raise LayoutError(
            f"Ranks {stray} are on {first.node} like rank {first.rank}, but not right after it: the ranks on the node "
            "of a data-parallel rank's first rank must be a prefix."
        )


def _infeasible(shape: Shape, room: Mapping[str, int], min_memory_bytes: int) -> Infeasible:
    """Why `shape` has no room: what it needs, what the islands have, and the closest shape that has room."""
    of_size = f" of at least {min_memory_bytes / _GIB:.1f} GiB" if min_memory_bytes else ""
    groups = sum(free // shape.tp for free in room.values())
    if not any(room.values()):
        constraint = f"{shape} needs {_free_gpus(shape.gpus)}{of_size}; the {len(room)} islands have 0"
        return Infeasible(constraint=constraint, nearest=more_needed(shape, room))
    if shape.tp == 1:
        constraint = f"{shape} needs {_free_gpus(shape.gpus)}{of_size}; the {len(room)} islands have {groups}"
    elif groups == 0:
        largest = _largest(room)
        constraint = (
            f"{shape} needs {_free_gpus(shape.tp)}{of_size} in one island; "
            f"the largest free island has {room[largest]} ({largest})"
        )
    else:
        constraint = (
            f"{shape} needs {shape.pp * shape.dp} groups of {_free_gpus(shape.tp)}{of_size}, each inside one island; "
            f"the {len(room)} islands have room for {groups}"
        )
    nearest = _nearest_shape(shape, list(room.values()))
    if nearest.gpus == shape.gpus:
        return Infeasible(constraint=constraint, nearest=str(nearest))
    return Infeasible(constraint=constraint, nearest=f"{nearest}, or {more_needed(shape, room)}")


def more_needed(shape: Shape, room: Mapping[str, int]) -> str:
    """How many GPUs more would hold `shape`, given the free GPUs of each island, which are too few."""
    if not room:
        return f"an island of {_free_gpus(shape.gpus)}"
    largest = _largest(room)
    missing_groups = shape.pp * shape.dp - sum(free // shape.tp for free in room.values())
    return f"{_free_gpus(missing_groups * shape.tp - room[largest] % shape.tp, more='more ')} in {largest}"


def _largest(room: Mapping[str, int]) -> str:
    return min(room, key=lambda island: (-room[island], island))


def _nearest_shape(shape: Shape, sizes: list[int]) -> Shape:
    """The same GPUs in narrower groups, else fewer data-parallel ranks, else fewer stages. `sizes` holds a free GPU."""
    widths = [tp for tp in range(shape.tp, 0, -1) if shape.tp % tp == 0]
    rooms = {tp: sum(size // tp for size in sizes) for tp in widths}
    for tp in widths:
        pp = shape.pp * shape.tp // tp
        if rooms[tp] >= pp * shape.dp:
            return _with_ep(shape, tp=tp, pp=pp, dp=shape.dp)
    tp = next(tp for tp in widths if rooms[tp])
    if rooms[tp] >= shape.pp:
        return _with_ep(shape, tp=tp, pp=shape.pp, dp=min(shape.dp, rooms[tp] // shape.pp))
    return _with_ep(shape, tp=tp, pp=rooms[tp], dp=1)


def _with_ep(shape: Shape, *, tp: int, pp: int, dp: int) -> Shape:
    return Shape(tp=tp, pp=pp, dp=dp, ep=tp * dp if shape.ep > 1 else 1)


def _free_gpus(count: int, *, more: str = "") -> str:
    return f"{count} {more}free GPU" if count == 1 else f"{count} {more}free GPUs"
