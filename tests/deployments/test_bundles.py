import pytest
from deployment_builders import layout_of, ray_id, ray_nodes_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placement_builders import GIB, cluster_of

from deployments.bundles import ENGINE_CORE_CPUS, REPLICA_CPUS, bundles_for
from deployments.islands import ISLAND_LABEL, NODE_LABEL, RAY_NODE_ID_LABEL, Inventory, inventory
from placement import Cluster, Layout, Shape, place

quick = settings(max_examples=60, derandomize=True)

FIRST = {"GPU": 1, "CPU": REPLICA_CPUS}
OTHER = {"GPU": 1}
FIRST_OF_DP = {"GPU": 1, "CPU": REPLICA_CPUS + ENGINE_CORE_CPUS}
OTHER_OF_DP = {"GPU": 1, "CPU": ENGINE_CORE_CPUS}
# With data parallelism every rank has an EngineCore of its own, in its first bundle.
FIRST_OF_ALL = {"GPU": 1, "CPU": REPLICA_CPUS + ENGINE_CORE_CPUS}
FIRST_OF_RANK = {"GPU": 1, "CPU": ENGINE_CORE_CPUS}


def labels(island: int, node: int = 0) -> dict[str, str]:
    return {ISLAND_LABEL: f"island-{island}", NODE_LABEL: f"island-{island}-node-{node}"}


def node_id(island: int, node: int = 0) -> dict[str, str]:
    return {RAY_NODE_ID_LABEL: ray_id(f"island-{island}-node-{node}")}


def seen(cluster: Cluster, *, labelled: bool) -> Inventory:
    ray_nodes = ray_nodes_of(cluster, labelled=labelled)
    return inventory(ray_nodes, dict.fromkeys((node["NodeID"] for node in ray_nodes), GIB))


@pytest.mark.parametrize(
    ("shape", "cluster", "labelled", "resources", "selectors"),
    [
        pytest.param("tp1", cluster_of(1), True, [FIRST], [labels(0)], id="one GPU"),
        pytest.param("tp2", cluster_of(1, 2), True, [FIRST, OTHER], [labels(1)] * 2, id="the island that has room"),
        pytest.param(
            "tp2pp2",
            cluster_of(2, 2),
            True,
            [FIRST, OTHER, OTHER, OTHER],
            [labels(0), labels(0), labels(1), labels(1)],
            id="a stage to an island",
        ),
        pytest.param(
            "tp4", cluster_of((2, 2)), True, [FIRST, OTHER, OTHER, OTHER], [labels(0, 0)] * 2 + [labels(0, 1)] * 2,
            id="a group over two nodes of one island",
        ),
        pytest.param(
            "tp2ep4dp2",
            cluster_of(2, 2),
            True,
            [FIRST_OF_ALL, OTHER, FIRST_OF_RANK, OTHER],
            [labels(0), labels(0), labels(1), labels(1)],
            id="an EngineCore for each data-parallel rank",
        ),
        pytest.param("pp2", cluster_of(1, 1), False, [FIRST, OTHER], [node_id(0), node_id(1)], id="unlabelled nodes"),
    ],
)  # fmt: skip
def test_a_layout_becomes_bundles(
    shape: str,
    cluster: Cluster,
    labelled: bool,
    resources: list[dict[str, float]],
    selectors: list[dict[str, str]],
) -> None:
    where = seen(cluster, labelled=labelled)
    bundles = bundles_for(layout_of(shape, where.cluster), where.selectors)
    assert list(bundles.resources) == resources
    assert list(bundles.selectors) == selectors


@st.composite
def placed(draw: st.DrawFn) -> tuple[Layout, Inventory]:
    """A layout on a cluster as Ray tells of it."""
    nodes = st.integers(1, 5)
    islands = st.lists(st.lists(nodes, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)
    where = seen(cluster_of(*draw(islands)), labelled=draw(st.booleans()))
    shape = Shape(tp=draw(st.integers(1, 4)), pp=draw(st.integers(1, 4)), dp=draw(st.integers(1, 2)))
    layout = place(shape, where.cluster)
    assume(isinstance(layout, Layout))
    assert isinstance(layout, Layout)
    return layout, where


@quick
@given(placed())
def test_bundle_i_is_rank_i_on_the_node_of_its_seat(case: tuple[Layout, Inventory]) -> None:
    layout, where = case
    bundles = bundles_for(layout, where.selectors)
    assert len(bundles.resources) == len(bundles.selectors) == layout.shape.gpus
    for rank, selector in enumerate(bundles.selectors):
        (seat,) = [seat for seat in layout.seats if seat.rank == rank]
        assert selector == where.selectors[seat.node]


@quick
@given(placed())
def test_every_bundle_has_one_gpu_and_only_the_first_has_the_replica(case: tuple[Layout, Inventory]) -> None:
    layout, where = case
    resources = bundles_for(layout, where.selectors).resources
    assert all(bundle["GPU"] == 1 for bundle in resources)
    if layout.shape.dp == 1:
        assert resources == (FIRST, *[OTHER] * (layout.shape.gpus - 1))
    cpus = [rank for rank, bundle in enumerate(resources) if bundle.get("CPU")]
    starts = [seat.rank for seat in layout.seats if (seat.pp_rank, seat.tp_rank) == (0, 0)]
    assert cpus == starts
    assert sum(bundle.get("CPU", 0) for bundle in resources[1:]) == ENGINE_CORE_CPUS * (layout.shape.dp - 1)


@quick
@given(placed())
def test_the_bundles_of_a_tensor_parallel_group_select_nodes_of_one_island(case: tuple[Layout, Inventory]) -> None:
    layout, where = case
    island_of = {node.name: node.island for node in where.cluster.nodes}
    bundles = bundles_for(layout, where.selectors)
    tp = layout.shape.tp
    for start in range(0, layout.shape.gpus, tp):
        selected = {
            island_of[name]
            for name, selector in where.selectors.items()
            if selector in bundles.selectors[start : start + tp]
        }
        assert len(selected) == 1


@quick
@given(placed())
def test_no_node_is_asked_for_more_gpus_than_it_has(case: tuple[Layout, Inventory]) -> None:
    layout, where = case
    selectors = bundles_for(layout, where.selectors).selectors
    for node in where.cluster.nodes:
        assert selectors.count(where.selectors[node.name]) <= node.gpus


def test_bundles_do_not_share_a_selector_that_somebody_might_change() -> None:
    where = seen(cluster_of(2), labelled=True)
    first, second = bundles_for(layout_of("tp2", where.cluster), where.selectors).selectors
    assert first == second
    assert first is not second
    assert first is not where.selectors["island-0-node-0"]
