"""What the fleet controller is asked for, from a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from check_builders import checked, checked_models

from deployments.check import Checked
from deployments.config import SimulatedCluster
from deployments.config_messages import ConfigError
from deployments.configured_model import model_records, refuse_clashes
from deployments.controller.records import ModelRecord
from deployments.placing import simulated_cluster
from deployments.reconcile import Limits
from deployments.routing import Limits as AdmissionLimits
from placement import Cluster, Layout, Shape, place

LIMITS = {
    "start_timeout_s": 90.0,
    "drain_timeout_s": 7.0,
    "hold_timeout_s": 11.0,
    "max_queued_requests": 5,
    "max_ttft_s": 3.0,
    "floor": 0.5,
    "step_timeout_s": 13,
}
LLAMA: dict[str, Any] = {"source": "tiny-llama", "shape": "tp2"}
MOE: dict[str, Any] = {"source": "tiny-moe", "shape": "tp1", "port": 8002}
ISLANDS = simulated_cluster(SimulatedCluster(islands=2, gpus_per_island=2))


def records(
    found: Checked, cluster: Cluster = ISLANDS, held: Mapping[str, Sequence[Layout]] | None = None
) -> tuple[ModelRecord, ...]:
    return model_records(found, cluster, held or {})


def record(found: Checked) -> ModelRecord:
    (one,) = records(found)
    return one


def test_every_limit_of_the_configuration_reaches_the_fleet() -> None:
    one = record(checked(shape="tp2", replicas=2, limits=LIMITS))
    assert one.limits == Limits(start_timeout_s=90.0, drain_timeout_s=7.0, floor=0.5)
    assert (one.plan.hold_s, one.plan.drain_timeout_s, one.plan.step_timeout_s) == (11.0, 7.0, 13)
    assert one.plan.admission == AdmissionLimits(max_queued_requests=5, max_ttft_s=3.0)
    assert [(str(pool.shape), pool.replicas) for pool in one.desired.pools] == [("tp2", 2)]


def test_the_shapes_that_may_be_asked_for_include_the_configured_one() -> None:
    found = record(checked(shape="tp2pp2"))
    assert {Shape.parse(text) for text in ("tp1", "tp2", "pp2", "tp2pp2")} <= found.shapes.keys()


def test_without_the_size_of_the_model_no_shape_is_ruled_out() -> None:
    assert record(checked("acme/unknown", shape="tp2")).shapes == {}


# --- several models --------------------------------------------------------------------------------------------------


def test_each_model_has_its_source_its_arguments_and_its_port() -> None:
    first, second = records(checked_models(LLAMA | {"engine": {"max_num_seqs": 7}}, MOE))
    assert [one.plan.port for one in (first, second)] == [8000, 8002]
    assert [one.plan.model for one in (first, second)] == ["tiny-llama", "tiny-moe"]
    assert (first.plan.engine_args["max_num_seqs"], second.plan.engine_args.get("max_num_seqs")) == (7, None)
    assert [str(one.desired.pools[0].shape) for one in (first, second)] == ["tp2", "tp1"]
    assert Shape(tp=2, pp=2) in second.shapes  # it may have the other's GPUs later


def test_on_a_cluster_that_was_discovered_the_second_gets_what_the_first_leaves() -> None:
    found = checked_models(LLAMA | {"replicas": 2}, MOE, cluster={"kind": "ray"})
    with pytest.raises(ConfigError) as caught:
        records(found)
    (line,) = caught.value.problems
    assert line.startswith("models[1].shape: 'tp1' is not accepted; ")
    assert line.endswith("GPUs left: 0 of 4; tiny-llama holds 4")


def test_models_that_are_served_already_keep_their_gpus() -> None:
    other = place(Shape(tp=2), ISLANDS)
    assert isinstance(other, Layout)
    found = checked_models(LLAMA | {"replicas": 2}, cluster={"kind": "ray"})
    with pytest.raises(ConfigError, match="GPUs left: 2 of 4; of-others holds 2"):
        records(found, held={"of-others": [other]})


# --- what is served already ------------------------------------------------------------------------------------------


def clash(wanted: tuple[ModelRecord, ...], served: tuple[ModelRecord, ...]) -> tuple[str, ...]:
    try:
        refuse_clashes(wanted, {one.plan.model: one for one in served})
    except ConfigError as error:
        return error.problems
    return ()


def test_a_model_that_is_served_may_be_asked_for_in_other_numbers_and_with_another_endpoint() -> None:
    served = records(checked_models(LLAMA, MOE))
    changed = MOE | {"port": 9000, "tool_call_parser": "hermes", "slo": {"ttft": "1s"}}
    others: dict[str, Any] = {"limits": {"max_ttft_s": 1.0, "drain_timeout_s": 1.0}, "endpoint": {"ingresses": 2}}
    assert clash(records(checked_models(LLAMA, changed, **others)), served) == ()
    assert clash(records(checked_models(LLAMA, MOE)), served) == ()
    assert clash(records(checked_models(LLAMA | {"shape": "tp1", "replicas": 2}, MOE)), served) == ()
    assert clash(records(checked_models(MOE)), records(checked_models(LLAMA))) == ()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"engine": {"max_num_seqs": 8}}, "engine.max_num_seqs is null there and 8 here"),
        ({"engine": {"max_model_len": 1024}}, "engine.max_model_len is 2048 there and 1024 here"),
        ({"engine": {"max_model_len": 2048, "hf_token": "s3cret"}}, "engine.hf_token"),
        ({"reasoning_parser": "qwen3"}, "engine.reasoning_parser is null there and 'qwen3' here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_is_served_by_another_engine_is_refused_with_what_differs(
    change: dict[str, Any], difference: str
) -> None:
    moe = MOE | {"engine": {"max_model_len": 2048}}
    engine = moe["engine"] | change.get("engine", {})
    (line,) = clash(
        records(checked_models(LLAMA, moe | change | {"engine": engine})), records(checked_models(LLAMA, moe))
    )
    assert line == (
        "models[1].name: 'tiny-moe' is not accepted; it is served already on this cluster, by another engine "
        f"({difference}); stop it first, or give another name"
    )


def test_all_that_differs_is_told_at_once() -> None:
    telemetry = {"otlp_endpoint": "http://collector:4318"}
    changed = checked_models(MOE | {"engine": {"seed": 1}}, limits={"step_timeout_s": 5}, telemetry=telemetry)
    (line,) = clash(records(changed), records(checked_models(MOE)))
    for difference in (
        "engine.seed is null there and 1 here",
        "telemetry.otlp_endpoint is null there and 'http://collector:4318' here",
        "limits.step_timeout_s is 60 there and 5 here",
    ):
        assert difference in line


def test_the_port_of_another_model_of_the_cluster_is_refused() -> None:
    served = records(checked_models(LLAMA, MOE))
    wanted = records(checked_models(LLAMA | {"name": "third", "port": 9000}, LLAMA | {"name": "fourth", "port": 8002}))
    assert clash(wanted, served) == (
        "models[1].port: 8002 is not accepted; tiny-moe is served at it on this cluster; give another one",
    )
