"""What the fleet controller is asked for, from a configuration."""

from check_builders import checked

from deployments.configured_model import model_record
from deployments.placing import simulated_cluster
from deployments.reconcile import Limits
from deployments.routing import Limits as AdmissionLimits
from placement import Shape

LIMITS = {
    "start_timeout_s": 90.0,
    "drain_timeout_s": 7.0,
    "hold_timeout_s": 11.0,
    "max_queued_requests": 5,
    "max_ttft_s": 3.0,
    "floor": 0.5,
    "step_timeout_s": 13,
}


def test_every_limit_of_the_configuration_reaches_the_fleet() -> None:
    found = checked(shape="tp2", replicas=2, limits=LIMITS)
    record = model_record(found, simulated_cluster(found.config.cluster))  # type: ignore[arg-type]
    assert record.limits == Limits(start_timeout_s=90.0, drain_timeout_s=7.0, floor=0.5)
    plan = record.plan
    assert (plan.hold_s, plan.drain_timeout_s, plan.step_timeout_s) == (11.0, 7.0, 13)
    assert plan.admission == AdmissionLimits(max_queued_requests=5, max_ttft_s=3.0)
    assert [(str(pool.shape), pool.replicas) for pool in record.desired.pools] == [("tp2", 2)]


def test_the_shapes_that_may_be_asked_for_include_the_configured_one() -> None:
    found = checked(shape="tp2pp2")
    record = model_record(found, simulated_cluster(found.config.cluster))  # type: ignore[arg-type]
    assert {Shape.parse(text) for text in ("tp1", "tp2", "pp2", "tp2pp2")} <= record.shapes.keys()


def test_without_the_size_of_the_model_no_shape_is_ruled_out() -> None:
    found = checked("acme/unknown", shape="tp2")
    assert model_record(found, simulated_cluster(found.config.cluster)).shapes == {}  # type: ignore[arg-type]
