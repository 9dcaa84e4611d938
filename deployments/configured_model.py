"""From a checked configuration to what the fleet controller is asked for."""

from typing import Any

from deployments.check import Checked
from deployments.controller.records import ModelRecord
from deployments.fleet import FleetPlan
from deployments.placing import place_replicas, shapes_that_hold
from deployments.reconcile import Desired, Limits, Pool
from deployments.routing import Limits as AdmissionLimits
from placement import Cluster, Shape


def model_record(checked: Checked, cluster: Cluster) -> ModelRecord:
    """What the controller is asked for, on the cluster that is there. Raises ConfigError where it does not fit."""
    config, model = checked.config, checked.config.model
    placed = place_replicas(model, checked.shape, checked.model, cluster)
    shapes = shapes_that_hold(model, checked.model, cluster) if checked.model else {}
    limits = Limits(
        start_timeout_s=config.limits.start_timeout_s,
        drain_timeout_s=config.limits.drain_timeout_s,
        floor=config.limits.floor,
    )
    desired = Desired(
        model=model.name,
        pools=(Pool(shape=placed.shape, replicas=model.replicas),),
        reason="configured",
        min_memory_bytes=shapes.get(placed.shape, 0),
    )
    # A shape that was given and placed is one the user may come back to, whatever the planner thinks of it.
    known: dict[Shape, int] = {**shapes, placed.shape: desired.min_memory_bytes} if shapes else {}
    return ModelRecord(plan=fleet_plan(checked), desired=desired, configured_limits=limits, shapes=known)


def fleet_plan(checked: Checked) -> FleetPlan:
    """How the model is served, whatever its shapes."""
    config, model = checked.config, checked.config.model
    # By priority, so that a request that says it can wait does; among equals it is first come, first served.
    engine_args: dict[str, Any] = {"scheduling_policy": "priority", **model.engine, "served_model_name": model.name}
    if model.reasoning_parser is not None:
        engine_args["reasoning_parser"] = model.reasoning_parser
    frontend_args = {
        "chat_template": model.chat_template,
        "tool_call_parser": model.tool_call_parser,
        "enable_auto_tool_choice": model.tool_call_parser is not None,
    }
    return FleetPlan(
        model=model.name,
        source=checked.source.location,
        engine_args=engine_args,
        frontend_args=frontend_args,
        host=config.endpoint.host,
        port=config.endpoint.port,
        ingresses=config.endpoint.ingresses,
        drain_timeout_s=config.limits.drain_timeout_s,
        step_timeout_s=config.limits.step_timeout_s,
        hold_s=config.limits.hold_timeout_s,
        admission=AdmissionLimits(
            max_queued_requests=config.limits.max_queued_requests, max_ttft_s=config.limits.max_ttft_s
        ),
        simulated=model.simulated,
        spec=checked.model if model.simulated else None,
    )
