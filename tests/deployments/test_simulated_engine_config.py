from typing import Any

import pytest
from check_builders import checked, problems

from deployments.check import check
from deployments.config import parse_config
from deployments.config_messages import ConfigError
from placement.clusters.machines import gpu_kinds

H100 = {"gpu": "h100_sxm"}


def test_a_simulated_engine_is_announced_as_what_it_is() -> None:
    notes = checked(simulated={"gpu": "h100_sxm", "time_scale": 10.0}).notes
    assert any("models[0].simulated: no model runs; tokens are invented" in note for note in notes)
    assert any("for h100_sxm, divided by 10" in note for note in notes)
    assert not any("models[0].simulated" in note for note in checked().notes)


def test_an_unknown_gpu_is_answered_with_the_names_that_are_known() -> None:
    (line,) = problems(simulated={"gpu": "h1000"})
    assert line == f"models[0].simulated.gpu: 'h1000' is not accepted; give one of {', '.join(sorted(gpu_kinds()))}"


def test_a_gpu_may_be_called_what_its_driver_calls_it() -> None:
    assert checked(simulated={"gpu": "NVIDIA H100 80GB HBM3"})


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({}, "models[0].simulated.gpu: missing"),
        ({"gpu": "h100_sxm", "time_scale": 0}, "models[0].simulated.time_scale: 0 is not accepted"),
        ({"gpu": "h100_sxm", "mean_answer_tokens": 0.5}, "models[0].simulated.mean_answer_tokens: 0.5 is not accepted"),
        ({"gpu": "h100_sxm", "speed": 2}, "models[0].simulated.speed: unknown name"),
        (7, "models[0].simulated: 7 is not accepted"),
    ],
)
def test_a_mistake_in_the_section_names_its_field(section: Any, line: str) -> None:
    (found,) = problems(simulated=section)
    assert found.startswith(line)


def test_a_kv_cache_too_small_for_one_request_is_found_before_anything_starts() -> None:
    engine = {"max_model_len": 2048, "block_size": 16, "num_gpu_blocks_override": 100}
    (line,) = problems(simulated=H100, shape="tp2", engine=engine)
    assert line == (
        "models[0].simulated: tp2 on h100_sxm: the KV cache has room for 1600 tokens, but a request may have 2048; "
        "give a max_model_len of at most 1600, a larger shape or a larger GPU"
    )


def test_only_a_model_that_runs_must_say_how_much_of_this_machine_its_cache_may_take() -> None:
    def check_model(fields: str) -> object:
        config = parse_config(f"models: [{{source: tiny-llama{fields}}}]")
        return check(config, environ={"HOME": "/home/nobody"}, port_is_free=lambda host, port: True)

    with pytest.raises(ConfigError, match="kv_cache_memory_bytes: missing"):
        check_model("")
    assert check_model(", simulated: {gpu: h100_sxm}")
