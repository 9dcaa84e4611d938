from typing import Any

import pytest
from check_builders import checked_model, problems
from planner_builders import DEEPSEEK_V3, LLAMA_70B, cluster, model

from deployments.config import ModelConfig
from deployments.config_messages import ConfigError
from deployments.placing import Placed, parse_shape, place_replicas, shapes_that_hold
from deployments.simulation.planned import limits_of
from placement.clusters.cluster_reading import read_cluster
from placement.clusters.hardware import Cluster, Gpu, Node
from placement.shape import Shape

LENGTH = {"max_model_len": 8192}
SECTION = "models[0]"


def placed(
    shape: str = "auto",
    on: Cluster | str = "1x dgx-h100",
    name: str = LLAMA_70B,
    replicas: int = 1,
    **engine: Any,
) -> Placed:
    config = ModelConfig(source=name, shape=shape, replicas=replicas, engine=LENGTH | engine)
    nodes = cluster(on) if isinstance(on, str) else on
    return place_replicas(SECTION, config, parse_shape(SECTION, shape, model(name)), model(name), nodes)


def problem(*arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        placed(*arguments, **named)
    (line,) = caught.value.problems
    return line


def unknown_gpus(memory_gib: float, *, islands: int = 2, gpus: int = 2) -> Cluster:
    gpu = Gpu(name="Banana 3000", memory_bytes=int(memory_gib * 2**30))
    return Cluster(nodes=tuple(Node(name=f"n{i}", island=f"i{i}", gpus=gpus, gpu=gpu) for i in range(islands)))


# --- auto ------------------------------------------------------------------------------------------------------------


def test_on_known_gpus_the_planner_chooses_and_says_what_it_expects() -> None:
    found = placed()
    (note,) = found.notes
    assert note.startswith(f"models[0].shape: {found.shape} is the smallest replica that nearly gives the most output")
    assert "tokens/s predicted, TPOT " in note
    assert found.shape.gpus <= 8
    found.layouts[0].check(cluster("1x dgx-h100"))


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_the_chosen_shape_leaves_room_for_every_replica(replicas: int) -> None:
    found = placed(replicas=replicas)
    places = [place for layout in found.layouts for place in layout.places]
    assert len(found.layouts) == replicas
    assert len(set(places)) == len(places) == replicas * found.shape.gpus


def test_more_replicas_than_there_is_room_for_are_refused() -> None:
    assert problem(replicas=5).startswith("models[0].replicas: 5 is not accepted; ")


def test_a_long_context_needs_a_larger_shape() -> None:
    short, long = (placed(max_model_len=length).shape for length in (2048, 131072))
    assert short.gpus <= long.gpus
    assert "tp2" not in str(placed(on="1x dgx-h100", max_model_len=131072).shape)


def test_a_model_that_no_shape_holds_says_what_is_missing() -> None:
    line = problem(name=DEEPSEEK_V3)
    assert line.startswith(f"models[0].shape: 'auto' is not accepted; {DEEPSEEK_V3} does not fit: ")
    assert "GiB weights" in line


def test_on_unknown_gpus_the_smallest_shape_is_chosen() -> None:
    found = placed(on=unknown_gpus(80))
    assert str(found.shape) == "tp2"
    assert found.notes[0].startswith(f"models[0].shape: tp2 is the smallest shape that holds {LLAMA_70B}")


def test_one_unknown_gpu_among_known_ones_is_enough_not_to_predict() -> None:
    known = cluster("1x dgx-h100").nodes
    found = placed(on=Cluster(nodes=(*known, *unknown_gpus(80).nodes)))
    assert "smallest shape that holds" in found.notes[0]


# --- given shapes ----------------------------------------------------------------------------------------------------


def test_a_given_shape_stays() -> None:
    found = placed("tp4pp2")
    assert (str(found.shape), found.notes) == ("tp4pp2", ())


def test_a_given_shape_that_is_too_small_says_what_each_part_takes_and_what_would_fit() -> None:
    line = problem("tp1")
    assert "'tp1' is not accepted; on a GPU it takes 131.4 GiB of weights, " in line
    assert "for one request of 8192 tokens" in line
    assert line.endswith("give tp2")


def test_a_shape_that_the_model_cannot_be_cut_into() -> None:
    with pytest.raises(ConfigError, match="tp3 does not divide the 64 attention heads"):
        parse_shape(SECTION, "tp3", model())
    with pytest.raises(ConfigError, match="Or give 'auto'"):
        parse_shape(SECTION, "banana", model())
    assert parse_shape(SECTION, "auto", model()) is None


def test_a_group_wider_than_an_island_is_refused() -> None:
    islands = read_cluster({"gpu": "h100_sxm", "gpus_per_machine": 2, "machines": 4})
    line = problem("tp4", on=islands)
    assert "4 free GPUs" in line
    assert "in one island" in line
    assert placed("tp2pp2", on=islands).shape == Shape(tp=2, pp=2)


@pytest.mark.parametrize(
    ("engine", "element_bytes"),
    [({}, 4), ({"dtype": "bfloat16"}, 2), ({"kv_cache_dtype": "fp8"}, 1), ({"kv_cache_dtype": "bfloat16"}, 2)],
    ids=["as it is stored", "as it runs", "fp8", "given"],
)
def test_the_smallest_cache_that_is_accepted_holds_one_request_of_a_simulated_engine_too(
    engine: dict[str, Any], element_bytes: int
) -> None:
    shape, engine = Shape(tp=2), {"max_model_len": 2048, **engine}
    least_bytes = 2048 * element_bytes * 2 * 32 * 4  # keys and values of one KV head of 32 elements in 4 layers
    assert problems(shape="tp2", engine=engine | {"kv_cache_memory_bytes": least_bytes - 1})
    spec = checked_model(shape="tp2", engine=engine | {"kv_cache_memory_bytes": least_bytes}).spec
    assert spec is not None
    limits = limits_of(spec, shape, "h100_sxm", engine | {"kv_cache_memory_bytes": least_bytes})
    assert limits.kv_blocks * limits.block_tokens == 2048


# --- beside other models ---------------------------------------------------------------------------------------------


def placed_beside(other: str, shape: str = "auto", on: str = "1x dgx-h100", replicas: int = 1) -> Placed:
    """A model on a cluster of which another one has a replica of the shape `other`."""
    config = ModelConfig(source=LLAMA_70B, shape=shape, replicas=replicas, engine=LENGTH)
    held = {"other": placed(other, on).layouts}
    return place_replicas(SECTION, config, parse_shape(SECTION, shape, model()), model(), cluster(on), held)


@pytest.mark.parametrize("shape", ["auto", "tp2", "tp2pp2"])
def test_nothing_is_placed_where_another_model_is(shape: str) -> None:
    others = placed("tp4").layouts[0].places
    mine = placed_beside("tp4", shape).layouts[0].places
    assert mine
    assert not mine & others


def test_the_planner_chooses_a_shape_that_fits_beside_the_others() -> None:
    assert placed_beside("tp4", replicas=2).shape == Shape(tp=2)
    with pytest.raises(ConfigError, match=r"GPUs left: 0 of 8; other holds 8"):
        placed_beside("tp8")


def test_what_is_too_big_for_any_gpu_is_not_blamed_on_the_others() -> None:
    with pytest.raises(ConfigError) as caught:
        placed_beside("tp4", "tp1")
    assert "GPUs left" not in str(caught.value)


# --- what is not known -----------------------------------------------------------------------------------------------


def test_without_the_model_only_a_given_shape_is_placed() -> None:
    config = ModelConfig(source="acme/unknown", shape="tp4")
    found = place_replicas(SECTION, config, Shape(tp=4), None, cluster("1x dgx-h100"))
    assert found.notes == ("memory: the size of acme/unknown is not known",)
    with pytest.raises(ConfigError, match=r"the config\.json of acme/unknown is not on this machine"):
        place_replicas(SECTION, config, None, None, cluster("1x dgx-h100"))


def test_what_an_engine_argument_saves_is_not_guessed() -> None:
    found = placed("tp1", quantization="fp8")
    assert found.notes == ("memory: what models[0].engine.quantization saves is not known",)


@pytest.mark.parametrize(("size", "fits"), [(2**30, True), (2**20, False), (70 * 2**30, False)])
def test_a_given_kv_cache_must_hold_one_request_and_leave_room_for_the_weights(size: int, fits: bool) -> None:
    if fits:
        assert placed("tp8", kv_cache_memory_bytes=size).shape == Shape(tp=8)
    else:
        assert problem("tp8", kv_cache_memory_bytes=size).startswith("models[0].engine.kv_cache_memory_bytes: ")


# --- what may be asked for later -------------------------------------------------------------------------------------


def known_gpus(*memory_gib: float, gpus: int = 8) -> Cluster:
    """An island for each size of GPU memory, in that order."""
    return Cluster(
        nodes=tuple(
            Node(name=f"n{i}", island=f"i{i}", gpus=gpus, gpu=Gpu(name=f"gpu-{gib}", memory_bytes=int(gib * 2**30)))
            for i, gib in enumerate(memory_gib)
        )
    )


def holding(on: Cluster, name: str = LLAMA_70B, **engine: Any) -> dict[str, int]:
    config = ModelConfig(source=name, engine=LENGTH | engine)
    return {str(shape): need for shape, need in shapes_that_hold(config, model(name), on).items()}


@pytest.mark.parametrize(
    ("on", "holds", "too_small"),
    [
        (known_gpus(80), {"tp2", "tp4", "tp8", "tp2pp4", "pp8"}, {"tp1", "tp16", "tp8pp2"}),
        (known_gpus(80, 80), {"tp2", "tp8pp2", "pp16"}, {"tp1", "tp16"}),  # no group leaves its island
        (known_gpus(180), {"tp1", "tp2"}, set()),
        (known_gpus(80, gpus=1), set(), {"tp1"}),
        (Cluster(nodes=()), set(), {"tp1"}),
    ],
    ids=["one island", "two islands", "large GPUs", "one small GPU", "no GPU"],
)
def test_the_shapes_that_hold_a_model_are_those_with_enough_memory_and_gpus(
    on: Cluster, holds: set[str], too_small: set[str]
) -> None:
    found = holding(on).keys()
    assert holds <= found
    assert not too_small & found
    assert holds or not found


def test_a_shape_that_needs_the_larger_gpus_says_how_large() -> None:
    found = holding(known_gpus(80, 180))
    assert found["tp2"] == 0  # any GPU of this cluster will do
    assert found["tp1"] == 180 * 2**30


def test_a_longer_context_leaves_fewer_shapes() -> None:
    long = holding(known_gpus(80), max_model_len=131072).keys()
    assert long < holding(known_gpus(80)).keys()


def test_every_shape_that_holds_a_model_can_be_placed() -> None:
    on = known_gpus(80, 80)
    for shape in holding(on):
        assert str(placed(shape, on).shape) == shape
