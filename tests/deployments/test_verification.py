from collections.abc import Callable
from dataclasses import replace

import pytest
from deployment_builders import found_as_planned, layout_of, names_of, ray_id, with_bundle, with_worker
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placement_builders import cluster_of

from deployments.verification import Found, PlacementMismatchError, verify
from placement import Layout

CLUSTER = cluster_of(2, 2, (2, 2))
N0, N1, N2, N3 = "island-0-node-0", "island-1-node-0", "island-2-node-0", "island-2-node-1"
NAMES = names_of(CLUSTER)


def problems(layout: Layout, found: Found) -> list[str]:
    with pytest.raises(PlacementMismatchError) as caught:
        verify(layout, found, NAMES)
    title, *lines = str(caught.value).splitlines()
    assert title == f"{layout.shape} is not placed as planned:"
    assert all(line.startswith("  ") for line in lines)
    return [line.strip() for line in lines]


def layout(shape: str = "tp2pp2") -> Layout:
    return layout_of(shape, cluster_of(2, 2))


@pytest.mark.parametrize("shape", ["tp1", "tp2", "pp2", "tp2pp2", "tp4", "tp2pp3", "dp2tp2", "dp2ep4tp2", "dp2tp2pp2"])
def test_what_is_placed_as_planned_passes(shape: str) -> None:
    planned = layout_of(shape, CLUSTER)
    verify(planned, found_as_planned(planned), NAMES)


def swapped_stages(found: Found) -> Found:
    """Ray put the bundles of stage 0 where those of stage 1 belong, and the replica with them."""
    nodes = found.bundle_nodes[2:] + found.bundle_nodes[:2]
    workers = tuple(replace(w, ray_node_id=node) for w, node in zip(found.workers, nodes, strict=True))
    return Found(replica_node=nodes[0], bundle_nodes=nodes, workers=workers)


def renumbered_stages(found: Found) -> Found:
    """vLLM took the bundles in another order: every worker is on the right node, and computes the other stage."""
    for rank, worker in enumerate(found.workers):
        found = with_worker(found, rank, pp_rank=1 - worker.pp_rank)
    return found


def split_group(found: Found) -> Found:
    found = with_worker(with_worker(found, 1, node=N1), 2, node=N0)
    return with_bundle(with_bundle(found, 1, N1), 2, N0)


MISMATCHES: list[tuple[str, Callable[[Found], Found], list[str]]] = [
    (
        "swapped stages",
        swapped_stages,
        [
            f"rank 0 (stage 0, tp 0): wanted {N0} in island-0, found {N1}",
            f"rank 0 (stage 0, tp 0): wanted its bundle on {N0}, found {N1}",
            f"rank 1 (stage 0, tp 1): wanted {N0} in island-0, found {N1}",
            f"rank 1 (stage 0, tp 1): wanted its bundle on {N0}, found {N1}",
            f"rank 2 (stage 1, tp 0): wanted {N1} in island-1, found {N0}",
            f"rank 2 (stage 1, tp 0): wanted its bundle on {N1}, found {N0}",
            f"rank 3 (stage 1, tp 1): wanted {N1} in island-1, found {N0}",
            f"rank 3 (stage 1, tp 1): wanted its bundle on {N1}, found {N0}",
            f"replica actor: wanted {N0} (rank 0's node), found {N1}",
        ],
    ),
    (
        "renumbered stages",
        renumbered_stages,
        [
            "rank 0 (stage 0, tp 0): wanted (dp, pp, tp) = (0, 0, 0), found (0, 1, 0)",
            "rank 1 (stage 0, tp 1): wanted (dp, pp, tp) = (0, 0, 1), found (0, 1, 1)",
            "rank 2 (stage 1, tp 0): wanted (dp, pp, tp) = (0, 1, 0), found (0, 0, 0)",
            "rank 3 (stage 1, tp 1): wanted (dp, pp, tp) = (0, 1, 1), found (0, 0, 1)",
        ],
    ),
    (
        "split tensor-parallel groups",
        split_group,
        [
            f"rank 1 (stage 0, tp 1): wanted {N0} in island-0, found {N1}",
            f"rank 1 (stage 0, tp 1): wanted its bundle on {N0}, found {N1}",
            f"rank 2 (stage 1, tp 0): wanted {N1} in island-1, found {N0}",
            f"rank 2 (stage 1, tp 0): wanted its bundle on {N1}, found {N0}",
            "tensor-parallel group of stage 0: leaves its island, found on island-0, island-1",
            "tensor-parallel group of stage 1: leaves its island, found on island-0, island-1",
        ],
    ),
    (
        "wrong tensor-parallel rank",
        lambda found: with_worker(found, 3, tp_rank=0),
        ["rank 3 (stage 1, tp 1): wanted (dp, pp, tp) = (0, 1, 1), found (0, 1, 0)"],
    ),
    (
        "a worker too few",
        lambda found: replace(found, workers=found.workers[:3]),
        ["workers: wanted 4, found 3"],
    ),
    (
        "a worker too many",
        lambda found: replace(found, workers=(*found.workers, found.workers[0])),
        ["workers: wanted 4, found 5"],
    ),
    (
        "no workers",
        lambda found: replace(found, workers=()),
        ["workers: wanted 4, found 0"],
    ),
    (
        "a bundle too few",
        lambda found: replace(found, bundle_nodes=found.bundle_nodes[:3]),
        ["bundles: wanted 4, found 3"],
    ),
    (
        "replica actor elsewhere",
        lambda found: replace(found, replica_node=ray_id(N1)),
        [f"replica actor: wanted {N0} (rank 0's node), found {N1}"],
    ),
    (
        "a bundle elsewhere",
        lambda found: with_bundle(found, 2, N0),
        [f"rank 2 (stage 1, tp 0): wanted its bundle on {N1}, found {N0}"],
    ),
]


@pytest.mark.parametrize(("change", "lines"), [case[1:] for case in MISMATCHES], ids=[case[0] for case in MISMATCHES])
def test_each_mismatch_shows_wanted_against_found(change: Callable[[Found], Found], lines: list[str]) -> None:
    assert problems(layout(), change(found_as_planned(layout()))) == lines


def test_a_worker_on_a_node_without_gpus_is_shown_by_its_ray_id() -> None:
    found = with_worker(found_as_planned(layout("pp2")), 1, ray_node_id="cafe42")
    # Two GPUs of one island hold pp2, so both ranks belong on the same node.
    assert problems(layout("pp2"), found) == [f"rank 1 (stage 1, tp 0): wanted {N0} in island-0, found cafe42"]
    lost = replace(found_as_planned(layout("pp2")), replica_node="cafe42")
    assert problems(layout("pp2"), lost) == [f"replica actor: wanted {N0} (rank 0's node), found cafe42"]


def test_a_worker_on_another_node_of_its_island_is_a_mismatch_too() -> None:
    planned = layout_of("tp4", cluster_of(1, 1, (2, 2)))
    found = with_worker(with_worker(found_as_planned(planned), 1, node=N3), 2, node=N2)
    assert problems(planned, found) == [
        f"rank 1 (stage 0, tp 1): wanted {N2} in island-2, found {N3}",
        f"rank 2 (stage 0, tp 2): wanted {N3} in island-2, found {N2}",
    ]


def test_data_parallel_ranks_are_told_apart() -> None:
    planned = layout("dp2tp2")
    found = found_as_planned(planned)
    swapped = replace(found, workers=(*found.workers[2:], *found.workers[:2]))
    lines = problems(planned, swapped)
    assert "rank 0 (stage 0, tp 0): wanted (dp, pp, tp) = (0, 0, 0), found (1, 0, 0)" in lines
    assert f"rank 2 (stage 0, tp 0): wanted {N1} in island-1, found {N0}" in lines
    assert not any("leaves its island" in line for line in lines)


def test_a_split_group_is_named_with_its_data_parallel_rank() -> None:
    lines = problems(layout("dp2tp2"), split_group(found_as_planned(layout("dp2tp2"))))
    assert lines[-2:] == [
        "tensor-parallel group of stage 0: leaves its island, found on island-0, island-1",
        "tensor-parallel group of stage 0, data-parallel rank 1: leaves its island, found on island-0, island-1",
    ]


quick = settings(max_examples=60, derandomize=True)
SHAPES = st.sampled_from(["tp1", "tp2", "pp3", "tp2pp2", "tp4", "dp2tp2", "dp2tp2pp2"])


@quick
@given(SHAPES, st.data())
def test_one_worker_out_of_place_is_always_noticed(shape: str, data: st.DataObject) -> None:
    planned = layout_of(shape, CLUSTER)
    rank = data.draw(st.integers(0, len(planned.seats) - 1))
    node = data.draw(st.sampled_from([N0, N1, N2, N3]))
    assume(node != planned.seats[rank].node)
    lines = problems(planned, with_worker(found_as_planned(planned), rank, node=node))
    seat = planned.seats[rank]
    wanted = f"rank {rank} (stage {seat.pp_rank}, tp {seat.tp_rank}): wanted {seat.node} in {seat.island}, found {node}"
    assert lines[0] == wanted


@quick
@given(SHAPES, st.data())
def test_workers_in_another_order_are_always_noticed(shape: str, data: st.DataObject) -> None:
    planned = layout_of(shape, CLUSTER)
    found = found_as_planned(planned)
    workers = tuple(data.draw(st.permutations(found.workers)))
    assume(workers != found.workers)
    assert problems(planned, replace(found, workers=workers))
