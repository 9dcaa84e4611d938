from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from deployment_builders import ray_node
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_builders import GIB

from deployments.islands import (
    ACCELERATOR_LABEL,
    ISLAND_LABEL,
    NODE_LABEL,
    RAY_NODE_ID_LABEL,
    Inventory,
    NoGpusError,
    inventory,
)
from placement import Cluster, Gpu
from placement.clusters.terrain import regions

MEMORY_BYTES = 80 * GIB
H100 = Gpu(name="H100", memory_bytes=MEMORY_BYTES, kind="h100_sxm")


def seen(*ray_nodes: Any) -> Inventory:
    return inventory(ray_nodes, dict.fromkeys((node["NodeID"] for node in ray_nodes), MEMORY_BYTES))


def islands(where: Inventory) -> dict[str, list[tuple[str, int]]]:
    return {island: [(node.name, node.gpus) for node in nodes] for island, nodes in where.cluster.islands.items()}


def labels(island: str, node: str) -> dict[str, str]:
    return {ISLAND_LABEL: island, NODE_LABEL: node}


def by_id(node_id: str) -> dict[str, str]:
    return {RAY_NODE_ID_LABEL: node_id}


def test_labelled_nodes_are_named_and_addressed_by_their_labels() -> None:
    where = seen(ray_node("aa", island="west", node="n1"), ray_node("bb", island="east", node="n0", gpus=4))
    assert islands(where) == {"east": [("n0", 4)], "west": [("n1", 2)]}
    assert where.selectors == {"n0": labels("east", "n0"), "n1": labels("west", "n1")}
    assert where.ray_node_ids == {"n0": "bb", "n1": "aa"}


def test_an_unlabelled_node_is_an_island_of_its_own_and_addressed_by_its_ray_id() -> None:
    where = seen(ray_node("aa", name="10.0.0.1"), ray_node("bb", name="10.0.0.2", gpus=8))
    assert islands(where) == {"10.0.0.1": [("10.0.0.1", 2)], "10.0.0.2": [("10.0.0.2", 8)]}
    assert where.selectors == {"10.0.0.1": by_id("aa"), "10.0.0.2": by_id("bb")}


def test_an_island_of_several_nodes() -> None:
    where = seen(
        ray_node("aa", island="rack", node="tray-0", gpus=4),
        ray_node("bb", island="rack", node="tray-1", gpus=4),
        ray_node("cc", island="other", node="tray-2", gpus=4),
    )
    assert islands(where) == {"other": [("tray-2", 4)], "rack": [("tray-0", 4), ("tray-1", 4)]}


def test_an_island_label_alone_is_enough_to_form_an_island() -> None:
    where = seen(ray_node("aa", name="h1", island="rack"), ray_node("bb", name="h2", island="rack"))
    assert islands(where) == {"rack": [("rack/h1", 2), ("rack/h2", 2)]}
    # The label is that of both, so only the id tells one from the other.
    assert where.selectors == {"rack/h1": by_id("aa"), "rack/h2": by_id("bb")}


def test_a_node_label_alone_names_an_island_of_one_node() -> None:
    where = seen(ray_node("aa", name="h1", node="big"))
    assert islands(where) == {"big": [("big", 2)]}
    assert where.selectors == {"big": by_id("aa")}


def test_two_raylets_on_one_machine_are_told_apart_by_their_ids() -> None:
    machine = [ray_node("aaaaaaaa11", name="h1"), ray_node("bbbbbbbb22", name="h1")]
    where = seen(*machine)
    assert islands(where) == {"h1#aaaaaaaa": [("h1#aaaaaaaa", 2)], "h1#bbbbbbbb": [("h1#bbbbbbbb", 2)]}
    assert where.selectors == {"h1#aaaaaaaa": by_id("aaaaaaaa11"), "h1#bbbbbbbb": by_id("bbbbbbbb22")}
    assert seen(*reversed(machine)).selectors == where.selectors


def test_two_labelled_raylets_on_one_machine_are_two_islands() -> None:
    where = seen(ray_node("aa", name="h1", island="i0", node="n0"), ray_node("bb", name="h1", island="i1", node="n1"))
    assert islands(where) == {"i0": [("n0", 2)], "i1": [("n1", 2)]}


MACHINES = [
    ("labelled", [{"machine": "h1"}, {"machine": "h1"}, {"machine": "h2"}], ["h1", "h1", "h2"]),
    ("one address", [{"address": "10.0.0.1"}, {"address": "10.0.0.1"}, {}], ["10.0.0.1", "10.0.0.1", "n2"]),
    (
        "pods of one machine",
        [{"machine": "h1", "address": "10.0.0.1"}, {"machine": "h1", "address": "10.0.0.2"}, {}],
        ["h1", "h1", "n2"],
    ),
    (
        "pods behind one address",
        [{"machine": "h1", "address": "10.0.0.1"}, {"machine": "h2", "address": "10.0.0.1"}, {}],
        ["h1", "h2", "n2"],
    ),
    ("the other has no GPU", [{}, {}, {"address": "head"}], ["n0", "n1", "n2"]),
]


@pytest.mark.parametrize(("nodes", "machines"), [case[1:] for case in MACHINES], ids=[case[0] for case in MACHINES])
def test_raylets_of_one_machine_are_one_machine_to_the_planner(
    nodes: list[dict[str, str]], machines: list[str]
) -> None:
    where = seen(
        ray_node("head", gpus=0, address="head"),
        *(ray_node(f"id{at}", island=f"i{at}", node=f"n{at}", **labels) for at, labels in enumerate(nodes)),
    )
    assert [node.machine_name for node in where.cluster.nodes] == machines
    (region,) = regions(Cluster(nodes=tuple(replace(node, gpu=H100) for node in where.cluster.nodes)))
    assert region.machine_gpus == 2 * max(Counter(machines).values()), "who shares a machine needs no network"


def test_a_node_label_that_repeats_in_another_island_still_selects_one_node() -> None:
    where = seen(ray_node("aa", island="i0", node="n0"), ray_node("bb", island="i1", node="n0"))
    assert islands(where) == {"i0": [("n0#aa", 2)], "i1": [("n0#bb", 2)]}
    assert where.selectors == {"n0#aa": labels("i0", "n0"), "n0#bb": labels("i1", "n0")}


def test_nodes_with_the_very_same_labels_are_addressed_by_their_ids() -> None:
    where = seen(ray_node("aa", island="i0", node="n0"), ray_node("bb", island="i0", node="n0"))
    assert islands(where) == {"i0": [("n0#aa", 2), ("n0#bb", 2)]}
    assert where.selectors == {"n0#aa": by_id("aa"), "n0#bb": by_id("bb")}


def test_a_node_takes_the_place_of_a_dead_one_with_the_same_labels() -> None:
    where = seen(ray_node("dead", island="i0", node="n0", alive=False), ray_node("new", island="i0", node="n0"))
    assert where.selectors == {"n0": labels("i0", "n0")}
    assert where.ray_node_ids == {"n0": "new"}


def test_nodes_without_gpus_are_left_out() -> None:
    where = seen(ray_node("head", gpus=0, name="h0"), ray_node("half", gpus=0.5, name="h1"), ray_node("aa", name="h2"))
    assert islands(where) == {"h2": [("h2", 2)]}


def test_a_gpu_has_the_name_that_ray_gives_it_and_the_memory_of_its_node() -> None:
    ray_nodes = [ray_node("aa", name="a", **{ACCELERATOR_LABEL: "H100"}), ray_node("bb", name="b")]
    cluster = inventory(ray_nodes, {"aa": 80 * GIB, "bb": 24 * GIB}).cluster
    assert [node.gpu for node in cluster.nodes] == [
        Gpu(name="H100", memory_bytes=80 * GIB),
        Gpu(name="GPU", memory_bytes=24 * GIB),
    ]


@pytest.mark.parametrize(
    "ray_nodes",
    [
        pytest.param([], id="no nodes"),
        pytest.param([ray_node("aa", gpus=0)], id="no GPUs"),
        pytest.param([ray_node("aa", alive=False)], id="all dead"),
    ],
)
def test_a_cluster_without_gpus_is_an_error_that_says_what_to_do(ray_nodes: list[Any]) -> None:
    with pytest.raises(NoGpusError, match=r"no node with a GPU; start its nodes with --num-gpus"):
        seen(*ray_nodes)


few_names = st.sampled_from(["a", "b", "c"])


@st.composite
def clusters(draw: st.DrawFn) -> list[Any]:
    """Nodes with labels and names that repeat as they like."""
    nodes = []
    for index in range(draw(st.integers(1, 5))):
        own = {label: draw(few_names) for label in ("island", "node") if draw(st.booleans())}
        node_id = f"{index}" * 56
        nodes.append(ray_node(node_id, name=draw(few_names), gpus=draw(st.integers(0, 2)), **own))
    return [*nodes, ray_node("9" * 56, name="z")]


@settings(max_examples=200, derandomize=True)
@given(clusters())
def test_every_selector_matches_exactly_the_node_it_is_for(ray_nodes: list[Any]) -> None:
    where = seen(*ray_nodes)
    assert where.cluster.gpus == sum(int(node["Resources"].get("GPU", 0)) for node in ray_nodes)
    for name, selector in where.selectors.items():
        matching = [
            node["NodeID"]
            for node in ray_nodes
            if selector.items() <= node["Labels"].items() and node["Resources"].get("GPU")
        ]
        assert matching == [where.ray_node_ids[name]]
    assert seen(*reversed(ray_nodes)).cluster == where.cluster
