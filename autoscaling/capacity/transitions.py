"""How a fleet gets from its pools to others: what serves, and what it holds meanwhile.

The fleet's controller takes the gentlest way that there is room for, and looks again after every step. So does this,
with times that are expected instead of seen:

    surge    the missing replicas start beside all others; when they serve, the surplus drains
    rolling  as few surplus replicas as make room for one missing drain, it starts, and so on; `floor` keeps serving
    swap     all surplus ends at once, its streams move or are held, then the missing replicas start

Replicas that are in both are not touched, unless free GPUs would be too scattered. On which islands they are is not
known here: they are taken to be packed as the controller packs an empty cluster.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from autoscaling.capacity.seating import (
    Islands,
    Seated,
    freed,
    gpus_held,
    hardest_first,
    kept_replicas,
    missing_shapes,
    packed,
    seat,
    seat_all,
    without,
)
from autoscaling.capacity.times import Times
from autoscaling.observation import Pools, gpus_of, pools_of
from placement.shape import Shape

Counts = tuple[tuple[Shape, int], ...]  # of replicas
Way = Literal["none", "surge", "rolling", "swap"]
_ROUGHER: tuple[Way, ...] = ("none", "surge", "rolling", "swap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """From `from_s` on `serving` serves and `gpus` are held, until the next stage."""

    from_s: float
    serving: Pools = field(hash=False)
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """`stages` begin at 0 s; the last serves the target, and holds what that takes for good.

    `way` is the roughest that is needed on the way, "none" where nothing starts. `stall_s` is how long nothing serves.
    `moved` is the share of the running streams that have to move, and are read anew where they go.
    """

    way: Way
    stages: tuple[Stage, ...]
    stall_s: float = 0.0
    moved: float = 0.0

    @property
    def duration_s(self) -> float:
        """Until the target serves and nothing else is held."""
        return self.stages[-1].from_s

    @property
    def serves_s(self) -> float:
        """Until exactly the target serves; what drains is still held."""
        last = self.stages[-1].serving
        return next(stage.from_s for stage in self.stages if stage.serving == last)


def transition(
    serving: Pools, target: Pools, *, gpus: int, times: Times, floor: float, islands: Islands | None = None
) -> Transition | None:
    """From `serving` to `target`; None where there is no way.

    Args:
        serving: what serves now.
        target: what shall.
        gpus: the most that may be held at once.
        times: of starts, drains and ends.
        floor: the share of the fleet's GPUs (before or after, whichever is fewer) that keeps serving meanwhile; only
            with 0 may nothing serve for a while.
        islands: GPUs of each island that the model may use (`seating.islands_of`), None for a single one of `gpus`.
    """
    return _transition(tuple(serving.items()), tuple(target.items()), gpus, times, floor, islands or (gpus,))


@lru_cache(maxsize=4096)
def _transition(
    serving: Counts, wanted: Counts, gpus: int, times: Times, floor: float, islands: Islands
) -> Transition | None:
    """The same fleet is asked for the same ways at every tick, until it changes."""
    target = dict(wanted)
    replicas = packed(serving, islands)
    free = without(islands, replicas)
    kept = kept_replicas(replicas, target, free)
    if kept is None or gpus_of(target) > gpus:
        return None
    change = _Change(
        kept=kept,
        surplus=list((Counter(replicas) - Counter(kept)).elements()),
        missing=list(missing_shapes(target, kept)),
        free=free,
        gpus=gpus,
        times=times,
        floor=floor,
        before=min(gpus_of(target), gpus_held(replicas)),
    )
    return change.made()


@dataclass(slots=True, kw_only=True)
class _Change:
    """A change under way: what stays or has started, what is too many, what is still to start.

    Each round is over, all starts and ends included, before the next begins.
    """

    kept: list[Seated]
    surplus: list[Seated]
    missing: list[Shape]
    free: Islands
    gpus: int
    times: Times
    floor: float
    before: int  # GPUs that the floor is a share of
    now_s: float = 0.0
    way: Way = "none"
    stall_s: float = 0.0
    moved: float = 0.0
    stages: list[Stage] = field(default_factory=list)

    def made(self) -> Transition | None:
        """Carry it out."""
        self._note()
        while self.missing:
            if not (self._surge() or self._roll() or self._swap()):
                return None
        if self.surplus:
            self._drain(self.surplus)
        return Transition(way=self.way, stages=tuple(self.stages), stall_s=self.stall_s, moved=self.moved)

    def _surge(self) -> bool:
        """Start all that is missing, where there is room beside everything."""
        seats = self._seats()
        if seats is None:
            return False
        self._start(seats, "surge")
        return True

    def _roll(self) -> bool:
        """The GPUs of one replica: those that nobody needs, else start where there is room, else make room."""
        serving_gpus = gpus_held([*self.kept, *self.surplus])
        if spare := self._spare(serving_gpus - self.before):
            self._drain(spare)
        elif seats := self._seats_now():
            self._start(seats, "rolling")
        else:
            batches = [batch for kind in dict.fromkeys(self.missing) if (batch := self._batch(kind))]
            batch = min(batches, key=gpus_held, default=[])
            left = serving_gpus - gpus_held(batch)
            if not batch or left <= 0 or left < self.floor * self.before:
                return False
            self._drain(batch)
        self._worsen("rolling")
        return True

    def _swap(self) -> bool:
        """End the surplus at once and start the rest in its place; what stays goes on serving."""
        if self.floor > 0:
            return False
        self.moved = gpus_held(self.surplus) / gpus_held([*self.kept, *self.surplus])
        since_s = self.now_s
        self._end(self.surplus, self.times.stop_s)
        seats = self._seats()
        if seats is None:
            return False
        if not self.kept:
            soonest_s = min(self.times.start_s(one.shape) for one in seats)
            self.stall_s = self.now_s + soonest_s - since_s
        self._start(seats, "swap")
        return True

    def _seats(self) -> list[Seated] | None:
        """For all that is missing, on what is free now."""
        if sum(shape.gpus for shape in self.missing) > self._within_budget():
            return None
        return seat_all(self.missing, self.free)

    def _seats_now(self) -> list[Seated]:
        """Missing replicas that have room now and leave the others theirs, up to the GPUs of the largest replica."""
        largest = max(shape.gpus for shape in [*self.missing, *(one.shape for one in self.surplus)])
        budget = min(largest, self._within_budget())
        seats: list[Seated] = []
        for kind in dict.fromkeys(self.missing):
            left = Counter(self.missing) - Counter(one.shape for one in seats)
            while left[kind] and kind.gpus <= budget:
                found = self._seat_first(kind, left, without(self.free, seats), seats)
                if found is None:
                    break
                seats.append(found)
                left[kind] -= 1
                budget -= kind.gpus
        return seats

    def _seat_first(self, kind: Shape, left: Counter[Shape], free: Islands, started: Sequence[Seated]) -> Seated | None:
        """One of `kind` on `free`, such that the others of `left` find room when the surplus is gone."""
        seated = seat(kind, free)
        if seated is None:
            return None
        later = without(freed(self.free, self.surplus), [*started, seated])
        others = hardest_first((left - Counter([kind])).elements())
        return None if seat_all(others, later) is None else seated

    def _batch(self, kind: Shape) -> list[Seated]:
        """As few of the surplus as make room for one of `kind`; none where all of it does not."""

        def makes_room(batch: Sequence[Seated]) -> bool:
            if kind.gpus > self._within_budget() + gpus_held(batch):
                return False
            return self._seat_first(kind, Counter(self.missing), freed(self.free, batch), ()) is not None

        if not makes_room(self.surplus):
            return []
        batch = list(self.surplus)
        for one in sorted(self.surplus, key=lambda one: -one.shape.gpus):
            fewer = batch.copy()
            fewer.remove(one)
            batch = fewer if makes_room(fewer) else batch
        return batch

    def _spare(self, gpus: int) -> list[Seated]:
        """Surplus of at most `gpus` together: what serves beyond what the fleet needs to hold."""
        spare = []
        for one in self.surplus:
            if one.shape.gpus <= gpus:
                spare.append(one)
                gpus -= one.shape.gpus
        return spare

    def _within_budget(self) -> int:
        return self.gpus - gpus_held([*self.kept, *self.surplus])

    def _start(self, seats: Sequence[Seated], way: Way) -> None:
        """Each is held from now on and serves after its own time; go on when all do."""
        self._worsen(way)
        self.free = without(self.free, seats)
        for one in seats:
            self.missing.remove(one.shape)
        begin_s, starting = self.now_s, sorted(seats, key=lambda one: self.times.start_s(one.shape))
        for at, one in enumerate(starting):
            self._note(gpus_held(starting[at:]))
            self.now_s = begin_s + self.times.start_s(one.shape)
            self.kept.append(one)
        self._note()

    def _drain(self, replicas: Sequence[Seated]) -> None:
        self._end(replicas, self.times.drain_s + self.times.stop_s)

    def _end(self, replicas: Sequence[Seated], takes_s: float) -> None:
        """They take no more from now on; go on when their GPUs are free."""
        held = gpus_held(replicas)
        self.free = freed(self.free, replicas)
        for one in list(replicas):
            self.surplus.remove(one)
        self._note(held)
        self.now_s += takes_s
        self._note()

    def _note(self, more_gpus: int = 0) -> None:
        """What serves and is held from now on, `more_gpus` by replicas that start or end."""
        replicas = [*self.kept, *self.surplus]
        stage = Stage(
            from_s=self.now_s,
            serving=pools_of(Counter(one.shape for one in replicas)),
            gpus=gpus_held(replicas) + more_gpus,
        )
        if self.stages and self.stages[-1].from_s == self.now_s:
            self.stages.pop()
        if not self.stages or (self.stages[-1].serving, self.stages[-1].gpus) != (stage.serving, stage.gpus):
            self.stages.append(stage)

    def _worsen(self, way: Way) -> None:
        self.way = max(self.way, way, key=_ROUGHER.index)
