"""Starts a model's replicas and its ingress on a running Ray cluster, and asks them where they are.

Serve applications come and go one by one: Serve restarts every deployment of an application when one argument changes
and has one list of label selectors for all replicas of a deployment, while each replica sits on islands of its own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve import RunTarget
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from deployments.app import ingress_app, replica_app
from deployments.ingress import REPLICA_DEPLOYMENT
from deployments.islands import Inventory
from deployments.replica import ReplicaPlan, ReplicaReport
from placement import Layout

POLL_S = 0.25
# Serve logs each HTTP request by default; at hundreds of streams that is work on the hot path.
LOGGING = LoggingConfig(enable_access_log=False)


class FleetStartError(Exception):
    """A replica or the ingress did not start; the message holds the cause that Serve reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """One model to be served: its name, its files, where its replicas go and how its engine is set."""

    model: str
    source: str
    layouts: tuple[Layout, ...]
    engine_args: Mapping[str, Any]
    frontend_args: Mapping[str, Any]
    host: str
    port: int
    ingresses: int
    start_timeout_s: float
    drain_timeout_s: float
    step_timeout_s: int

    @property
    def replica_names(self) -> tuple[str, ...]:
        """One Serve application each; the shape is part of the name."""
        return tuple(f"{self._slug}--{layout.shape}--{index}" for index, layout in enumerate(self.layouts))

    @property
    def ingress_name(self) -> str:
        """The Serve application that answers HTTP."""
        return f"{self._slug}--ingress"

    @property
    def _slug(self) -> str:
        return self.model.replace("/", "-")


def deploy(plan: FleetPlan, inventory: Inventory) -> None:
    """Ask Serve for the ingress and all replicas at once; returns before they are ready."""
    serve.start(proxy_location="HeadOnly", http_options={"host": plan.host, "port": plan.port})
    env = {
        # EngineCore is a Ray driver of its own and would otherwise look for whichever cluster was started last.
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(plan.step_timeout_s),
    }
    node_names = {ray_id: name for name, ray_id in inventory.ray_node_ids.items()}
    ingress = ingress_app(plan.source, plan.engine_args, plan.frontend_args, plan.replica_names, env, plan.ingresses)
    targets = [RunTarget(ingress, name=plan.ingress_name, route_prefix="/", logging_config=LOGGING)]
    for name, layout in zip(plan.replica_names, plan.layouts, strict=True):
        replica = ReplicaPlan(
            name=name, model=plan.source, layout=layout, engine_args=plan.engine_args, node_names=node_names
        )
        app = replica_app(replica, inventory.selectors, env, plan.drain_timeout_s)
        targets.append(RunTarget(app, name=name, route_prefix=None, logging_config=LOGGING))
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def wait_until_running(plan: FleetPlan, on_change: Callable[[str, str], None]) -> None:
    """Wait for every application; ``on_change(application, state)`` tells of each change on the way.

    Raises:
        FleetStartError: one failed, or ``start_timeout_s`` passed.
    """
    names = (plan.ingress_name, *plan.replica_names)
    deadline_s = time.monotonic() + plan.start_timeout_s
    seen: dict[str, ApplicationStatus] = {}
    while any(seen.get(name) != ApplicationStatus.RUNNING for name in names):
        applications = serve.status().applications
        for name in names:
            overview = applications.get(name)
            if overview is not None and overview.status != seen.get(name):
                seen[name] = overview.status
                on_change(name, overview.status.value.lower())
                if overview.status == ApplicationStatus.DEPLOY_FAILED:
                    raise FleetStartError(f"{name} did not start: {cause_of(overview)}")
        if time.monotonic() > deadline_s:
            waiting = ", ".join(name for name in names if seen.get(name) != ApplicationStatus.RUNNING)
            raise FleetStartError(f"{waiting}: not ready after limits.start_timeout_s = {plan.start_timeout_s:g} s")
        time.sleep(POLL_S)


def cause_of(overview: ApplicationStatusOverview) -> str:
    """The exception behind a failed application: the last paragraph of the traceback that Serve keeps."""
    text = "\n".join(deployment.message for deployment in overview.deployments.values()) or overview.message
    lines = text.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line and not line[0].isspace() and ": " in line]
    return "\n".join(lines[starts[-1] :]) if starts else text


def reports(replica_names: Sequence[str]) -> dict[str, ReplicaReport | str]:
    """Ask every replica where it is; for one that does not run, the state Serve gives it instead."""
    applications = serve.status().applications
    answers: dict[str, ReplicaReport | str] = {}
    for name in replica_names:
        overview = applications.get(name)
        if overview is None:
            answers[name] = "gone"
        elif overview.status != ApplicationStatus.RUNNING:
            answers[name] = overview.status.value.lower()
        else:
            answers[name] = serve.get_deployment_handle(REPLICA_DEPLOYMENT, name).report.remote().result()
    return answers


def delete(application_names: Sequence[str], drain_timeout_s: float) -> None:
    """Drain the replicas, then delete the applications; those of others stay."""
    running = serve.status().applications
    ours = [name for name in application_names if name in running]
    drains = [
        serve.get_deployment_handle(REPLICA_DEPLOYMENT, name).drain.remote(drain_timeout_s)
        for name in ours
        if REPLICA_DEPLOYMENT in running[name].deployments and running[name].status == ApplicationStatus.RUNNING
    ]
    for drain in drains:
        drain.result()
    for name in ours:
        serve.delete(name)
    if not set(running) - set(ours):
        serve.shutdown()  # type: ignore[no-untyped-call]
