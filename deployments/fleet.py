"""What the fleet controller does with Ray Serve: start applications, ask after them, delete them.

Serve applications come and go one by one: Serve restarts every deployment of an application when one argument changes
and has one list of label selectors for all replicas of a deployment, while each replica sits on islands of its own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.serve import RunTarget
from ray.serve._private.common import ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig
from ray.util import placement_group_table

from deployments.access.settings import Access
from deployments.app import INGRESS_DEPLOYMENT, REPLICA_DEPLOYMENT, ingress_app, replica_app
from deployments.config import SimulatedEngineConfig
from deployments.ingress import IngressPlan
from deployments.islands import Inventory
from deployments.replica import ReplicaPlan, ReplicaReport
from deployments.routing import Limits
from deployments.telemetry.fields import TelemetryConfig
from placement import Layout, ModelSpec

# Serve logs each HTTP request by default; at hundreds of streams that is work on the hot path.
LOGGING = LoggingConfig(enable_access_log=False)
STEP_MARGIN_S = 5.0
_OUR_NAME = re.compile(r".+--(?P<kind>[a-z0-9]+)--[0-9]+")  # FleetPlan.ingress_name, reconcile.reconciler._starts
_INGRESS = "ingress"  # where a replica has its shape
# Serve's words for a replica that fits on no node now (ray/serve/_private/deployment_state.py:5676).
_NO_ROOM = re.compile(r"Resources required for each replica: (?P<needs>.+?), total resources available:")
REPLICA_ID_PREFIX = "SERVE_REPLICA::"  # ray/serve/_private/common.py, ReplicaID


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """One model to be served: its name, its files, how its engine is set, where clients connect.

    ``hold_s``: how long a request that has lost its replica waits for another one. With ``simulated`` (and then
    ``spec``, the model's sizes) no model runs.
    """

    model: str
    source: str
    engine_args: Mapping[str, Any] = field(repr=False)  # a token of the hub may be among them
    frontend_args: Mapping[str, Any]
    host: str
    port: int
    ingresses: int
    drain_timeout_s: float
    step_timeout_s: float
    hold_s: float
    admission: Limits
    access: Access = field(default_factory=Access)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    simulated: SimulatedEngineConfig | None = None
    spec: ModelSpec | None = None

    @property
    def slug(self) -> str:
        """The model's name as part of the names of Serve applications."""
        return self.model.replace("/", "-")

    def ingress_name(self, index: int) -> str:
        """A Serve application that answers HTTP; ``index`` is its own."""
        return f"{self.slug}--{_INGRESS}--{index}"

    def is_ingress(self, name: str) -> bool:
        """Whether a Serve application answers HTTP for this model, with whatever settings."""
        kept, _, index = name.rpartition("--")
        return kept == f"{self.slug}--{_INGRESS}" and index.isdecimal()


def start_serve() -> None:
    """Have Serve running, without its proxies: the ingresses listen themselves."""
    serve.start(proxy_location="Disabled")


def stop_serve() -> None:
    """End Serve and all its applications."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def ingress_plan(plan: FleetPlan, secret: str) -> IngressPlan:
    """What each ingress of the model is started with."""
    return IngressPlan(
        model=plan.model,
        serve_args={"model": plan.source, **plan.engine_args, **plan.frontend_args},
        host=plan.host,
        port=plan.port,
        ingresses=plan.ingresses,
        secret=secret,
        limits=plan.admission,
        access=plan.access,
        telemetry=plan.telemetry,
    )


def start_ingress(plan: FleetPlan, name: str, secret: str) -> None:
    """Ask Serve for the ingresses of a model; returns before they are ready."""
    _run(name, ingress_app(ingress_plan(plan, secret), _env(plan)))


def start_replica(plan: FleetPlan, name: str, layout: Layout, where: Inventory, secret: str) -> None:
    """Ask Serve for one replica; returns before it is ready."""
    replica = ReplicaPlan(
        name=name,
        model=plan.source,
        layout=layout,
        engine_args=plan.engine_args,
        node_names={ray_id: node for node, ray_id in where.ray_node_ids.items()},
        secret=secret,
        step_timeout_s=plan.step_timeout_s,
        otlp_endpoint=plan.telemetry.otlp_endpoint,
        simulated=plan.simulated,
        spec=plan.spec,
    )
    _run(name, replica_app(replica, where.selectors, _env(plan)))


def _run(name: str, app: serve.Application) -> None:
    target = RunTarget(app, name=name, route_prefix=None, logging_config=LOGGING)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _env(plan: FleetPlan) -> dict[str, str]:
    return {
        # EngineCore is a Ray driver of its own and would otherwise look for whichever cluster was started last.
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        # vLLM's own limit is the second line: the replica notices first.
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(int(plan.step_timeout_s + STEP_MARGIN_S)),
    }


def applications() -> dict[str, ApplicationStatusOverview]:
    """Every Serve application by its name."""
    return dict(serve.status().applications)


async def report_of(name: str, *, fresh: bool = False) -> ReplicaReport:
    """Ask a running replica. Raises whatever Serve raises when it does not answer."""
    handle = serve.get_deployment_handle(REPLICA_DEPLOYMENT, name)
    report: ReplicaReport = await handle.report.remote(fresh=fresh)
    return report


def reports(names: Iterable[str]) -> dict[str, ReplicaReport | str]:
    """Ask every replica where it is now; for one that does not run, the state Serve gives it instead."""
    found = applications()
    answers: dict[str, ReplicaReport | str] = {}
    for name in names:
        overview = found.get(name)
        if overview is None:
            answers[name] = "gone"
        elif is_running(overview):
            answers[name] = serve.get_deployment_handle(REPLICA_DEPLOYMENT, name).report.remote().result()
        else:
            answers[name] = overview.status.value.lower()
    return answers


def delete(name: str) -> None:
    """Have an application deleted; returns before it is gone."""
    serve.delete(name, _blocking=False)


def seated_applications() -> frozenset[str]:
    """Applications whose placement group still holds GPUs: Serve names it after the replica it is for."""
    live = (group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED")
    return frozenset(name.removeprefix(REPLICA_ID_PREFIX).partition("#")[0] for name in live)


def cause_of(overview: ApplicationStatusOverview) -> str:
    """The exception behind a failed application: the last paragraph of the traceback that Serve keeps."""
    text = "\n".join(deployment.message for deployment in overview.deployments.values()) or overview.message
    lines = text.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line and not line[0].isspace() and ": " in line]
    return "\n".join(lines[starts[-1] :]) if starts else text


def waits_for(overview: ApplicationStatusOverview) -> str:
    """Why an application does not even begin to start; empty where it does."""
    found = _NO_ROOM.search(" ".join(deployment.message for deployment in overview.deployments.values()))
    return f"no node has {found['needs']} free for it" if found else ""


def running_processes(overview: ApplicationStatusOverview) -> int:
    """How many replicas, in Serve's sense, of the application's one deployment run."""
    return sum(one.replica_states.get(ReplicaState.RUNNING, 0) for one in overview.deployments.values())


def is_running(overview: ApplicationStatusOverview | None) -> bool:
    """Whether the application has all it asked for."""
    return overview is not None and overview.status == ApplicationStatus.RUNNING


def is_going(overview: ApplicationStatusOverview) -> bool:
    """Whether the application is being deleted."""
    return overview.status == ApplicationStatus.DELETING


def is_ours(name: str, overview: ApplicationStatusOverview) -> bool:
    """Whether an application is a replica or an ingress of a fleet, by its name and by what it holds."""
    found = _OUR_NAME.fullmatch(name)
    kind = INGRESS_DEPLOYMENT if found and found["kind"] == _INGRESS else REPLICA_DEPLOYMENT
    return found is not None and set(overview.deployments) <= {kind}


def has_failed(overview: ApplicationStatusOverview) -> bool:
    """Whether Serve has given the application up."""
    return overview.status == ApplicationStatus.DEPLOY_FAILED
