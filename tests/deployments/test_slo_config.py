"""What clients are promised: of all models in `telemetry`, of one in its `slo`, as in the autoscaler's settings."""

from typing import Any

import pytest
import yaml
from check_builders import checked_models
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.settings.settings import ModelSettings
from deployments.cli import parser
from deployments.config import Config, parse_config
from deployments.config_messages import ConfigError
from deployments.configured_model import fleet_plan
from loadtests.scenario import Slo as LoadSlo
from placement.quantities import percentile as share


def parsed(slo: Any, **sections: Any) -> Config:
    return parse_config(yaml.safe_dump({"models": [{"source": "tiny-llama", "slo": slo}], **sections}))


def promised(slo: Any, **telemetry: Any) -> tuple[float, float, float]:
    """What the one model of a configuration promises."""
    config = parsed(slo, telemetry=telemetry)
    found = config.telemetry.promising(config.model.slo)
    return found.ttft_s, found.tpot_s, found.percentile


@pytest.mark.parametrize(
    ("slo", "telemetry", "wanted"),
    [
        (None, {}, (2.0, 0.05, 0.99)),
        (None, {"ttft_s": 9.0, "tpot_s": 1.0, "percentile": "p90"}, (9.0, 1.0, 0.9)),
        ({"ttft": "500ms"}, {}, (0.5, 0.05, 0.99)),
        ({"tpot": "40ms"}, {"ttft_s": 9.0}, (9.0, 0.04, 0.99)),
        ({"ttft": "2min", "tpot": "1s", "percentile": "p95"}, {"percentile": 0.9}, (120.0, 1.0, 0.95)),
        ({"percentile": "99.9%"}, {}, (2.0, 0.05, 0.999)),
    ],
)
def test_a_model_keeps_its_own_promise_and_what_it_leaves_out_is_that_of_all(
    slo: Any, telemetry: dict[str, Any], wanted: tuple[float, float, float]
) -> None:
    assert promised(slo, **telemetry) == wanted


def test_each_model_of_a_configuration_is_served_with_its_own() -> None:
    found = checked_models(
        {"source": "tiny-llama", "slo": {"ttft": "300ms", "percentile": "p95"}},
        {"source": "tiny-moe"},
        telemetry={"tpot_s": 0.2, "request_log": True},
    )
    first, second = (fleet_plan(found.config, model).telemetry for model in found.models)
    assert (first.ttft_s, first.tpot_s, first.percentile, first.request_log) == (0.3, 0.2, 0.95, True)
    assert (second.ttft_s, second.tpot_s, second.percentile, second.request_log) == (2.0, 0.2, 0.99, True)


@pytest.mark.parametrize(
    ("slo", "problem"),
    [
        ({"ttft": 500}, "models[0].slo.ttft: 500 is not accepted; give a time above 0 with its unit, such as 500ms"),
        ({"ttft": "fast"}, "models[0].slo.ttft: 'fast' is not accepted; give a time above 0 with its unit"),
        ({"tpot": "0ms"}, "models[0].slo.tpot: '0ms' is not accepted; give a time above 0"),
        ({"tpot": "-1s"}, "models[0].slo.tpot: '-1s' is not accepted; give a time above 0"),
        ({"tpot": True}, "models[0].slo.tpot: true is not accepted; give a time above 0"),
        ({"percentile": "p100"}, "models[0].slo.percentile: 'p100' is not accepted; give p50 to p99.9"),
        ({"percentile": "p20"}, "models[0].slo.percentile: 'p20' is not accepted; give p50 to p99.9, or a share"),
        ({"ttft_s": 1.0}, "models[0].slo.ttft_s: unknown name; did you mean ttft?"),
        ({}, "models[0].slo: {} is not accepted; give ttft, tpot, percentile or several of them"),
        ("p99", "models[0].slo: 'p99' is not accepted; give a mapping"),
    ],
)
def test_what_is_wrong_with_a_promise_is_said_in_one_line(slo: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(slo)
    (line,) = refused.value.problems
    assert line.startswith(problem)


latencies = st.floats(1e-4, 1e4).map(lambda value_s: f"{value_s!r}s") | st.integers(1, 10**6).map("{}ms".format)
shares = st.floats(0.5, 0.999) | st.integers(50, 99).map("p{}".format) | st.integers(50, 99).map("{}%".format)
slos = st.dictionaries(st.sampled_from(["ttft", "tpot"]), latencies, min_size=1).flatmap(
    lambda slo: st.just(slo) | shares.map(lambda share: {**slo, "percentile": share})
)


@given(slo=slos)
def test_what_the_autoscaler_takes_is_taken_and_means_the_same(slo: dict[str, Any]) -> None:
    """An operator copies the section from one file to the other."""
    theirs = ModelSettings.model_validate({"model": "m", "source": "s", "slo": slo}).slo
    ttft_s, tpot_s, percentile = promised(slo)
    assert (ttft_s, tpot_s, percentile) == (theirs.ttft or 2.0, theirs.tpot or 0.05, theirs.percentile)


@pytest.mark.parametrize(
    "argv",
    [
        ["simulate", "--trace", "t.csv", "--cluster", "c", "--model", "m", "--policy", "static"],
        ["whatif", "--trace", "t.csv", "--cluster", "c", "--source", "m", "--out", "r.html"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_fleet_is_simulated_and_tested_for_as_many_requests_as_it_is_served_for(argv: list[str]) -> None:
    served = parse_config("models: [{source: tiny-llama}]").telemetry.percentile
    assert share(parser().parse_args(argv).percentile) == served
    assert LoadSlo().percentile / 100 == served


@given(slo=slos)
def test_a_promise_survives_being_written_out(slo: dict[str, Any]) -> None:
    """As `archipelago serve` does with every configuration, before it lays its options over it."""
    config = parsed(slo)
    assert parse_config(yaml.safe_dump(config.model_dump(mode="json"))) == config
