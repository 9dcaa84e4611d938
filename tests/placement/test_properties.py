"""What holds for every shape and every cluster."""

import re
from random import Random
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placement_builders import DEEPSEEK_V3, GIB, H100, LLAMA_8B, MIXTRAL_8X7B, cluster_of

from placement import (
    Choice,
    Cluster,
    Gpu,
    Infeasible,
    Layout,
    ModelConfigError,
    ModelSpec,
    Node,
    Shape,
    choose_shape,
    memory_use,
    place,
)

Taken = frozenset[tuple[str, int]]

quick = settings(max_examples=60, derandomize=True)

clusters = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(
    lambda islands: cluster_of(*islands)
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    tp, pp, dp = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return Shape(tp=tp, pp=pp, dp=dp, ep=draw(st.sampled_from([1, tp * dp])))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Shape, Cluster, Taken]:
    cluster = draw(clusters)
    slots = [(node.name, slot) for node in cluster.nodes for slot in range(node.gpus)]
    return draw(shapes()), cluster, frozenset(draw(st.lists(st.sampled_from(slots), max_size=4)))


def free_gpus(cluster: Cluster, taken: Taken) -> dict[str, int]:
    return {
        island: sum((node.name, slot) not in taken for node in nodes for slot in range(node.gpus))
        for island, nodes in cluster.islands.items()
    }


def laid_out(problem: tuple[Shape, Cluster, Taken]) -> Layout:
    layout = place(*problem)
    assume(isinstance(layout, Layout))
    assert isinstance(layout, Layout)
    return layout


@quick
@given(st.builds(Shape, tp=st.integers(1, 64), pp=st.integers(1, 64), ep=st.integers(1, 64), dp=st.integers(1, 64)))
def test_a_shape_survives_being_written(shape: Shape) -> None:
    assert Shape.parse(str(shape)) == shape


@quick
@given(problems())
def test_ranks_count_over_data_parallel_ranks_then_stages_then_tensor_parallel_ranks(
    problem: tuple[Shape, Cluster, Taken],
) -> None:
    shape, layout = problem[0], laid_out(problem)
    assert [seat.rank for seat in layout.seats] == list(range(shape.gpus))
    for seat in layout.seats:
        assert seat.rank == seat.dp_rank * shape.pp * shape.tp + seat.pp_rank * shape.tp + seat.tp_rank
        assert seat.dp_rank < shape.dp
        assert seat.pp_rank < shape.pp
        assert seat.tp_rank < shape.tp


@quick
@given(problems())
def test_no_tensor_parallel_group_leaves_an_island(problem: tuple[Shape, Cluster, Taken]) -> None:
    islands: dict[tuple[int, int], set[str]] = {}
    for seat in laid_out(problem).seats:
        islands.setdefault((seat.dp_rank, seat.pp_rank), set()).add(seat.island)
    assert all(len(names) == 1 for names in islands.values())


@quick
@given(problems())
def test_every_rank_has_a_free_gpu_of_its_own(problem: tuple[Shape, Cluster, Taken]) -> None:
    _, cluster, taken = problem
    layout = laid_out(problem)
    exist = {(node.island, node.name, slot) for node in cluster.nodes for slot in range(node.gpus)}
    assert {(seat.island, seat.node, seat.slot) for seat in layout.seats} <= exist
    assert len(layout.places) == len(layout.seats)
    assert not layout.places & taken


@quick
@given(problems())
def test_the_ranks_on_the_first_node_are_a_prefix_of_each_data_parallel_rank(
    problem: tuple[Shape, Cluster, Taken],
) -> None:
    shape, layout = problem[0], laid_out(problem)
    for dp_rank in range(shape.dp):
        nodes = [seat.node for seat in layout.seats if seat.dp_rank == dp_rank]
        together = nodes.count(nodes[0])
        assert nodes[:together] == [nodes[0]] * together


@quick
@given(problems())
def test_one_island_is_used_where_one_has_room(problem: tuple[Shape, Cluster, Taken]) -> None:
    shape, cluster, taken = problem
    fitting = [free for free in free_gpus(cluster, taken).values() if free >= shape.gpus]
    assume(fitting)
    islands = {seat.island for seat in laid_out(problem).seats}
    assert len(islands) == 1
    assert free_gpus(cluster, taken)[islands.pop()] == min(fitting)


@quick
@given(problems())
def test_a_group_stays_on_one_node_where_its_island_has_such_a_node(problem: tuple[Shape, Cluster, Taken]) -> None:
    _, cluster, taken = problem
    shape = Shape(tp=problem[0].tp)
    seats = laid_out((shape, cluster, taken)).seats
    room = [
        sum((node.name, slot) not in taken for slot in range(node.gpus)) for node in cluster.islands[seats[0].island]
    ]
    assert (len({seat.node for seat in seats}) == 1) == (max(room) >= shape.tp)


@quick
@given(problems())
def test_infeasible_only_where_the_islands_cannot_hold_the_groups(problem: tuple[Shape, Cluster, Taken]) -> None:
    shape, cluster, taken = problem
    groups = sum(free // shape.tp for free in free_gpus(cluster, taken).values())
    assert isinstance(place(*problem), Infeasible) == (groups < shape.pp * shape.dp)


@quick
@given(problems())
def test_infeasible_has_numbers_and_its_nearest_change_works(problem: tuple[Shape, Cluster, Taken]) -> None:
    shape, cluster, taken = problem
    answer = place(*problem)
    assume(isinstance(answer, Infeasible))
    assert isinstance(answer, Infeasible)
    assert str(shape) in answer.constraint
    assert len(re.findall(r"\b\d+\b", answer.constraint)) >= 2
    suggested = re.match(r"(?:[tped]p\d+)+", answer.nearest)
    assert suggested or sum(free_gpus(cluster, taken).values()) == 0
    if suggested:
        assert isinstance(place(Shape.parse(suggested[0]), cluster, taken), Layout)
    more = re.search(r"(\d+) more free GPUs? in (\S+)$", answer.nearest)
    if more:
        added = Node(name="added", island=more[2], gpus=int(more[1]), gpu=H100)
        assert isinstance(place(shape, Cluster(nodes=(*cluster.nodes, added)), taken), Layout)


@quick
@given(problems(), st.integers(1, 5), st.sampled_from(["island-0", "island-1", "another"]))
def test_more_gpus_never_make_a_layout_impossible(
    problem: tuple[Shape, Cluster, Taken], gpus: int, island: str
) -> None:
    shape, cluster, taken = problem
    laid_out(problem)
    added = Node(name="added", island=island, gpus=gpus, gpu=H100)
    assert isinstance(place(shape, Cluster(nodes=(*cluster.nodes, added)), taken), Layout)


@quick
@given(problems(), st.randoms(use_true_random=False))
def test_the_same_cluster_gives_the_same_layout(problem: tuple[Shape, Cluster, Taken], random: Random) -> None:
    shape, cluster, taken = problem
    shuffled = list(cluster.nodes)
    random.shuffle(shuffled)
    assert place(shape, Cluster(nodes=tuple(shuffled)), frozenset(sorted(taken))) == place(*problem)


MODELS = [ModelSpec.from_hf_config(config, name="m") for config in (LLAMA_8B, MIXTRAL_8X7B)]
gpu_kinds = st.integers(4, 80).map(lambda size: Gpu(name=f"{size}-gib", memory_bytes=size * GIB))


@quick
@given(st.sampled_from(MODELS), clusters, gpu_kinds, gpu_kinds, st.integers(1, 4), st.integers(0, 100_000))
def test_more_gpus_never_make_a_model_too_big(
    model: ModelSpec, islands: Cluster, gpu: Gpu, other: Gpu, more: int, context_tokens: int
) -> None:
    cluster = Cluster(
        nodes=tuple(Node(name=node.name, island=node.island, gpus=node.gpus, gpu=gpu) for node in islands.nodes)
    )
    before = choose_shape(model, cluster, context_tokens=context_tokens)
    grown = Cluster(nodes=(*cluster.nodes, Node(name="added", island="island-0", gpus=more, gpu=other)))
    after = choose_shape(model, grown, context_tokens=context_tokens)
    if isinstance(before, Choice):
        assert isinstance(after, Choice)
        assert after.shape.gpus <= before.shape.gpus
    for cluster_now, answer in ((cluster, before), (grown, after)):
        if isinstance(answer, Choice):
            layout = place(answer.shape, cluster_now, min_memory_bytes=answer.min_memory_bytes)
            assert isinstance(layout, Layout)
            gpus = {node.name: node.gpu for node in cluster_now.nodes}
            for seat in layout.seats:
                assert memory_use(model, answer.shape, gpus[seat.node], context_tokens=context_tokens).fits


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 200) | st.sampled_from(["", "awq", "yarn", "fp8"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["quant_method", "bits", "group_size", "config_groups", "weights", "type", "factor"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
changed_fields = st.sampled_from([*DEEPSEEK_V3, *MIXTRAL_8X7B, "text_config", "mlp_only_layers", "head_dim"])


@quick
@given(st.sampled_from([LLAMA_8B, MIXTRAL_8X7B, DEEPSEEK_V3]), st.dictionaries(changed_fields, json_values, max_size=2))
def test_a_config_is_read_or_refused_but_never_breaks_the_reader(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        model = ModelSpec.from_hf_config(config | changes, name="m")
    except ModelConfigError:
        return
    assert model.parameters > 0
    assert model.weight_bytes > 0
    assert model.kv_bytes_per_token(2) > 0
