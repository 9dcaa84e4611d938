import re
from typing import Any

import pytest
from placement_builders import DEEPSEEK_V3, GIB, LLAMA_8B, LLAMA_70B, MIXTRAL_8X7B, QWEN3_30B_A3B, cluster_of

from placement import (
    Choice,
    Cluster,
    Gpu,
    Infeasible,
    Layout,
    ModelSpec,
    Node,
    Shape,
    choose_shape,
    place,
)

L4 = Gpu(name="L4", memory_bytes=24 * GIB)


def choose(
    config: dict[str, Any],
    cluster: Cluster,
    *,
    context_tokens: int = 4096,
    taken: frozenset[tuple[str, int]] = frozenset(),
) -> Choice | Infeasible:
    model = ModelSpec.from_hf_config(config, name="m")
    return choose_shape(model, cluster, context_tokens=context_tokens, taken=taken)


@pytest.mark.parametrize(
    ("config", "cluster", "shape"),
    [
        pytest.param(LLAMA_8B, cluster_of(8), "tp1", id="one-gpu-is-enough"),
        pytest.param(LLAMA_70B, cluster_of(8), "tp2", id="fewest-gpus"),
        pytest.param(LLAMA_70B, cluster_of(2, 2), "tp2", id="tp-inside-an-island"),
        pytest.param(LLAMA_70B, cluster_of(1, 1), "pp2", id="pp-over-islands-too-small-for-tp"),
        pytest.param(LLAMA_70B, cluster_of((1, 1)), "tp2", id="an-island-of-single-gpu-nodes"),
        pytest.param(LLAMA_70B, cluster_of(8, 8, gpu=L4), "tp8", id="tp-before-pp"),
        pytest.param(LLAMA_70B, cluster_of(2, 2, 2, 2, gpu=L4), "tp2pp4", id="tp-as-wide-as-the-island"),
        pytest.param(LLAMA_8B, cluster_of(4, gpu=L4), "tp1", id="8b-on-an-l4"),
        pytest.param(MIXTRAL_8X7B, cluster_of(8), "tp2ep2", id="whole-experts"),
        pytest.param(QWEN3_30B_A3B, cluster_of(1), "tp1", id="no-ep-on-one-gpu"),
        pytest.param(DEEPSEEK_V3, cluster_of(4, 4, 4), "pp11", id="fewest-gpus-even-in-many-stages"),
    ],
)
def test_the_smallest_shape_that_fits(config: dict[str, Any], cluster: Cluster, shape: str) -> None:
    choice = choose(config, cluster)
    assert isinstance(choice, Choice), choice
    assert str(choice.shape) == shape
    assert choice.memory.fits
    assert isinstance(place(choice.shape, cluster), Layout)


def test_experts_that_cannot_be_kept_whole_are_sliced() -> None:
    choice = choose(MIXTRAL_8X7B | {"num_local_experts": 9}, cluster_of(2))
    assert isinstance(choice, Choice)
    assert choice.shape == Shape(tp=2)


def test_the_reason_has_the_numbers_and_the_refused_shape() -> None:
    choice = choose(LLAMA_70B, cluster_of(1, 1))
    assert isinstance(choice, Choice)
    assert choice.reason == (
        "pp2 is the smallest shape that holds m: pp2 needs 68.3 GiB on the busiest GPU (65.7 GiB weights, 640 MiB KV "
        "cache of 4096 tokens, 1.9 GiB activations), and H100 has 68.8 GiB of 80.0 GiB for them; "
        "before it, tp1 would need 134.6 GiB."
    )


def test_a_shape_without_room_is_passed_over_and_named() -> None:
    choice = choose(LLAMA_70B, cluster_of(2, 1), taken=frozenset({("island-0-node-0", 1)}))
    assert isinstance(choice, Choice)
    assert choice.shape == Shape(pp=2)
    assert choice.reason.endswith(
        "; before it, tp2 needs 2 free GPUs in one island; the largest free island has 1 (island-0)."
    )


def test_among_different_gpus_only_those_that_hold_it_are_used() -> None:
    nodes = (*cluster_of(2).nodes, Node(name="l4", island="a-first-by-name", gpus=1, gpu=L4))
    choice = choose(LLAMA_8B, Cluster(nodes=nodes), context_tokens=131_072)
    assert isinstance(choice, Choice)
    assert choice.shape == Shape()
    layout = place(choice.shape, Cluster(nodes=nodes), min_memory_bytes=choice.min_memory_bytes)
    assert isinstance(layout, Layout)
    assert layout.seats[0].island == "island-0"


@pytest.mark.parametrize(
    ("config", "cluster", "arguments", "parts"),
    [
        pytest.param(
            LLAMA_70B,
            cluster_of(1),
            {},
            [
                "m does not fit: tp1 needs 134.6 GiB",
                "H100 has 68.8 GiB of 80.0 GiB for them",
                "Nearest: pp2 on 2 GPUs like H100",
            ],
            id="weights-too-large",
        ),
        pytest.param(
            LLAMA_70B,
            cluster_of(2),
            {"context_tokens": 131_072},
            ["tp2 needs", "20.0 GiB KV cache of 131072 tokens", "context_tokens of at most 1", "pp3 on 3 GPUs"],
            id="context-too-long",
        ),
        pytest.param(
            LLAMA_8B | {"num_hidden_layers": 1},
            cluster_of(1, gpu=Gpu(name="toy", memory_bytes=GIB)),
            {},
            ["m does not fit", "Nearest: GPUs of 4.0 GiB for tp1"],
            id="no-number-of-gpus-would-do",
        ),
        pytest.param(
            LLAMA_70B,
            cluster_of(2),
            {"taken": frozenset({("island-0-node-0", 0)})},
            [
                "m needs tp2 or more, and tp2 needs 2 free GPUs in one island",
                "the largest free island has 1 (island-0). Nearest: 1 more free GPU in island-0",
            ],
            id="room-taken",
        ),
        pytest.param(
            LLAMA_8B, Cluster(nodes=()), {}, ["m needs at least 1 GPU; the cluster has 0", "1 free GPU"], id="no-gpus"
        ),
    ],
)
def test_infeasible_says_why_and_what_would_work(
    config: dict[str, Any], cluster: Cluster, arguments: dict[str, Any], parts: list[str]
) -> None:
    answer = choose(config, cluster, **arguments)
    assert isinstance(answer, Infeasible)
    assert [part for part in parts if part not in str(answer)] == [], str(answer)


def test_the_context_it_suggests_fits_and_one_token_more_does_not() -> None:
    answer = choose(LLAMA_70B, cluster_of(2), context_tokens=131_072)
    found = re.search(r"context_tokens of at most (\d+) on tp2", str(answer))
    assert found
    tokens = int(found[1])
    assert isinstance(choose(LLAMA_70B, cluster_of(2), context_tokens=tokens), Choice)
    assert isinstance(choose(LLAMA_70B, cluster_of(2), context_tokens=tokens + 1), Infeasible)
