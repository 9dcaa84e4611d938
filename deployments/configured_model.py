"""From a checked configuration to what the fleet controller is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deployments.access.checking import access_of
from deployments.check import Checked, CheckedModel
from deployments.config import Config
from deployments.config_messages import ConfigError, refused, shown
from deployments.controller.records import ModelRecord
from deployments.fleet import FleetPlan
from deployments.placing import place_replicas, shapes_that_hold
from deployments.predicted_speed import predicted_speeds
from deployments.reconcile import Desired, Limits, Pool
from deployments.routing import Limits as AdmissionLimits
from placement import Cluster, Layout, Shape

_SECRET = "hf_token"  # an argument of vLLM


def model_records(checked: Checked, cluster: Cluster, held: Mapping[str, Sequence[Layout]]) -> tuple[ModelRecord, ...]:
    """What the controller is asked for, on the cluster that is there and of which other models have `held`.

    Each model is placed on what those before it leave. Raises ConfigError where one does not fit.
    """
    records: list[ModelRecord] = []
    taken = dict(held)
    for model in checked.models:
        placed = place_replicas(model.section, model.config, model.shape, model.spec, cluster, taken)
        records.append(_record(checked.config, model, placed.shape, cluster))
        taken[model.config.name] = placed.layouts
    return tuple(records)


def _record(config: Config, checked: CheckedModel, shape: Shape, cluster: Cluster) -> ModelRecord:
    model = checked.config
    shapes = shapes_that_hold(model, checked.spec, cluster) if checked.spec else {}
    limits = Limits(
        start_timeout_s=config.limits.start_timeout_s,
        drain_timeout_s=config.limits.drain_timeout_s,
        floor=config.limits.floor,
    )
    desired = Desired(
        model=model.name,
        pools=(Pool(shape=shape, replicas=model.replicas),),
        reason="configured",
        min_memory_bytes=shapes.get(shape, 0),
    )
    # A shape that was given and placed is one the user may come back to, whatever the planner thinks of it.
    known: dict[Shape, int] = {**shapes, shape: desired.min_memory_bytes} if shapes else {}
    return ModelRecord(
        plan=fleet_plan(config, checked),
        desired=desired,
        configured_limits=limits,
        configured=desired.pools,
        shapes=known,
        speeds=predicted_speeds(model, checked.spec, known, cluster) if checked.spec else {},
    )


def refuse_clashes(wanted: Sequence[ModelRecord], served: Mapping[str, ModelRecord]) -> None:
    """Raise ConfigError for what the `served` models of the cluster stand in the way of.

    The controller keeps the replicas that run, so of a model that is served already its engine must stay as it is.
    """
    problems: list[str] = []
    for index, record in enumerate(wanted):
        plan, known = record.plan, served.get(record.plan.model)
        differences = list(_iter_differences(plan, known.plan)) if known else []
        if differences:
            accepted = f"it is served already on this cluster, by another engine ({'; '.join(differences)})"
            change = "stop it first, or give another name"
            problems.append(refused(f"models[{index}].name", plan.model, f"{accepted}; {change}"))
        for other in served.values():
            if other.plan.model != plan.model and other.plan.port == plan.port:
                accepted = f"{other.plan.model} is served at it on this cluster; give another one"
                problems.append(refused(f"models[{index}].port", plan.port, accepted))
    if problems:
        raise ConfigError(problems)


def _iter_differences(wanted: FleetPlan, served: FleetPlan) -> Iterator[str]:
    new, old = _engine(wanted), _engine(served)
    for name in dict.fromkeys((*new, *old)):
        if new.get(name) != old.get(name):
            is_secret = name.endswith(_SECRET)
            yield name if is_secret else f"{name} is {shown(old.get(name))} there and {shown(new.get(name))} here"


def _engine(plan: FleetPlan) -> dict[str, Any]:
    """What each replica is started with, by the fields of a configuration; null is what vLLM does without the field."""
    return {
        "source": plan.source,
        **{f"engine.{name}": value for name, value in plan.engine_args.items()},
        "simulated": plan.simulated,
        "limits.step_timeout_s": plan.step_timeout_s,
        "telemetry.otlp_endpoint": plan.telemetry.otlp_endpoint,
    }


def fleet_plan(config: Config, checked: CheckedModel) -> FleetPlan:
    """How the model is served, whatever its shapes."""
    model = checked.config
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
        port=checked.port,
        ingresses=config.endpoint.ingresses,
        drain_timeout_s=config.limits.drain_timeout_s,
        step_timeout_s=config.limits.step_timeout_s,
        hold_s=config.limits.hold_timeout_s,
        admission=AdmissionLimits(
            max_queued_requests=config.limits.max_queued_requests, max_ttft_s=config.limits.max_ttft_s
        ),
        access=access_of(config),
        telemetry=config.telemetry.promising(model.slo),
        simulated=model.simulated,
        spec=checked.spec if model.simulated else None,
    )
