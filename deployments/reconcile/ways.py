"""Surge, rolling or swap: how the missing replicas of a model get their seats.

A way is chosen anew from what is found, at every look. What an earlier look has set going counts as done: seats that
are being freed are waited for, so a chosen way is carried on without being remembered.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deployments.reconcile.states import Durations, Limits, Pools, ReplicaState, Way, gpus_of
from deployments.reconcile.stock import Layouts, Stock, places_of
from placement.layout import Infeasible
from placement.room import have_room, islands_of, without
from placement.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What to do now on the chosen way: start `starts`, and make room with `yielding`. Both empty: wait."""

    way: Way
    starts: Layouts = ()
    yielding: tuple[ReplicaState, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms a way may be chosen. `last_good` tells how much the fleet served before."""

    limits: Limits
    durations: Durations
    last_good: Pools | None


def choose_way(stock: Stock, terms: Terms) -> Advance | Infeasible:
    """The gentlest way that is possible, or the one that is asked for, for a stock that misses something."""
    if refusal := stock.room.refusal(stock.missing, stock.taken_later):
        return refusal
    refusals: dict[Way, Infeasible] = {}
    for way in (stock.desired.way,) if stock.desired.way else tuple(Way):
        found = _WAYS[way](stock, terms)
        if isinstance(found, Advance):
            return found
        refusals[way] = found
    return Infeasible(
        constraint="; ".join(f"{way}: {refusal.constraint}" for way, refusal in refusals.items()),
        nearest=", or ".join(dict.fromkeys(refusal.nearest for refusal in refusals.values())),
    )


def _surge(stock: Stock, terms: Terms) -> Advance | Infeasible:
    seats = stock.room.seat(stock.missing, stock.room.taken)
    if not isinstance(seats, Infeasible):
        return Advance(way=Way.SURGE, starts=seats)
    return stock.room.refusal(stock.missing, stock.taken_soon) or Advance(way=Way.SURGE)


def _rolling(stock: Stock, terms: Terms) -> Advance | Infeasible:
    """The GPUs of one replica at a time: nothing happens while one starts or goes."""
    if stock.starting or stock.going:
        return Advance(way=Way.ROLLING)
    serving = sum(one.gpus for one in stock.serving)
    before = _gpus_to_hold(stock, terms)
    if spare := _spare(stock.surplus, serving - before):
        return Advance(way=Way.ROLLING, yielding=spare)
    if starts := _starts_now(stock):
        return Advance(way=Way.ROLLING, starts=starts)
    batches = [batch for kind in dict.fromkeys(stock.missing) if (batch := _batch(stock, kind))]
    if not batches:  # the room is still held by what other models give up
        return Advance(way=Way.ROLLING)
    batch = min(batches, key=lambda batch: sum(one.gpus for one in batch))
    left = serving - sum(one.gpus for one in batch)
    if left <= 0 or left < terms.limits.floor * before:
        return Infeasible(
            constraint=f"room for the next replica costs {serving - left} of {serving} GPUs that serve, and leaves "
            f"{left}; at least 1 and {terms.limits.floor:g} of {before} must keep serving",
            nearest=_lower_floor(left, before),
        )
    return Advance(way=Way.ROLLING, yielding=batch)


def _swap(stock: Stock, terms: Terms) -> Advance | Infeasible:
    limits, stall_s = terms.limits, terms.durations.stall_s
    if limits.floor > 0:
        return Infeasible(
            constraint=f"nothing serves for about {stall_s:g} s; the floor is {limits.floor:g}", nearest="floor 0"
        )
    if stall_s > limits.max_stall_s:
        return Infeasible(
            constraint=f"nothing serves for about {stall_s:g} s; max_stall_s is {limits.max_stall_s:g}",
            nearest=f"max_stall_s {stall_s:g}",
        )
    seats = stock.room.seat(stock.missing, stock.room.taken)
    if stock.surplus or isinstance(seats, Infeasible):
        return Advance(way=Way.SWAP, yielding=stock.surplus)
    return Advance(way=Way.SWAP, starts=seats)


_WAYS: dict[Way, Callable[[Stock, Terms], Advance | Infeasible]] = {
    Way.SURGE: _surge,
    Way.ROLLING: _rolling,
    Way.SWAP: _swap,
}


def _gpus_to_hold(stock: Stock, terms: Terms) -> int:
    """What the floor is a fraction of: the GPUs of the fleet before or after, whichever is fewer."""
    after = gpus_of(stock.desired.pools)
    return min(after, gpus_of(terms.last_good)) if terms.last_good else after


def _spare(surplus: Iterable[ReplicaState], gpus: int) -> tuple[ReplicaState, ...]:
    """Surplus replicas of at most `gpus` together: what serves beyond what the fleet served before."""
    spare = []
    for one in surplus:
        if one.gpus <= gpus:
            spare.append(one)
            gpus -= one.gpus
    return tuple(spare)


def _starts_now(stock: Stock) -> Layouts:
    """Missing replicas that have room now and leave the others theirs, up to the GPUs of the largest replica."""
    budget = max((*(shape.gpus for shape in stock.missing), *(one.gpus for one in stock.surplus)))
    starts: Layouts = ()
    left, taken, later = stock.missing, stock.room.taken, stock.taken_later
    for kind in dict.fromkeys(stock.missing):
        while kind in left and kind.gpus <= budget:
            seat = stock.room.seat_first(_with_first(kind, left), taken, later)
            if isinstance(seat, Infeasible):
                break
            starts, left = (*starts, seat), _with_first(kind, left)[1:]
            taken, later = taken | seat.places, later | seat.places
            budget -= kind.gpus
    return starts


def _with_first(kind: Shape, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shapes with one of `kind` first, and in their order otherwise."""
    at = shapes.index(kind)
    return (kind, *shapes[:at], *shapes[at + 1 :])


def _batch(stock: Stock, kind: Shape) -> tuple[ReplicaState, ...]:
    """As few surplus replicas as possible whose seats make room for one of `kind` and cost the other missing ones none.

    Empty where all of them are not enough.
    """
    room, others = stock.room, _with_first(kind, stock.missing)[1:]
    later = room.free(stock.taken_later)
    now = room.free(room.taken - places_of(stock.surplus))

    def has_room(free: Mapping[str, int]) -> bool:
        first = islands_of(kind, free)
        return first is not None and have_room(others, without(later, first))

    if not has_room(now):
        return ()
    needed = {one.name for one in stock.surplus}
    for one in sorted(stock.surplus, key=lambda one: -one.gpus):
        fewer = without(now, room.gpus_by_island([one]))
        if has_room(fewer):
            now = fewer
            needed.remove(one.name)
    return tuple(one for one in stock.surplus if one.name in needed)


def _lower_floor(left: int, before: int) -> str:
    return f"floor {left / before:.2g}" if left > 0 else "a swap"
