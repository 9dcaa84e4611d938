"""What fits where, told by numbers of free GPUs alone: of each island, or of each node of one.

Which slots they are, `layout` says; whether and on which islands a replica finds room never depends on it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from placement.shape import Shape


def pack(count: int, size: int, room: Mapping[str, int]) -> dict[str, int]:
    """Units of `size` per bin, `count` in all or as many as there is room for, over as few bins as possible.

    Best fit once the rest fits one bin, the roomiest bin before that; the first name among equals.
    """
    packed: dict[str, int] = {}
    left = room
    while count and left:
        needed = count * size
        fitting = [(free, name) for name, free in left.items() if free >= needed]
        if fitting:
            packed[min(fitting)[1]] = count
            break
        chosen = min(left, key=lambda name: (-(left[name] // size), left[name], name))
        units = left[chosen] // size
        if not units:
            break
        packed[chosen] = units
        count -= units
        left = {name: free for name, free in left.items() if name != chosen}
    return packed


def islands_of_ranks(shape: Shape, room: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """For each data-parallel rank, how many of its stages go to which island; there must be room for all."""
    left = dict(room)
    whole = pack(shape.dp, shape.pp * shape.tp, left)
    for island, ranks in whole.items():
        left[island] -= ranks * shape.pp * shape.tp
        yield from [{island: shape.pp}] * ranks
    for _ in range(shape.dp - sum(whole.values())):
        stages = pack(shape.pp, shape.tp, left)
        for island, count in stages.items():
            left[island] -= count * shape.tp
        yield stages


def islands_of(shape: Shape, room: Mapping[str, int]) -> dict[str, int] | None:
    """How many GPUs of which islands a replica takes; None where there is no room."""
    if not have_room((shape,), room):
        return None
    groups: Counter[str] = Counter()
    for islands in islands_of_ranks(shape, room):
        groups.update(islands)
    return {island: count * shape.tp for island, count in groups.items()}


def have_room(shapes: Sequence[Shape], room: Mapping[str, int]) -> bool:
    """Whether all of `shapes` find room, one after the other."""
    if any(before.tp % after.tp for before, after in pairwise(shapes)):
        return _fit_in_turn(shapes, room)
    # Wherever a group sits, it takes the room of as many narrower ones as its width holds: only sums matter, as long as
    # no wider one follows.
    usable = {tp: sum(free - free % tp for free in room.values()) for tp in {shape.tp for shape in shapes}}
    needed = 0
    for shape in shapes:
        needed += shape.gpus
        if needed > usable[shape.tp]:
            return False
    return True


def _fit_in_turn(shapes: Sequence[Shape], room: Mapping[str, int]) -> bool:
    left = dict(room)
    for shape in shapes:
        taken = islands_of(shape, left)
        if taken is None:
            return False
        left = without(left, taken)
    return True


def without(room: Mapping[str, int], taken: Mapping[str, int]) -> dict[str, int]:
    """What is left of `room`."""
    return {**room, **{island: room[island] - gpus for island, gpus in taken.items()}}
