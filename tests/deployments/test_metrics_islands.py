"""GPUs that nobody can use, and pipelines that cross between islands, as Prometheus reads them."""

import pytest
from control_builders import fleet_view

from deployments.control.wire import ClusterView, Overview, ReplicaView, SeatView
from deployments.metrics.islands_series import island_series, stranded_gpus
from placement import Shape


@pytest.mark.parametrize(
    ("free", "shapes", "stranded"),
    [
        ({"a": 3, "b": 1}, "tp4", {"a": 3, "b": 1}),
        ({"a": 6, "b": 8}, "tp4", {"a": 2, "b": 0}),
        ({"a": 6, "b": 8}, "tp4 tp2", {"a": 0, "b": 0}),
        ({"a": 4, "b": 2}, "tp4pp2", {"a": 4, "b": 2}),  # one group is there, a replica needs two
        ({"a": 5, "b": 4}, "tp4pp2", {"a": 1, "b": 0}),
        ({"a": 8, "b": 0}, "tp8ep8dp2", {"a": 8, "b": 0}),
        ({"a": 7}, "", {"a": 0}),  # nothing is wanted, so nothing is in the way of it
    ],
)
def test_gpus_are_stranded_where_no_wanted_shape_can_use_them(
    free: dict[str, int], shapes: str, stranded: dict[str, int]
) -> None:
    assert stranded_gpus(free, frozenset(map(Shape.parse, shapes.split()))) == stranded


def replica(shape: str, islands: str) -> ReplicaView:
    """A replica whose ranks are on the islands, one letter each."""
    seats = tuple(SeatView(rank=rank, island=island, node=island, slot=rank) for rank, island in enumerate(islands))
    return ReplicaView(name="r", shape=shape, phase="serving", in_phase_s=1, seats=seats[::-1], unfinished_requests=0)


@pytest.mark.parametrize(
    ("shape", "islands", "crossing"),
    [
        ("tp2", "aa", {}),
        ("tp2pp2", "aaaa", {}),
        ("tp2pp2", "aabb", {"ab": 2}),
        ("tp1pp3", "aba", {"ab": 1, "ba": 1}),
        ("tp2pp2dp2", "aabbbbaa", {"ab": 2, "ba": 2}),  # from one data-parallel rank to another nothing goes
    ],
)
def test_what_crosses_between_islands_is_from_stage_to_stage(
    shape: str, islands: str, crossing: dict[str, int]
) -> None:
    view = fleet_view(replicas=(replica(shape, islands),))
    families = {one.name: one for one in island_series(Overview(cluster=ClusterView(nodes=()), fleets=(view,)))}
    samples = families["archipelago_island_link_ranks"].samples
    assert {one.labels["source"] + one.labels["destination"]: one.value for one in samples} == crossing
