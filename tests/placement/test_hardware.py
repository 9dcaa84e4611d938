import pytest
from placement_builders import GIB, H100, cluster_of

from placement import Cluster, ClusterError, Gpu, Node


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
