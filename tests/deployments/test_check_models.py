"""Several models in one configuration."""

from typing import Any

import pytest
from check_builders import checked_models, problems_of_models

from deployments.config import parse_config

LLAMA: dict[str, Any] = {"source": "tiny-llama", "shape": "tp2"}
MOE: dict[str, Any] = {"source": "tiny-moe", "shape": "tp2", "port": 8002}


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("models: [{source: x}]", (8000,)),
        ("models: [{source: x}, {source: y}, {source: z}]\nendpoint: {port: 9000}", (9000, 9001, 9002)),
        ("models: [{source: x}, {source: y, port: 80}, {source: z}]\nendpoint: {port: 9000}", (9000, 80, 9002)),
        ("models: [{source: x, port: 80}, {source: y}]\nendpoint: {port: 9000}", (80, 9001)),
    ],
)
def test_each_model_has_a_port(text: str, ports: tuple[int, ...]) -> None:
    assert parse_config(text).ports == ports


def test_a_model_takes_what_those_before_it_leave() -> None:
    first, second = checked_models(LLAMA, MOE).models
    assert [(one.section, one.config.name, one.port) for one in (first, second)] == [
        ("models[0]", "tiny-llama", 8000),
        ("models[1]", "tiny-moe", 8002),
    ]
    places = [[sorted(layout.places) for layout in one.layouts or ()] for one in (first, second)]
    assert places == [[[("node-0", 0), ("node-0", 1)]], [[("node-1", 0), ("node-1", 1)]]]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"replicas": 2},
            {"shape": "tp1"},
            "models[1].shape: 'tp1' is not accepted; tp1 needs 1 free GPU of at least 1.0 GiB; the 2 islands have 0. "
            "Nearest: 1 more free GPU in island-0. GPUs left: 0 of 4; tiny-llama holds 4",
        ),
        (
            {"replicas": 2},
            {"shape": "auto"},
            "models[1].shape: 'auto' is not accepted; tiny-moe needs tp1 or more, and tp1 needs 1 free GPU; the 2 "
            "islands have 0. Nearest: 1 more free GPU in island-0. GPUs left: 0 of 4; tiny-llama holds 4",
        ),
        (
            {"shape": "tp1", "replicas": 3},
            {"shape": "tp2"},
            "models[1].shape: 'tp2' is not accepted; tp2 needs 2 free GPUs of at least 1.0 GiB in one island; the "
            "largest free island has 1 (island-1). Nearest: tp1, or 1 more free GPU in island-1. "
            "GPUs left: 1 of 4; tiny-llama holds 3",
        ),
        (
            {},
            {"shape": "tp1", "replicas": 3},
            "models[1].replicas: 3 is not accepted; 2 fit. For the next one, tp1 needs 1 free GPU of at least 1.0 GiB; "
            "the 2 islands have 0. Nearest: 1 more free GPU in island-0. GPUs left: 2 of 4; tiny-llama holds 2",
        ),
    ],
    ids=["none left", "none left for auto", "none left together", "some replicas fit"],
)
def test_a_model_without_room_says_what_is_left_and_who_has_the_rest(
    first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    assert problems_of_models(LLAMA | first, MOE | second) == [message]


def test_a_third_model_is_told_of_both_others() -> None:
    third = MOE | {"name": "third", "port": 8003}
    (line,) = problems_of_models(LLAMA, MOE, third)
    assert line.startswith("models[2].shape: 'tp2' is not accepted; ")
    assert line.endswith(". GPUs left: 0 of 4; tiny-llama holds 2, tiny-moe holds 2")


def test_a_model_that_is_wrong_holds_nothing_in_the_report_of_the_next() -> None:
    wrong, next_one = problems_of_models(LLAMA | {"shape": "pp5"}, MOE | {"shape": "tp4"})
    assert wrong.startswith("models[0].shape: 'pp5' is not accepted; ")
    assert next_one.startswith("models[1].shape: 'tp4' is not accepted; ")
    assert "GPUs left" not in next_one


def test_what_could_not_be_checked_names_the_model_and_the_cluster_once() -> None:
    unknown = [{"source": f"acme/unknown-{index}", "port": 9000 + index} for index in range(2)]
    assert checked_models(*unknown, cluster={"kind": "ray"}).notes == (
        "models[0].source: acme/unknown-0 is not in the local Hugging Face cache, so it is not checked",
        "models[1].source: acme/unknown-1 is not in the local Hugging Face cache, so it is not checked",
        "cluster: memory and placement are checked when the GPUs are known",
    )
