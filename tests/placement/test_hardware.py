import math
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_builders import GIB, H100, X1, cluster_of

from placement.clusters.hardware import MAX_GPUS, MAX_NODES, Cluster, ClusterError, Gpu, Link, Links, Node


def test_islands_are_sorted_and_hold_their_nodes() -> None:
    cluster = Cluster(
        nodes=(
            Node(name="c", island="b", gpus=4, gpu=H100),
            Node(name="b", island="b", gpus=2, gpu=H100),
            Node(name="a", island="a", gpus=1, gpu=H100),
        )
    )
    assert [(name, [node.name for node in nodes]) for name, nodes in cluster.islands.items()] == [
        ("a", ["a"]),
        ("b", ["b", "c"]),
    ]
    assert cluster.gpus == 7


def test_the_order_of_nodes_does_not_matter() -> None:
    cluster = cluster_of(2, (4, 4), 1)
    assert Cluster(nodes=cluster.nodes[::-1]) == cluster


def test_gpu_kinds_are_sorted_by_memory() -> None:
    small = Gpu(name="L4", memory_bytes=24 * GIB)
    nodes = (*cluster_of(2, 2).nodes, Node(name="l4", island="l4", gpus=1, gpu=small))
    assert Cluster(nodes=nodes).gpu_kinds == (small, H100)


def test_an_empty_cluster_has_no_gpus() -> None:
    assert Cluster(nodes=()).gpus == 0
    assert Cluster(nodes=()).islands == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"gpus": 0}, "gpus is 0; it must be at least 1", id="no-gpus"),
        pytest.param({"name": ""}, "need a name", id="no-name"),
        pytest.param({"island": ""}, "need a name", id="no-island"),
    ],
)
def test_impossible_nodes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Node(**({"name": "n", "island": "i", "gpus": 1, "gpu": H100} | fields))  # type: ignore[arg-type]


def test_a_gpu_without_memory_is_refused() -> None:
    with pytest.raises(ClusterError, match="memory_bytes is 0"):
        Gpu(name="none", memory_bytes=0)


def test_node_names_must_be_unique() -> None:
    twin = Node(name="n", island="i", gpus=1, gpu=H100)
    with pytest.raises(ClusterError, match="n appears more than once"):
        Cluster(nodes=(twin, twin))


LINK = Link(kind="nvlink4", bandwidth_bytes_per_s=450e9, latency_s=5e-6, source="test")
NETWORK = Link(kind="infiniband", bandwidth_bytes_per_s=50e9, latency_s=1e-5, source="test")
LINKS = Links(island=LINK, network=NETWORK)
SLOWER = Links(island=LINK, network=replace(NETWORK, bandwidth_bytes_per_s=25e9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"kind": "nvlink9"}, "kind is 'nvlink9'; it must be one of nvlink3, nvlink4", id="kind"),
        pytest.param({"bandwidth_bytes_per_s": 0}, "bandwidth_bytes_per_s is 0; it must be finite and", id="zero"),
        pytest.param({"bandwidth_bytes_per_s": -1.0}, "bandwidth_bytes_per_s is -1.0", id="negative"),
        pytest.param({"bandwidth_bytes_per_s": math.inf}, "bandwidth_bytes_per_s is inf", id="infinite"),
        pytest.param({"bandwidth_bytes_per_s": math.nan}, "bandwidth_bytes_per_s is nan", id="nan"),
        pytest.param({"latency_s": -1e-6}, "latency_s is -1e-06; it must be finite and at least 0", id="latency"),
        pytest.param({"latency_s": math.nan}, "latency_s is nan", id="latency-nan"),
    ],
)
def test_impossible_links_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)):
        replace(LINK, **fields)


def test_a_link_may_take_no_time() -> None:
    assert replace(LINK, latency_s=0.0).latency_s == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"kind": ""}, "it needs a name", id="no-name"),
        pytest.param({"memory_bytes": 0}, "GPU kind 'x1': memory_bytes is 0", id="memory"),
        pytest.param({"memory_bandwidth_bytes_per_s": math.nan}, "memory_bandwidth_bytes_per_s is nan", id="bandwidth"),
        pytest.param({"flops": {"fp16": 1e14}}, "flops has 'fp16'; it must be one of bf16, fp8, int8, fp4", id="fp16"),
        pytest.param({"flops": {"bf16": 0}}, "flops['bf16'] is 0", id="no-flops"),
        pytest.param({"l2_bytes": -1}, "l2_bytes is -1", id="cache"),
    ],
)
def test_impossible_gpu_kinds_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)):
        replace(X1, **fields)


def test_a_gpu_kind_is_a_value_apart_from_the_mapping_it_was_made_of() -> None:
    flops = {"bf16": 1e14}
    kind = replace(X1, flops=flops)
    flops["bf16"] = 1.0
    assert kind == X1
    assert len({kind, X1}) == 1


def test_gpus_with_a_spec_of_their_own_are_different_kinds() -> None:
    own = replace(H100, spec=X1)
    nodes = (*cluster_of(2).nodes, Node(name="own", island="own", gpus=1, gpu=own))
    assert set(Cluster(nodes=nodes).gpu_kinds) == {H100, own}


def node(name: str, island: str, machine: str = "", links: Links | None = LINKS) -> Node:
    return Node(name=name, island=island, gpus=2, gpu=H100, machine=machine, links=links)


def test_a_node_in_two_islands_is_refused() -> None:
    with pytest.raises(ClusterError, match="Node n is in islands a and b: islands must not overlap"):
        Cluster(nodes=(node("n", "a"), node("n", "b")))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        pytest.param(
            (node("a", "i"), node("b", "i", links=SLOWER)),
            "Nodes a and b are in island i but have different links",
            id="island",
        ),
        pytest.param(
            (node("a", "i"), node("b", "i", links=None)),
            "Nodes a and b are in island i but have different links; all nodes of one island need the same, or none",
            id="known-and-unknown",
        ),
        pytest.param(
            (node("a", "i", "box"), node("b", "j", "box", SLOWER)),
            "Nodes a and b are in machine box but have different links",
            id="machine",
        ),
        pytest.param(
            (node("a", "i", "box"), node("b", "j", "box")),
            "Machine box has islands i and j, but its links have no machine link",
            id="no-link-between-islands",
        ),
    ],
)
def test_links_that_contradict_each_other_are_refused(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Cluster(nodes=nodes)


def test_islands_of_different_machines_may_have_different_links() -> None:
    cluster = Cluster(nodes=(node("a", "i"), node("b", "j", links=SLOWER), node("c", "k", links=None)))
    assert [node.links for node in cluster.nodes] == [LINKS, SLOWER, None]
    assert [node.machine_name for node in cluster.nodes] == ["a", "b", "c"]


@pytest.mark.parametrize("price", [0.0, -1.0, math.inf, math.nan])
def test_a_price_is_above_zero(price: float) -> None:
    with pytest.raises(ClusterError, match="Node n: usd_per_gpu_hour is"):
        Node(name="n", island="i", gpus=1, gpu=H100, usd_per_gpu_hour=price)


def test_a_million_gpus_in_few_nodes_are_accepted() -> None:
    cluster = Cluster(
        nodes=tuple(Node(name=f"n{index}", island=f"i{index}", gpus=MAX_GPUS // 10, gpu=H100) for index in range(10))
    )
    assert cluster.gpus == MAX_GPUS


@pytest.mark.parametrize(("nodes", "gpus"), [(MAX_NODES + 1, 1), (1, MAX_GPUS + 1)])
def test_absurd_sizes_are_refused(nodes: int, gpus: int) -> None:
    each = Node(name="n", island="i", gpus=gpus, gpu=H100)
    with pytest.raises(ClusterError, match="is too large; at most 100000 nodes and 1000000 GPUs are accepted"):
        Cluster(nodes=(each,) * nodes)


@given(st.permutations([node("a", "i"), node("b", "i"), node("c", "j"), node("d", "k", links=SLOWER)]))
def test_no_order_of_nodes_makes_another_cluster(nodes: list[Node]) -> None:
    cluster = Cluster(nodes=tuple(nodes))
    assert [node.name for node in cluster.nodes] == ["a", "b", "c", "d"]
    assert pickle.loads(pickle.dumps(cluster)) == cluster
