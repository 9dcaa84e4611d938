"""How a fleet gets from pools to pools: in which way, what serves meanwhile, and what it holds."""

from collections import Counter
from collections.abc import Mapping

import pytest
from autoscaling_builders import TP2, TP4, TP4PP2, TP8, site
from hypothesis import given
from hypothesis import strategies as st
from placement_builders import cluster_of

from autoscaling.capacity.seating import islands_of
from autoscaling.capacity.times import Times, estimated_start_s, times_of
from autoscaling.capacity.transitions import Transition, transition
from autoscaling.observation import Pools, gpus_of, pools_of, spelled
from deployments.reconcile import Actual, Desired, Durations, Limits, Phase, Pool, ReplicaState, forecast
from deployments.reconcile.states import Record
from placement.clusters.hardware import Cluster
from placement.layout import Infeasible, place
from placement.shape import Shape

START_S, DRAIN_S, STOP_S = 30.0, 20.0, 5.0
TP1 = Shape()
TIMES = Times(
    starts_s=dict.fromkeys((TP1, TP2, TP4, TP8, TP4PP2), START_S),
    drain_s=DRAIN_S,
    stop_s=STOP_S,
)


def pools(text: str) -> Pools:
    """`2 tp4, 1 tp8`; empty for none."""
    parts = [part.split() for part in text.split(",") if part.strip()]
    return pools_of({Shape.parse(shape): int(count) for count, shape in parts})


def changed(before: str, after: str, *islands: int, floor: float = 0.5, gpus: int | None = None) -> Transition | None:
    return transition(pools(before), pools(after), gpus=gpus or sum(islands), times=TIMES, floor=floor, islands=islands)


def told(found: Transition | None) -> list[str]:
    assert found is not None
    return [f"{stage.from_s:g}: {spelled(stage.serving)} on {stage.gpus}" for stage in found.stages]


CASES = [
    pytest.param("2 tp4", "2 tp4", (8, 8), 0.5, "none", ["0: 2 x tp4 on 8"], id="nothing-to-do"),
    pytest.param(
        "1 tp4", "3 tp4", (8, 8), 0.5, "surge", ["0: 1 x tp4 on 12", "30: 3 x tp4 on 12"], id="up: what serves goes on"
    ),
    pytest.param(
        "3 tp4", "1 tp4", (8, 8), 0.5, "none", ["0: 1 x tp4 on 12", "25: 1 x tp4 on 4"], id="down: held while it drains"
    ),
    pytest.param(
        "2 tp4",
        "1 tp8",
        (8, 8),
        0.5,
        "surge",
        ["0: 2 x tp4 on 16", "30: 1 x tp8 on 16", "55: 1 x tp8 on 8"],
        id="another shape beside the old one",
    ),
    pytest.param(
        "4 tp4",
        "2 tp8",
        (8, 8),
        0.5,
        "rolling",
        ["0: 2 x tp4 on 16", "55: 1 x tp8 on 16", "110: 2 x tp8 on 16"],
        id="no spare GPUs: one island after the other",
    ),
    pytest.param("2 tp4", "1 tp8", (8,), 0.0, "swap", ["0: nothing on 8", "35: 1 x tp8 on 8"], id="one island: swap"),
    pytest.param(
        "1 tp8, 1 tp4",
        "3 tp4",
        (8, 4),
        0.0,
        "rolling",
        ["0: 1 x tp4 on 12", "55: 3 x tp4 on 12"],
        id="what stays serves meanwhile",
    ),
    pytest.param("", "1 tp4", (8,), 0.5, "surge", ["0: nothing on 4", "30: 1 x tp4 on 4"], id="from nothing"),
    pytest.param("1 tp4", "", (8,), 0.5, "none", ["0: nothing on 4", "25: nothing on 0"], id="to nothing"),
]


@pytest.mark.parametrize(("before", "after", "islands", "floor", "way", "stages"), CASES)
def test_the_way_and_what_serves_meanwhile(
    before: str, after: str, islands: tuple[int, ...], floor: float, way: str, stages: list[str]
) -> None:
    found = changed(before, after, *islands, floor=floor)
    assert told(found) == stages
    assert found is not None
    assert (found.way, found.duration_s) == (way, float(stages[-1].split(":")[0]))


@pytest.mark.parametrize(
    ("before", "after", "islands", "floor"),
    [
        pytest.param("1 tp4", "1 tp8", (4, 4), 0.0, id="a group does not leave its island"),
        pytest.param("2 tp4", "3 tp4", (8,), 0.0, id="too few GPUs"),
        pytest.param("2 tp4", "1 tp8", (8,), 0.5, id="the floor forbids a swap"),
    ],
)
def test_what_cannot_be_done_is_none(before: str, after: str, islands: tuple[int, ...], floor: float) -> None:
    assert changed(before, after, *islands, floor=floor) is None


def test_a_budget_below_the_cluster_binds_like_its_gpus() -> None:
    assert told(changed("2 tp4", "1 tp8", 8, 8, floor=0.0, gpus=8))[0] == "0: nothing on 8"
    assert changed("1 tp4", "4 tp4", 8, 8, gpus=12) is None


def test_only_a_swap_stalls_and_moves_streams() -> None:
    swap, surge = changed("2 tp4", "1 tp8", 8, floor=0.0), changed("2 tp4", "1 tp8", 8, 8)
    assert swap is not None
    assert surge is not None
    assert (swap.stall_s, swap.moved) == (STOP_S + START_S, 1.0)
    assert (surge.stall_s, surge.moved) == (0.0, 0.0)


def test_replicas_start_at_their_own_pace() -> None:
    times = Times(starts_s={TP4: 10.0, TP8: 40.0}, drain_s=DRAIN_S, stop_s=STOP_S)
    found = transition({}, pools("1 tp4, 1 tp8"), gpus=16, times=times, floor=0.5, islands=(8, 8))
    assert told(found) == ["0: nothing on 12", "10: 1 x tp4 on 12", "40: 1 x tp4 + 1 x tp8 on 12"]


class TestTimes:
    def test_a_70b_model_on_four_gpus_takes_a_minute_or_two(self) -> None:
        assert 60 <= estimated_start_s(site(), TP4) <= 120

    def test_more_gpus_load_sooner(self) -> None:
        times = times_of(site())
        assert times.start_s(TP2) > times.start_s(TP4) > times.start_s(TP8)

    def test_what_was_measured_is_believed(self) -> None:
        assert times_of(site(), measured_s={TP4: 7.0}).start_s(TP4) == 7.0


def fleet(before: Pools, cluster: Cluster) -> Actual:
    """Serving replicas, seated as the controller would, with a stream each."""
    replicas: list[ReplicaState] = []
    taken: frozenset[tuple[str, int]] = frozenset()
    shapes = [shape for shape, count in before.items() for _ in range(count)]
    for index, shape in enumerate(sorted(shapes, key=lambda shape: (-shape.tp, -shape.gpus, str(shape)))):
        layout = place(shape, cluster, taken)
        assert not isinstance(layout, Infeasible)
        taken |= layout.places
        name = f"m--{shape}--{index}"
        replicas.append(
            ReplicaState(name=name, model="m", layout=layout, phase=Phase.SERVING, since_s=0.0, unfinished_requests=1)
        )
    good = Record(version=1, last_good=wanted(before), reached=True)
    return Actual(now_s=0.0, next_index=len(replicas), replicas=tuple(replicas), records={"m": good})


def wanted(target: Pools) -> tuple[Pool, ...]:
    return tuple(Pool(shape=shape, replicas=count) for shape, count in target.items())


SMALL = st.fixed_dictionaries(
    {}, optional={TP1: st.integers(1, 3), TP2: st.integers(1, 4), TP4: st.integers(1, 3), TP8: st.integers(1, 2)}
)
FLOORS = st.sampled_from([0.0, 0.3, 0.5, 1.0])


def fits(counts: Mapping[Shape, int], cluster: Cluster) -> bool:
    return transition({}, counts, gpus=16, times=TIMES, floor=0.0, islands=islands_of(cluster)) is not None


@given(before=SMALL, after=SMALL.filter(bool), floor=FLOORS, sizes=st.sampled_from([(8, 8), (4, 8, 4), (16,)]))
def test_it_foresees_what_the_controller_does(
    before: dict[Shape, int], after: dict[Shape, int], floor: float, sizes: tuple[int, ...]
) -> None:
    cluster = cluster_of(*sizes)
    if not fits(before, cluster):
        return
    before, after = dict(pools_of(before)), dict(pools_of(after))
    found = transition(before, after, gpus=16, times=TIMES, floor=floor, islands=islands_of(cluster))
    seen = forecast(
        fleet(before, cluster),
        [Desired(model="m", pools=wanted(after), version=2)],
        "m",
        cluster,
        Limits(start_timeout_s=1e6, drain_timeout_s=1e6, floor=floor),
        Durations(start_s=START_S, drain_s=DRAIN_S, stop_s=STOP_S),
    )
    assert (found is None) == (seen.infeasible is not None)
    if found is None:
        return
    assert found.way == (seen.way or "none")
    assert found.duration_s == pytest.approx(seen.duration_s)
    assert max(stage.gpus for stage in found.stages) == seen.gpus_needed


@given(before=SMALL, after=SMALL, floor=FLOORS, gpus=st.integers(1, 32))
def test_a_transition_keeps_its_promises(
    before: dict[Shape, int], after: dict[Shape, int], floor: float, gpus: int
) -> None:
    before, after = dict(pools_of(before)), dict(pools_of(after))
    islands = (8, 8, 8, 8)
    if not transition({}, before, gpus=32, times=TIMES, floor=0.0, islands=islands):
        return
    found = transition(before, after, gpus=gpus, times=TIMES, floor=floor, islands=islands)
    if found is None:
        return
    starts = [stage.from_s for stage in found.stages]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert (found.stages[-1].serving, found.stages[-1].gpus) == (pools_of(after), gpus_of(after))
    assert all(stage.gpus <= max(gpus, gpus_of(before)) for stage in found.stages)
    assert all(gpus_of(stage.serving) <= stage.gpus for stage in found.stages)
    stays = Counter(before) & Counter(after)
    if found.way != "swap":
        least = floor * min(gpus_of(before), gpus_of(after))
        assert all(gpus_of(stage.serving) >= least for stage in found.stages)
    if found.way in ("none", "surge"):
        assert all(not stays - Counter(stage.serving) for stage in found.stages)
