"""Random clusters, wishes and faults: whenever the controller crashes, the fleet gets where it can, or says why not.

The controller of these tests crashes at any step: it carries out only some of the steps, then looks again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placement_builders import cluster_of
from reconcile_builders import DURATIONS, found, look, make_limits

from deployments.reconcile import (
    Actual,
    Adjusted,
    Desired,
    Drain,
    Leaving,
    Limits,
    Move,
    Next,
    Phase,
    Pool,
    Start,
    Step,
    World,
    carry_out,
    count_shapes,
    forecast,
    next_steps,
    simulate,
    survive,
    wait,
    wanted,
    without_nodes,
)
from placement import Cluster, Infeasible, Shape, place

SHAPES = [Shape.parse(text) for text in ("tp1", "tp2", "pp2", "tp2pp2", "tp4")]
MODELS = ("acme/a", "acme/b")
PATIENT = make_limits(retry_after_s=(10.0, 20.0))

clusters = st.lists(
    st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 2), st.integers(1, 2))), min_size=1, max_size=3
)
pools = st.lists(st.builds(Pool, shape=st.sampled_from(SHAPES), replicas=st.integers(0, 4)), max_size=2).map(tuple)
notices = st.sampled_from([0.0, 40.0, 3600.0, math.inf])  # a start takes 30 s
floors = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@dataclass
class Fleet:
    """A cluster, what is wanted on it, and the world; `act` checks every step."""

    whole: Cluster
    limits: Limits
    world: World
    wishes: dict[str, Desired] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()

    @property
    def leaving(self) -> Leaving:
        return self.world.leaving

    @property
    def actual(self) -> Actual:
        return self.world.actual

    @property
    def cluster(self) -> Cluster:
        return without_nodes(self.whole, self.lost)

    def wish(self, model: str, wanted_pools: tuple[Pool, ...]) -> None:
        version = self.wishes[model].version + 1 if model in self.wishes else 1
        self.wishes[model] = Desired(model=model, pools=wanted_pools, version=version)

    def effective(self, actual: Actual) -> list[Desired]:
        """The wishes as the controller passes them on."""
        wishes = []
        for wish in self.wishes.values():
            wish = wanted(wish, actual.record(wish))
            others = {place for one in actual.replicas if one.model != wish.model for place in one.layout.places}
            left = without_nodes(self.cluster, self.leaving)
            if self.lost or self.leaving:
                answer = survive(wish, left, lambda shape: True, SHAPES, taken=frozenset(others))
                wish = answer.applied_to(wish) if isinstance(answer, Adjusted) else wish
            wishes.append(wish)
        return wishes

    def decide(self, actual: Actual) -> Next:
        args = (actual, self.effective(actual), self.cluster, self.limits, DURATIONS)
        decided = next_steps(*args, leaving=self.leaving)
        assert decided == next_steps(*args, leaving=self.leaving)
        self.check(actual, decided)
        return decided

    def check(self, actual: Actual, decided: Next) -> None:
        world = replace(self.world, actual=actual)
        for step in decided.steps:
            before = world.actual
            world = carry_out(world, step)  # refuses a step for a replica that is not there
            self.check_seats(before, world.actual, step)
            self.check_floor(before, world.actual, step)
        repeated = set(map(key, next_steps_after(self, world.actual))) & set(map(key, decided.steps))
        assert not repeated

    def check_seats(self, before: Actual, after: Actual, step: Step) -> None:
        seats = [place for one in after.replicas for place in one.layout.places]
        assert len(seats) == len(set(seats)), step
        if isinstance(step, Start):
            step.layout.check(without_nodes(self.cluster, self.leaving))
            assert before.next_index <= after.replicas[-1].index

    def check_floor(self, before: Actual, after: Actual, step: Step) -> None:
        """Whoever ends a replica that serves on sound nodes leaves enough of the others."""
        if not self.limits.floor or not isinstance(step, Drain | Move):
            return
        (ended,) = (one for one in before.replicas if one.name == step.name)
        sound = {node.name for node in without_nodes(self.cluster, self.leaving).nodes}
        if ended.phase is not Phase.SERVING or not all(seat.node in sound for seat in ended.layout.seats):
            return
        (wish,) = (wish for wish in self.effective(before) if wish.model == ended.model)
        good = before.record(wish).last_good
        gpus = sum(pool.shape.gpus * pool.replicas for pool in wish.pools)
        if good:
            gpus = min(gpus, sum(pool.shape.gpus * pool.replicas for pool in good))
        serving = sum(
            one.gpus
            for one in after.replicas
            if one.model == wish.model
            and one.phase is Phase.SERVING
            and all(seat.node in sound for seat in one.layout.seats)
        )
        assert serving >= self.limits.floor * gpus, step

    def finish(self) -> Next:
        """Loop until nothing happens; fails when it never ends."""
        moments = list(simulate(self.world, self.decide, max_looks=600))
        self.world = moments[-1].world
        return moments[-1].decided


def next_steps_after(fleet: Fleet, actual: Actual) -> tuple[Step, ...]:
    return next_steps(
        actual, fleet.effective(actual), fleet.cluster, fleet.limits, DURATIONS, leaving=fleet.leaving
    ).steps


def key(step: Step) -> tuple[str, str]:
    """What a step does, and to what."""
    kind = type(step).__name__
    return kind, step.name if isinstance(step, Start) else getattr(step, "name", "") or step.model  # type: ignore[union-attr]


def make_fleet(islands: list[int | tuple[int, ...]], floor: float) -> Fleet:
    limits = replace(PATIENT, floor=floor)
    return Fleet(
        whole=cluster_of(*islands),
        limits=limits,
        world=World(actual=found(), durations=DURATIONS, limits=limits),
    )


def failing(indices: frozenset[int]) -> Callable[[str], bool]:
    """Whether a replica of that name fails to start."""
    return lambda name: int(name.rpartition("--")[2]) in indices


def some_looks(fleet: Fleet, data: st.DataObject) -> None:
    """A few looks; at each the controller may crash after any step, and time may pass or not."""
    for _ in range(data.draw(st.integers(0, 6), label="looks")):
        steps = fleet.decide(fleet.actual).steps
        done = data.draw(st.integers(0, len(steps)), label="steps carried out")
        for step in steps[:done]:
            fleet.world = carry_out(fleet.world, step)
        if data.draw(st.booleans(), label="time passes"):
            fleet.world = wait(fleet.world) or fleet.world


def check_reached(fleet: Fleet, last: Next) -> None:
    """Every model is as wanted, or it is said why not; nobody waits in the ingress; no GPU is left behind."""
    for wish in fleet.effective(fleet.actual):
        mine = [one for one in fleet.actual.replicas if one.model == wish.model]
        assert all(one.phase is Phase.SERVING for one in mine)
        if wish.model not in last.blocked:
            assert count_shapes(Pool(shape=one.layout.shape, replicas=1) for one in mine) == count_shapes(wish.pools)
    assert not fleet.actual.held


@settings(max_examples=120)
@given(clusters, floors, st.data())
def test_wishes_that_change_at_any_moment(
    islands: list[int | tuple[int, ...]], floor: float, data: st.DataObject
) -> None:
    fleet = make_fleet(islands, floor)
    for _ in range(data.draw(st.integers(1, 4), label="wishes")):
        fleet.wish(data.draw(st.sampled_from(MODELS)), data.draw(pools))
        some_looks(fleet, data)
    check_reached(fleet, fleet.finish())


@settings(max_examples=120)
@given(clusters, floors, st.data())
def test_faults_at_any_moment(islands: list[int | tuple[int, ...]], floor: float, data: st.DataObject) -> None:
    fleet = make_fleet(islands, floor)
    nodes = [node.name for node in fleet.whole.nodes]
    for _ in range(data.draw(st.integers(1, 4), label="events")):
        fleet.wish(data.draw(st.sampled_from(MODELS)), data.draw(pools))
        fleet.lost = data.draw(st.frozensets(st.sampled_from(nodes), max_size=1), label="lost")
        notice = data.draw(st.dictionaries(st.sampled_from(nodes), notices, max_size=1), label="leaving")
        leaving = {node: fleet.actual.now_s + in_s for node, in_s in notice.items()}
        bad = data.draw(st.frozensets(st.integers(0, 20), max_size=6), label="starts that fail")
        fleet.world = replace(fleet.world, doomed=failing(bad), leaving=leaving)
        some_looks(fleet, data)
    check_reached(fleet, fleet.finish())
    fleet.lost = frozenset()
    fleet.world = replace(fleet.world, doomed=lambda name: False, leaving={})
    for wish in fleet.wishes.copy().values():
        fleet.wish(wish.model, wish.pools)
    check_reached(fleet, fleet.finish())


@settings(max_examples=60)
@given(clusters, pools, pools)
def test_all_that_fits_is_reached_when_nothing_need_keep_serving(
    islands: list[int | tuple[int, ...]], before: tuple[Pool, ...], after: tuple[Pool, ...]
) -> None:
    """With no floor, a wish is blocked only if it would be on an empty cluster too."""
    fleet = make_fleet(islands, 0.0)
    fleet.wish(MODELS[0], before)
    fleet.finish()
    fleet.wish(MODELS[0], after)
    blocked = fleet.finish().blocked
    assert bool(blocked) is bool(look(found(), Desired(model=MODELS[0], pools=after), cluster=fleet.whole).blocked)


@settings(max_examples=60)
@given(clusters, pools.filter(count_shapes), st.data())
def test_a_gpu_that_is_broken_costs_one_attempt_where_there_is_another(
    islands: list[int | tuple[int, ...]], wished: tuple[Pool, ...], data: st.DataObject
) -> None:
    """And none keeps all that has room from being tried: without it, the fleet gets as far as with a sound one."""
    fleet = make_fleet(islands, 0.0)
    fleet.wish(MODELS[0], wished)
    starts = [step for step in fleet.decide(fleet.actual).steps if isinstance(step, Start)]
    assume(starts)
    bad = data.draw(st.sampled_from(starts), label="starts on the broken GPU")
    fleet.world = replace(fleet.world, broken=frozenset({min(bad.layout.places)}))
    last = fleet.finish()
    taken = frozenset(place for start in starts for place in start.layout.places)
    elsewhere = place(bad.layout.shape, fleet.whole, taken)
    assert bool(last.blocked) is isinstance(elsewhere, Infeasible)
    assert len(fleet.actual.replicas) == len(starts) - bool(last.blocked)


@settings(max_examples=60)
@given(clusters, floors, pools, pools)
def test_a_forecast_is_what_then_happens(
    islands: list[int | tuple[int, ...]], floor: float, before: tuple[Pool, ...], after: tuple[Pool, ...]
) -> None:
    fleet = make_fleet(islands, floor)
    fleet.wish(MODELS[0], before)
    fleet.finish()
    fleet.wish(MODELS[0], after)
    wishes = list(fleet.wishes.values())
    told = forecast(fleet.actual, wishes, MODELS[0], fleet.whole, fleet.limits, DURATIONS)
    begin_s, moments = fleet.actual.now_s, list(simulate(fleet.world, fleet.decide))
    assert [(timed.at_s, timed.step) for timed in told.timeline] == [
        (moment.world.actual.now_s - begin_s, step) for moment in moments for step in moment.decided.steps
    ]
    assert (told.infeasible is None) is (MODELS[0] not in moments[-1].decided.blocked)
    assert told.stall_s <= DURATIONS.stall_s
