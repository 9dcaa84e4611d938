from dataclasses import replace
from typing import Any

import pytest
from placement_builders import GIB, H100, cluster_of

from placement import (
    Cluster,
    Gpu,
    Infeasible,
    Layout,
    LayoutError,
    Node,
    Shape,
    place,
)

TWO_BY_TWO = cluster_of(2, 2)


def placed(shape: str, cluster: Cluster, taken: frozenset[tuple[str, int]] = frozenset()) -> Layout:
    layout = place(Shape.parse(shape), cluster, taken)
    assert isinstance(layout, Layout), layout
    return layout


def seats(layout: Layout) -> list[str]:
    """`island.node:slot` by rank, without the words."""
    return [f"{seat.island[7:]}.{seat.node.rpartition('-')[2]}:{seat.slot}" for seat in layout.seats]


@pytest.mark.parametrize(
    ("shape", "cluster", "expected"),
    [
        pytest.param("tp1", TWO_BY_TWO, "0.0:0", id="single"),
        pytest.param("tp2pp2", TWO_BY_TWO, "0.0:0 0.0:1 1.0:0 1.0:1", id="a-stage-per-island"),
        pytest.param("tp2pp2", cluster_of(2, 4), "1.0:0 1.0:1 1.0:2 1.0:3", id="one-island-if-it-fits"),
        pytest.param("tp2", cluster_of(8, 3, 2, 4), "2.0:0 2.0:1", id="best-fit"),
        pytest.param("pp3", cluster_of(1, 1, 2), "2.0:0 2.0:1 0.0:0", id="fewest-islands"),
        pytest.param("tp2pp2", cluster_of(3, 3, 1), "0.0:0 0.0:1 1.0:0 1.0:1", id="odd-gpus-stay-free"),
        pytest.param("tp2ep4dp2", cluster_of(2, 4), "1.0:0 1.0:1 1.0:2 1.0:3", id="all-experts-in-one-island"),
        pytest.param("pp2ep2dp2", cluster_of(3, 1), "0.0:0 0.0:1 0.0:2 1.0:0", id="a-data-parallel-rank-whole-first"),
        pytest.param("tp2", cluster_of((1, 2)), "0.1:0 0.1:1", id="one-node-of-an-island-of-nodes"),
        pytest.param("tp4", cluster_of((2, 4, 8)), "0.1:0 0.1:1 0.1:2 0.1:3", id="best-fitting-node"),
        pytest.param("tp4", cluster_of((2, 2)), "0.0:0 0.0:1 0.1:0 0.1:1", id="over-nodes-inside-an-island"),
        pytest.param("tp4", cluster_of((1, 3, 2)), "0.1:0 0.1:1 0.1:2 0.0:0", id="over-as-few-nodes-as-possible"),
        pytest.param("tp2pp3", cluster_of((3, 3)), "0.0:0 0.0:1 0.0:2 0.1:2 0.1:0 0.1:1", id="rank-0-node-is-a-prefix"),
        pytest.param(
            "tp2pp4",
            cluster_of((3, 2, 3)),
            "0.0:0 0.0:1 0.0:2 0.2:2 0.1:0 0.1:1 0.2:0 0.2:1",
            id="prefix-with-a-whole-node-between",
        ),
    ],
)
def test_place(shape: str, cluster: Cluster, expected: str) -> None:
    assert sorted(seats(placed(shape, cluster))) == sorted(expected.split())
    assert " ".join(seats(placed(shape, cluster))) == expected


def test_replicas_are_placed_one_after_the_other() -> None:
    first = placed("tp2", TWO_BY_TWO)
    second = placed("tp2", TWO_BY_TWO, first.places)
    assert (first.seats[0].island, second.seats[0].island) == ("island-0", "island-1")
    assert isinstance(place(Shape(tp=2), TWO_BY_TWO, first.places | second.places), Infeasible)


def test_a_place_of_a_node_that_left_is_ignored() -> None:
    assert seats(placed("tp1", TWO_BY_TWO, frozenset({("gone", 0)}))) == ["0.0:0"]


def test_gpus_too_small_are_left_out() -> None:
    small = Gpu(name="L4", memory_bytes=24 * GIB)
    cluster = Cluster(nodes=(Node(name="a", island="a", gpus=1, gpu=small), *cluster_of(2).nodes))
    assert placed("tp1", cluster).seats[0].node == "a"
    layout = place(Shape(), cluster, min_memory_bytes=H100.memory_bytes)
    assert isinstance(layout, Layout)
    assert layout.seats[0].island == "island-0"
    answer = place(Shape(pp=3), cluster, min_memory_bytes=H100.memory_bytes)
    assert "3 free GPUs of at least 80.0 GiB" in str(answer)


@pytest.mark.parametrize(
    ("shape", "cluster", "answer"),
    [
        pytest.param(
            "tp4",
            TWO_BY_TWO,
            "tp4 needs 4 free GPUs in one island; the largest free island has 2 (island-0). Nearest: tp2pp2",
            id="group-wider-than-any-island",
        ),
        pytest.param(
            "tp4",
            cluster_of(3, 2, 1),
            "tp4 needs 4 free GPUs in one island; the largest free island has 3 (island-0). Nearest: tp2pp2",
            id="the-widest-group-that-fits",
        ),
        pytest.param(
            "tp2pp4",
            TWO_BY_TWO,
            "tp2pp4 needs 4 groups of 2 free GPUs, each inside one island; the 2 islands have room for 2. "
            "Nearest: tp2pp2, or 4 more free GPUs in island-0",
            id="too-few-groups",
        ),
        pytest.param(
            "pp5",
            TWO_BY_TWO,
            "pp5 needs 5 free GPUs; the 2 islands have 4. Nearest: pp4, or 1 more free GPU in island-0",
            id="too-few-gpus",
        ),
        pytest.param(
            "tp2ep6dp3",
            cluster_of(3, 2),
            "tp2ep6dp3 needs 3 groups of 2 free GPUs, each inside one island; the 2 islands have room for 2. "
            "Nearest: tp2ep4dp2, or 1 more free GPU in island-0",
            id="fewer-data-parallel-ranks-and-an-odd-gpu-to-complete",
        ),
        pytest.param(
            "tp2pp2",
            cluster_of(1),
            "tp2pp2 needs 2 free GPUs in one island; the largest free island has 1 (island-0). "
            "Nearest: tp1, or 3 more free GPUs in island-0",
            id="narrower-and-shorter",
        ),
        pytest.param(
            "tp2",
            Cluster(nodes=()),
            "tp2 needs 2 free GPUs; the 0 islands have 0. Nearest: an island of 2 free GPUs",
            id="empty-cluster",
        ),
    ],
)
def test_infeasible_says_why_and_what_would_work(shape: str, cluster: Cluster, answer: str) -> None:
    assert str(place(Shape.parse(shape), cluster)) == answer


def test_nothing_free() -> None:
    taken = placed("pp4", TWO_BY_TWO).places
    answer = place(Shape(), TWO_BY_TWO, taken)
    assert str(answer) == "tp1 needs 1 free GPU; the 2 islands have 0. Nearest: 1 more free GPU in island-0"


def broken(cluster: Cluster, shape: str, changes: dict[int, dict[str, Any]]) -> Layout:
    layout = placed(shape, cluster)
    moved = tuple(replace(seat, **changes.get(seat.rank, {})) for seat in layout.seats)
    return replace(layout, seats=moved)


SECOND = {"node": "island-1-node-0", "island": "island-1"}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        pytest.param(Layout(shape=Shape(tp=2), seats=()), "2 ranks; the layout has 0 seats", id="seats-missing"),
        pytest.param(broken(TWO_BY_TWO, "tp2", {1: {"rank": 5}}), "Seat 1 must be rank 1", id="rank-wrong"),
        pytest.param(broken(TWO_BY_TWO, "pp2", {1: {"pp_rank": 0}}), "Seat 1 must be rank 1", id="stage-wrong"),
        pytest.param(broken(TWO_BY_TWO, "tp2", {1: {"node": "x"}}), "no such node there", id="node-unknown"),
        pytest.param(broken(TWO_BY_TWO, "tp2", {1: {"island": "x"}}), "no such node there", id="island-wrong"),
        pytest.param(broken(TWO_BY_TWO, "tp2", {1: {"slot": 2}}), "slots 0 to 1", id="slot-unknown"),
        pytest.param(broken(TWO_BY_TWO, "tp2", {1: {"slot": 0}}), "2 ranks on 1 GPUs", id="slot-twice"),
        pytest.param(broken(TWO_BY_TWO, "tp2", {1: SECOND}), "more than one island", id="group-over-islands"),
        pytest.param(
            broken(TWO_BY_TWO, "pp3", {1: SECOND, 2: {"node": "island-0-node-0", "island": "island-0", "slot": 1}}),
            "must be a prefix",
            id="rank-0-node-not-a-prefix",
        ),
    ],
)
def test_check_refuses(layout: Layout, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        layout.check(TWO_BY_TWO)
