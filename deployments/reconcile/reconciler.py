"""One look at the fleets of all models, and the steps that bring them nearer to what is wanted. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deployments.reconcile.failures import Verdict, given_up, judge
from deployments.reconcile.states import (
    ALL_STAY,
    LEAVING_MARGIN_S,
    Actual,
    Desired,
    Durations,
    Leaving,
    Limits,
    Phase,
    Record,
    ReplicaState,
    Way,
    gpus_of,
    name_pools,
    without_nodes,
)
from deployments.reconcile.steps import Drain, Hold, Move, Release, Settle, Start, Step, Stop
from deployments.reconcile.stock import Layouts, Room, Stock, places_of, take_stock
from deployments.reconcile.ways import Advance, Terms, choose_way
from placement.clusters.hardware import Cluster
from placement.layout import Infeasible, Layout, Place

GOING = (Phase.DRAINING, Phase.MOVING, Phase.STOPPING, Phase.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The steps to execute now, in order, and why a model gets no further (or stays where it was rolled back to).

    `ways` names the way of each model that has replicas to start. `reserved` are seats that no other model may use:
    those it starts on and those it waits for. No steps and nothing blocked, with no replica on its way up or down: all
    is as desired.
    """

    steps: tuple[Step, ...] = ()
    blocked: Mapping[str, Infeasible] = field(default_factory=dict)
    ways: Mapping[str, Way] = field(default_factory=dict)
    reserved: frozenset[Place] = frozenset()


def next_steps(
    actual: Actual,
    desired: Sequence[Desired],
    cluster: Cluster,
    limits: Limits,
    durations: Durations,
    *,
    leaving: Leaving = ALL_STAY,
    reserved: frozenset[Place] = frozenset(),
) -> Next:
    """What to do now. The same input gives the same steps.

    Args:
        actual: what was found.
        desired: one for each model, as `wanted` and `survive` made them. The first has the first choice of free seats,
            after those that are owed some (`is_owed`). Replicas of other models are left alone.
        cluster: the nodes that are alive.
        limits: what a change may cost.
        durations: for the stall that a swap announces.
        leaving: nodes that will go, and when. They get no new replicas; theirs are replaced at once, and serve until
            their successors do, or until it is time to go.
        reserved: seats of models that were looked at before.
    """
    staying = without_nodes(cluster, leaving)
    gpus = {node.name: node.gpus for node in staying.nodes}
    there = {node.name: leaving[node.name] for node in cluster.nodes if node.name in leaving}
    look = _Look(actual=actual, cluster=staying, leaving=there, gpus=gpus, limits=limits, durations=durations)
    index, outcomes = actual.next_index, []
    for wish in sorted(desired, key=lambda wish: is_owed(wish, actual), reverse=True):
        outcome = look.at(wish, reserved, index)
        reserved |= outcome.reserved
        index += sum(isinstance(step, Start) for step in outcome.steps)
        outcomes.append(outcome)
    return Next(
        steps=tuple(step for outcome in outcomes for step in outcome.steps),
        blocked={outcome.model: outcome.blocked for outcome in outcomes if outcome.blocked},
        ways={outcome.model: outcome.way for outcome in outcomes if outcome.way},
        reserved=reserved,
    )


def is_owed(wish: Desired, actual: Actual) -> bool:
    """Whether the model has fewer GPUs than it had, on its way to other pools or by a loss, and comes before others.

    Else another model would take what it gave up for a moment.
    """
    live = (one.gpus for one in actual.replicas if one.model == wish.model and one.phase not in GOING)
    return sum(live) < min(gpus_of(actual.record(wish).last_good or ()), gpus_of(wish.pools))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """For one model; `reserved` as in `Next`."""

    model: str
    steps: tuple[Step, ...]
    reserved: frozenset[Place] = frozenset()
    blocked: Infeasible | None = None
    way: Way | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What is the same for all models; `cluster` has only nodes that stay, `gpus` how many GPUs each of them has.

    `leaving` has those that are still there.
    """

    actual: Actual
    cluster: Cluster
    leaving: Leaving
    gpus: Mapping[str, int]
    limits: Limits
    durations: Durations

    def at(self, wish: Desired, reserved: frozenset[Place], index: int) -> _Outcome:
        record = self.actual.record(wish)
        mine = [one for one in self.actual.replicas if one.model == wish.model]
        verdict = judge(wish, record, [one for one in mine if self.is_safe(one)], self.actual, self.limits)
        if verdict.rolls_back:  # other pools are wanted at the next look
            return _Outcome(model=wish.model, steps=verdict.steps)
        stock = take_stock(
            wish, self.room(wish, reserved, verdict), mine, lambda one: self.is_live(one, verdict.failed)
        )
        advance = self.advance(stock, verdict, record)
        ending = (*self.endings(stock, verdict), *_yield(stock, advance))
        dead_end = verdict.stuck or (advance if isinstance(advance, Infeasible) else None)
        starts = _starts(stock, advance, index)
        holding = self.holding(stock, record, ending, dead_end)
        return _Outcome(
            model=wish.model,
            steps=(*verdict.steps, *holding, *ending, *starts, *self.settling(stock, record)),
            reserved=frozenset() if dead_end else _reserved(stock, starts),
            blocked=dead_end or given_up(record),
            way=advance.way if isinstance(advance, Advance) else None,
        )

    def is_safe(self, one: ReplicaState) -> bool:
        """Whether all of the replica's GPUs are there and stay."""
        return not self.lost_nodes(one)

    def lost_nodes(self, one: ReplicaState) -> frozenset[str]:
        return frozenset(seat.node for seat in one.layout.seats if seat.slot >= self.gpus.get(seat.node, 0))

    def has_time(self, one: ReplicaState) -> bool:
        """Whether all that it stands to lose is there, and stays for longer than a move takes."""
        goes_at_s = min((self.leaving.get(node, -math.inf) for node in self.lost_nodes(one)), default=math.inf)
        return self.actual.now_s < goes_at_s - LEAVING_MARGIN_S

    def is_live(self, one: ReplicaState, failed: Mapping[str, str]) -> bool:
        return one.phase not in GOING and one.name not in failed and self.is_safe(one)

    def room(self, wish: Desired, reserved: frozenset[Place], verdict: Verdict) -> Room:
        replicas = self.actual.replicas
        others = (one for one in replicas if one.model != wish.model and one.phase not in GOING)
        return Room(
            cluster=self.cluster,
            taken=places_of(replicas) | reserved,
            lasting=places_of(others) | reserved,
            min_memory_bytes=wish.min_memory_bytes,
            suspect=verdict.failed_on,
        )

    def advance(self, stock: Stock, verdict: Verdict, record: Record) -> Advance | Infeasible | None:
        """None where there is nothing to start, or not now."""
        if not stock.missing or not verdict.may_start:
            return None
        return choose_way(stock, Terms(limits=self.limits, durations=self.durations, last_good=record.last_good))

    def endings(self, stock: Stock, verdict: Verdict) -> Iterator[Drain | Move | Stop]:
        """Carry every replica that goes one phase further, if it is time."""
        for one in stock.going:
            if one.phase is Phase.STOPPING or self.is_last(stock, one):
                continue
            if one.name in verdict.failed:
                yield Stop(name=one.name, reason=f"Its start failed: {verdict.failed[one.name]}.")
            elif one.phase in (Phase.STARTING, Phase.FAILED):
                yield Stop(
                    name=one.name, reason="It is no longer wanted." if self.is_safe(one) else self.why_unsafe(one)
                )
            elif one.phase is Phase.SERVING:
                has_heir = bool(stock.serving or not stock.desired.pools)
                yield (Drain if has_heir and self.has_time(one) else Move)(name=one.name, reason=self.why_unsafe(one))
            elif not (one.unfinished_requests or self.is_unknown(one)):
                yield Stop(name=one.name, reason="It has no requests left.")
            else:
                yield from self.cut_short(stock, one)

    def is_last(self, stock: Stock, one: ReplicaState) -> bool:
        """Whether nobody takes over from it yet and nothing waits for its GPUs: it goes on.

        It drains, and what was to take over has broken; or its node will go, and its successor does not serve yet.
        """
        if one.phase not in (Phase.SERVING, Phase.DRAINING) or stock.serving or not stock.desired.pools:
            return False
        return not stock.missing if self.is_safe(one) else self.has_time(one) and not self.is_waited_for(stock, one)

    def is_waited_for(self, stock: Stock, one: ReplicaState) -> bool:
        """Whether missing replicas have room only with GPUs that stay of it, and of others that leave."""
        if self.gpus.keys().isdisjoint(seat.node for seat in one.layout.seats):
            return False
        left = stock.room.taken - places_of(other for other in stock.going if not self.is_safe(other))
        has_room_now = not stock.room.refusal(stock.missing, stock.room.taken)
        return not (has_room_now or stock.room.refusal(stock.missing, left))

    def is_unknown(self, one: ReplicaState) -> bool:
        """Whether it may have requests though none are told; what is lost has none."""
        return one.unfinished_requests is None and self.has_time(one)

    def cut_short(self, stock: Stock, one: ReplicaState) -> Iterator[Move | Stop]:
        """End a drain, or a move, that must not go on; a model that goes has nowhere to move requests to."""
        if one.phase is Phase.MOVING:
            limit, timeout_s = "the time for moving", self.limits.move_timeout_s
        else:
            limit, timeout_s = "drain_timeout_s", self.limits.drain_timeout_s
        is_late = self.actual.now_s - one.since_s >= timeout_s
        late = f"{limit} = {timeout_s:g} is over"
        is_held = one.model in self.actual.held
        if is_late and not stock.desired.pools:
            yield Stop(name=one.name, reason=f"The model goes, and {late}.")
        elif one.phase is Phase.MOVING:
            if is_late and is_held:
                yield Stop(name=one.name, reason=f"What is left on it cannot move, all others wait, and {late}.")
        elif is_late:
            yield Move(name=one.name, reason=f"It still has requests, and {late}.")
        elif not self.has_time(one):
            yield Move(name=one.name, reason=self.why_unsafe(one))
        elif is_held:
            yield Move(name=one.name, reason="The requests of the model are held until its GPUs come free.")

    def why_unsafe(self, one: ReplicaState) -> str:
        return f"GPUs of it are lost or leaving: {', '.join(sorted(self.lost_nodes(one)))}."

    def holding(
        self, stock: Stock, record: Record, ending: Sequence[Step], dead_end: Infeasible | None
    ) -> Iterator[Hold | Release]:
        """Hold requests while no replica is left to take them, until one is; a model that never served has none."""
        model = stock.desired.model
        ended = {step.name for step in ending if isinstance(step, Drain | Move | Stop)}
        takers = (*stock.serving, *(one for one in stock.going if self.is_last(stock, one)))
        has_taker = any(one.name not in ended for one in takers)
        is_hopeless = dead_end is not None or not stock.desired.pools
        has_requests = bool(record.last_good) or any(isinstance(step, Move) for step in ending)
        if model in self.actual.held:
            if has_taker:
                yield Release(model=model, reason="A replica serves.")
            elif is_hopeless:
                yield Release(model=model, reason="No replica is going to serve.")
        elif has_requests and not has_taker and not is_hopeless:
            stall_s = self.durations.stall_s
            yield Hold(model=model, stall_s=stall_s, reason=f"Nothing serves for about {stall_s:g} s.")

    def settling(self, stock: Stock, record: Record) -> Iterator[Settle]:
        """Remember that all is as desired. A fleet that was rolled back stays so until the next version."""
        if stock.missing or stock.starting or stock.surplus or stock.going:
            return
        wish = stock.desired
        last_good = record.last_good if record.given_up else wish.pools
        settled = replace(record, last_good=last_good, reached=True, failed_at_s=(), failed_on=frozenset())
        if settled != self.actual.records.get(wish.model):
            yield Settle(model=wish.model, record=settled, reason=f"{wish.model} has {name_pools(wish.pools)}.")


def _yield(stock: Stock, advance: Advance | Infeasible | None) -> Iterator[Drain | Move]:
    """End the surplus: what makes room for others now, or all of it once everything else serves."""
    if isinstance(advance, Advance):
        for one in advance.yielding:
            if advance.way is Way.SWAP:
                yield Move(name=one.name, reason="Its GPUs are needed before the new replicas can start.")
            else:
                yield Drain(name=one.name, reason="Its GPUs are needed for the next replica.")
    elif not stock.missing and not stock.starting:
        for one in stock.surplus:
            yield Drain(name=one.name, reason=f"What is wanted: {name_pools(stock.desired.pools)}.")


def _starts(stock: Stock, advance: Advance | Infeasible | None, index: int) -> tuple[Start, ...]:
    if not isinstance(advance, Advance):
        return ()
    model = stock.desired.model
    slug = model.replace("/", "-")
    return tuple(
        Start(
            name=f"{slug}--{layout.shape}--{number}",
            model=model,
            layout=layout,
            reason=f"{name_pools(stock.desired.pools)} wanted ({advance.way}).{_shunned(stock.room, layout)}",
        )
        for number, layout in enumerate(advance.starts, start=index)
    )


def _shunned(room: Room, layout: Layout) -> str:
    """Which free GPUs the layout stays clear of, and why; empty where there are none."""
    nodes: dict[str, list[str]] = {}
    for node, slot in sorted(room.suspect - room.taken):
        nodes.setdefault(node, []).append(str(slot))
    if not nodes or room.suspect & layout.places:
        return ""
    gpus = "; ".join(f"{', '.join(slots)} of {node}" for node, slots in nodes.items())
    return f" Not on GPUs {gpus}, where a start has failed."


def _reserved(stock: Stock, starts: Iterable[Start]) -> frozenset[Place]:
    """The seats of `starts`, and where the rest of the missing replicas will go."""
    started = frozenset(place for start in starts for place in start.layout.places)
    left = list(stock.missing)
    for start in starts:
        left.remove(start.layout.shape)
    waiting: Layouts | Infeasible = stock.room.seat(left, stock.taken_later | started)
    if isinstance(waiting, Infeasible):
        return started
    return started | {place for layout in waiting for place in layout.places}
