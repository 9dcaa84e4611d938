"""What the control API shows: phases in words, a repartition as it goes, the hardware, a forecast."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
from controller_builders import MODEL, model_record
from reconcile_builders import DURATIONS, TWO_ISLANDS, found, make_limits, pools_of, replica, settled, wish

from deployments.controller import views
from deployments.controller.observing import World
from deployments.controller.records import ModelRecord
from deployments.controller.standing import Standing
from deployments.islands import Inventory
from deployments.reconcile import Phase, Record, ReplicaState, Way, forecast
from placement import Cluster, Shape
from placement.layout import Place

NOW_S = 100.0


def fleet(text: str) -> list[ReplicaState]:
    """`tp1 serving, tp2 starting`, on seats of their own where there is room."""
    replicas: list[ReplicaState] = []
    taken: frozenset[Place] = frozenset()
    for index, part in enumerate(filter(None, text.split(", "))):
        shape, phase = part.split()
        one = replica(shape, taken, index=index, phase=Phase(phase), since_s=90.0)
        taken |= one.layout.places
        replicas.append(one)
    return replicas


def record_of(
    desired: str, last_good: str | None, *, version: int = 2, given_up: str = "", **changes: object
) -> ModelRecord:
    good = None if last_good is None else pools_of(last_good)
    memory = Record(version=version, last_good=good, given_up=given_up)
    record: ModelRecord = model_record(desired, memory=memory)
    return replace(record, desired=replace(record.desired, version=2), **changes)  # type: ignore[arg-type]


PHASES: list[tuple[str, ModelRecord, Standing, str, str]] = [
    (desired_case, record, Standing(pools=pools_of(pools), **more), replicas, phase)  # type: ignore[arg-type]
    for desired_case, record, pools, more, replicas, phase in [
        ("nothing there yet", record_of("2 tp1", None), "2 tp1", {}, "", "starting"),
        ("one of two there", record_of("2 tp1", None), "2 tp1", {}, "tp1 serving, tp1 starting", "starting"),
        ("a first start that failed", record_of("1 tp1", None), "1 tp1", {}, "tp1 failed", "starting"),
        ("all there", record_of("2 tp1", "2 tp1"), "2 tp1", {}, "tp1 serving, tp1 serving", "steady"),
        ("all there, not settled", record_of("1 tp1", None), "1 tp1", {}, "tp1 serving", "steady"),
        ("not begun", record_of("1 tp2", "2 tp1"), "1 tp2", {}, "tp1 serving, tp1 serving", "repartitioning"),
        ("half way", record_of("1 tp2", "2 tp1"), "1 tp2", {}, "tp1 draining, tp2 serving", "repartitioning"),
        ("the old one goes", record_of("1 tp2", "2 tp1"), "1 tp2", {}, "tp1 stopping, tp2 serving", "repartitioning"),
        ("fewer", record_of("1 tp1", "2 tp1"), "1 tp1", {}, "tp1 serving, tp1 serving", "repartitioning"),
        ("given up", record_of("1 tp2", "2 tp1", given_up="x"), "2 tp1", {}, "tp1 serving, tp2 failed", "rolling-back"),
        (
            "given up, and back",
            record_of("1 tp2", "2 tp1", given_up="x"),
            "2 tp1",
            {},
            "tp1 serving, tp1 serving",
            "degraded",
        ),
        (
            "given up before this version",
            record_of("1 tp2", "2 tp1", given_up="x", version=1),
            "1 tp2",
            {},
            "tp1 serving",
            "repartitioning",
        ),
        ("a replica lost", record_of("2 tp1", "2 tp1"), "2 tp1", {}, "tp1 serving, tp1 starting", "degraded"),
        ("a replica less fits", record_of("2 tp1", "2 tp1"), "1 tp1", {}, "tp1 serving", "degraded"),
        ("stuck", record_of("1 tp2", "2 tp1"), "1 tp2", {"is_stuck": True}, "tp1 serving", "degraded"),
        ("going", record_of("", "1 tp1"), "", {}, "tp1 draining", "repartitioning"),
        ("gone", record_of("", "1 tp1"), "", {}, "", "stopped"),
    ]
]


@pytest.mark.parametrize(
    ("record", "standing", "replicas", "phase"), [case[1:] for case in PHASES], ids=[case[0] for case in PHASES]
)
def test_the_phase_of_a_fleet(record: ModelRecord, standing: Standing, replicas: str, phase: str) -> None:
    view = views.fleet_view(record, standing, fleet(replicas), {}, NOW_S)
    assert view.phase == phase
    assert (view.repartition is not None) == (phase in ("repartitioning", "rolling-back"))
    assert view.version == 2


REPLICA_PHASES = {
    Phase.STARTING: "starting",
    Phase.SERVING: "serving",
    Phase.DRAINING: "draining",
    Phase.MOVING: "draining",
    Phase.STOPPING: "stopping",
    Phase.FAILED: "failed",
}


@pytest.mark.parametrize("phase", Phase)
def test_a_replica_is_shown_with_its_place_and_its_load(phase: Phase) -> None:
    one = replica("tp2", phase=phase, since_s=90.0, unfinished_requests=7, cause="out of memory")
    (shown,) = views.fleet_view(
        record_of("1 tp2", None), Standing(pools=pools_of("1 tp2")), [one], {one.name: 12.5}, NOW_S
    ).replicas
    assert (shown.name, shown.shape, shown.phase) == (one.name, "tp2", REPLICA_PHASES[phase])
    assert (shown.in_phase_s, shown.unfinished_requests, shown.tokens_per_s) == (10.0, 7, 12.5)
    assert shown.cause == "out of memory"
    assert [(seat.rank, seat.island, seat.slot) for seat in shown.seats] == [(0, "island-0", 0), (1, "island-0", 1)]


def test_a_clock_that_went_back_shows_no_time_below_zero() -> None:
    view = views.fleet_view(
        record_of("1 tp2", "1 tp1", changed_at_s=200.0), Standing(pools=pools_of("1 tp2")), fleet("tp1 serving"), {}, 50
    )
    assert view.replicas[0].in_phase_s == 0
    assert view.repartition is not None
    assert view.repartition.running_s == 0


PROGRESS = [
    ("tp1 serving, tp1 serving", 0, 3, "the next step is about to begin"),
    ("tp1 serving, tp1 serving, tp2 starting", 1, 3, "acme-tiny--tp2--2 is starting"),
    ("tp1 serving, tp1 serving, tp2 serving", 1, 3, "the next step is about to begin"),
    (
        "tp1 draining, tp1 moving, tp2 serving",
        3,
        3,
        "acme-tiny--tp1--0 is draining, acme-tiny--tp1--1 is moving",
    ),
    ("tp1 stopping, tp2 serving", 2, 2, "acme-tiny--tp1--0 is stopping"),
]


@pytest.mark.parametrize(("replicas", "step", "steps", "doing"), PROGRESS, ids=[case[0] for case in PROGRESS])
def test_a_repartition_tells_how_far_it_is(replicas: str, step: int, steps: int, doing: str) -> None:
    record = record_of("1 tp2", "2 tp1", stall_s=8.5, changed_at_s=88.0)
    standing = Standing(pools=pools_of("1 tp2"), way=Way.ROLLING)
    seen = views.fleet_view(record, standing, fleet(replicas), {}, NOW_S).repartition
    assert seen is not None
    assert (seen.step, seen.steps, seen.doing) == (step, steps, doing)
    assert (seen.way, seen.announced_stall_s, seen.running_s) == ("rolling", 8.5, 12.0)


def test_what_is_possible_is_shown_beside_what_is_wanted_and_why() -> None:
    standing = Standing(pools=pools_of("1 tp1"), shortfall="node-1 is gone")
    view = views.fleet_view(record_of("2 tp1", "2 tp1"), standing, fleet("tp1 serving"), {}, NOW_S)
    assert (view.desired_pools, view.effective_pools, view.shortfall) == ({"tp1": 2}, {"tp1": 1}, "node-1 is gone")


def test_pools_survive_the_way_over_the_wire_and_back() -> None:
    pools = pools_of("2 tp1, 1 tp2pp2")
    assert views.wire_pools(pools) == {"tp1": 2, "tp2pp2": 1}
    assert views.pools_of(views.wire_pools(pools)) == pools


def seen_free(replicas: Sequence[ReplicaState], leaving: Collection[str] = ()) -> list[tuple[str, int, bool]]:
    world = World(
        where=Inventory(cluster=TWO_ISLANDS, selectors={}, ray_node_ids={}), leaving=dict.fromkeys(leaving, math.inf)
    )
    return [(node.name, node.free_gpus, node.draining) for node in views.cluster_view(world, replicas).nodes]


def test_the_hardware_shows_what_is_free_and_what_will_go() -> None:
    assert seen_free(fleet("tp1 serving, tp1 stopping, tp1 failed"), {"island-1-node-0"}) == [
        ("island-0-node-0", 0, False),
        ("island-1-node-0", 1, True),
    ]


def test_nodes_tell_their_gpus_where_ray_knows_them() -> None:
    labelled, other = TWO_ISLANDS.nodes
    named = replace(labelled, gpu=replace(labelled.gpu, name="H100"), machine="host")
    unnamed = replace(other, gpu=replace(other.gpu, name="GPU"))
    where = Inventory(cluster=Cluster(nodes=(named, unnamed)), selectors={}, ray_node_ids={})
    seen = views.cluster_view(World(where=where), ()).nodes
    assert [(node.gpu, node.machine) for node in seen] == [("H100", "host"), (None, None)]
    assert [node.gpu_memory_bytes for node in seen] == [node.gpu.memory_bytes for node in TWO_ISLANDS.nodes]


def test_what_a_change_takes_and_how_the_last_ones_ended_is_shown() -> None:
    record = record_of("1 tp1", "1 tp1").with_start(Shape.parse("tp1"), 40.0).with_start(Shape.parse("tp2"), 30.0)
    record = record.with_start(Shape.parse("tp1"), 50.0)
    assert record.start_s == 50.0, "the last one, of whatever shape"
    standing = Standing(pools=pools_of("1 tp1"), ended={(Way.SWAP, "rolled-back"): 2})
    view = views.fleet_view(record, standing, fleet("tp1 serving"), {}, NOW_S)
    assert view.start_s == {"tp1": 50.0, "tp2": 30.0}
    assert [(one.way, one.outcome, one.count) for one in view.transitions] == [("swap", "rolled-back", 2)]


def test_a_forecast_shows_steps_for_people_and_leaves_book_keeping_out() -> None:
    actual = settled("1 tp2pp2")
    view = views.forecast_view(
        forecast(actual, [wish("2 tp2", version=2)], MODEL, TWO_ISLANDS, make_limits(), DURATIONS)
    )
    assert (view.way, view.stall_s, view.gpus_needed, view.infeasible) == ("swap", 35.0, 4, None)
    assert [(step.at_s, step.step, step.what) for step in view.timeline] == [
        (0.0, "hold", MODEL),
        (0.0, "move", "acme-tiny--tp2pp2--0"),
        (0.0, "stop", "acme-tiny--tp2pp2--0"),
        (5.0, "start", "acme-tiny--tp2--1 on island-0"),
        (5.0, "start", "acme-tiny--tp2--2 on island-1"),
        (35.0, "release", MODEL),
    ]
    assert all(step.reason for step in view.timeline)


def test_a_forecast_of_what_cannot_be_says_what_binds_and_what_would_do() -> None:
    view = views.forecast_view(forecast(found(), [wish("3 tp2")], MODEL, TWO_ISLANDS, make_limits(), DURATIONS))
    assert view.way is None
    assert view.infeasible is not None
    assert view.infeasible.constraint
    assert view.infeasible.nearest
