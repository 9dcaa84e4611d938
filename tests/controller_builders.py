"""Ray Serve and Ray's key-value store in memory, and the controller's reconciler over them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deployment_builders import report_of
from placement_builders import cluster_of
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview
from reconcile_builders import pools_of

from deployments import fleet
from deployments.app import INGRESS_DEPLOYMENT, REPLICA_DEPLOYMENT
from deployments.controller.observing import Observer, World
from deployments.controller.records import Intent, ModelRecord, ReplicaRecord
from deployments.fleet import FleetPlan
from deployments.islands import Inventory
from deployments.reconcile import Desired, Leaving, Limits
from deployments.replica import ReplicaReport
from deployments.routing import Limits as AdmissionLimits
from placement import Cluster, Layout, Shape

MODEL = "acme/tiny"
START_S, DRAIN_S, DELETE_S, FREE_S = 5.0, 3.0, 2.0, 3.0
SHAPES = {Shape.parse(text): 0 for text in ("tp1", "tp2", "pp2", "tp2pp2")}


class Crash(BaseException):
    """The controller's process ends here."""


def plan(model: str = MODEL, **changes: Any) -> FleetPlan:
    fields: dict[str, Any] = {
        "model": model,
        "source": "/models/tiny",
        "engine_args": {},
        "frontend_args": {},
        "host": "127.0.0.1",
        "port": 8000,
        "ingresses": 1,
        "drain_timeout_s": 30.0,
        "step_timeout_s": 60.0,
        "hold_s": 300.0,
        "admission": AdmissionLimits(max_queued_requests=256, max_ttft_s=30.0),
    }
    return FleetPlan(**fields | changes)


def model_record(pools: str, model: str = MODEL, *, limits: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """A model that is to have `pools`, at version 1."""
    fields: dict[str, Any] = {
        "plan": plan(model),
        "desired": Desired(model=model, pools=pools_of(pools), reason="configured"),
        "configured_limits": Limits(**{"start_timeout_s": 100.0, "drain_timeout_s": 30.0} | dict(limits or {})),
        "configured": pools_of(pools),
        "shapes": SHAPES,
        "ingress": plan(model).ingress_name(0),
    }
    return ModelRecord(**fields | changes)


def application(
    status: ApplicationStatus, *, message: str = "", kind: str = REPLICA_DEPLOYMENT
) -> ApplicationStatusOverview:
    running = {ReplicaState.RUNNING: int(status == ApplicationStatus.RUNNING)}
    deployment = DeploymentStatusOverview(
        DeploymentStatus.UPDATING, DeploymentStatusTrigger.UNSPECIFIED, running, message
    )
    return ApplicationStatusOverview(status, message, 0.0, {kind: deployment})


@dataclass(slots=True, kw_only=True)
class Application:
    """What Serve has of one application; its GPUs stay taken for a moment after it has gone."""

    seats: frozenset[tuple[str, int]]
    layout: Layout | None
    started_s: float
    deleted_s: float | None = None
    died_s: float | None = None

    def die(self, now_s: float) -> None:
        """Its process ends; Serve starts another, for which all its nodes must be there."""
        self.died_s = now_s

    def overview(self, now_s: float, is_doomed: bool, is_recovering: bool) -> ApplicationStatusOverview | None:
        kind = REPLICA_DEPLOYMENT if self.layout else INGRESS_DEPLOYMENT
        if self.deleted_s is not None:
            is_there = now_s < self.deleted_s + DELETE_S
            return application(ApplicationStatus.DELETING, kind=kind) if is_there else None
        if is_recovering or (self.layout and now_s < self.started_s + START_S):
            return application(ApplicationStatus.DEPLOYING, kind=kind)
        if self.died_s is not None and now_s < self.died_s + START_S:
            return application(ApplicationStatus.UNHEALTHY, kind=kind)
        if is_doomed:
            return application(ApplicationStatus.DEPLOY_FAILED, message="Traceback:\n  x\nRuntimeError: out of memory")
        return application(ApplicationStatus.RUNNING, kind=kind)


@dataclass(slots=True)
class MemoryServe:
    """Stands for `deployments.fleet`, the hardware and Ray's key-value store; time goes on by `tick` alone.

    `crash_before` counts the calls that change anything: before that one the controller dies, once. While it `recovers`
    it says of everything that it is being deployed, as a Serve controller does that was started again. Replicas in
    `silent` do not answer.
    """

    cluster: Cluster = field(default_factory=lambda: cluster_of(2, 2))
    leaving: Leaving = field(default_factory=dict)
    doomed: Callable[[str], bool] = lambda name: False
    now_s: float = 1000.0
    crash_before: int | None = None
    calls: int = 0
    values: dict[bytes, bytes] = field(default_factory=dict)
    apps: dict[str, Application] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    refuses: Callable[[str], bool] = lambda name: False  # to start what is named so
    recovers: bool = False
    silent: Callable[[str], bool] = lambda name: False

    is_ours = staticmethod(fleet.is_ours)
    is_going = staticmethod(fleet.is_going)
    is_running = staticmethod(fleet.is_running)
    has_failed = staticmethod(fleet.has_failed)
    cause_of = staticmethod(fleet.cause_of)
    waits_for = staticmethod(fleet.waits_for)

    def tick(self, seconds: float = 1.0) -> None:
        self.now_s += seconds

    def _count(self) -> None:
        if self.calls == self.crash_before:
            self.crash_before = None
            raise Crash
        self.calls += 1

    # --- deployments.fleet ---

    def start_serve(self) -> None:
        pass

    def start_replica(self, plan: FleetPlan, name: str, layout: Layout, where: Inventory, secret: str) -> None:
        self._count()
        if self.refuses(name):
            raise ConnectionError("Serve's controller is being restarted")
        assert self._status(name) is None, f"{name} is there already"
        taken = {seat for app in self._seated().values() for seat in app.seats}
        assert not taken & layout.places, f"{name} would share GPUs"
        assert {seat.node for seat in layout.seats} <= where.selectors.keys()
        self.apps[name] = Application(seats=layout.places, layout=layout, started_s=self.now_s)
        self.requests[name] = 1
        self.started.append(name)

    def start_ingress(self, plan: FleetPlan, name: str, secret: str) -> None:
        self._count()
        assert self._status(name) is None
        self.apps[name] = Application(seats=frozenset(), layout=None, started_s=self.now_s)

    def delete(self, name: str) -> None:
        self._count()
        if self.apps[name].deleted_s is None:
            self.apps[name].deleted_s = self.now_s

    def applications(self) -> dict[str, ApplicationStatusOverview]:
        return {name: status for name in self.apps if (status := self._status(name)) is not None}

    def _status(self, name: str) -> ApplicationStatusOverview | None:
        app = self.apps.get(name)
        if app and app.layout and not {seat.node for seat in app.layout.seats} <= {n.name for n in self.cluster.nodes}:
            app.die(self.now_s)
        return app.overview(self.now_s, self.doomed(name), self.recovers) if app else None

    def _seated(self) -> dict[str, Application]:
        def holds(app: Application) -> bool:
            return app.deleted_s is None or self.now_s < app.deleted_s + FREE_S

        return {name: app for name, app in self.apps.items() if app.layout and holds(app)}

    def seated_applications(self) -> frozenset[str]:
        return frozenset(self._seated())

    async def report_of(self, name: str) -> ReplicaReport:
        layout = self.apps[name].layout
        alive = {node.name for node in self.cluster.nodes}
        if layout is None or self.silent(name) or not {seat.node for seat in layout.seats} <= alive:
            raise TimeoutError
        return replace(report_of(layout), unfinished_requests=self.requests[name])

    # --- the hardware ---

    def hardware(self) -> tuple[Inventory, Leaving]:
        selectors: dict[str, dict[str, str]] = {node.name: {} for node in self.cluster.nodes}
        return Inventory(cluster=self.cluster, selectors=selectors, ray_node_ids={}), self.leaving

    # --- the replicas ---

    def work(self, replicas: Mapping[str, ReplicaRecord]) -> None:
        """What has been drained long enough, or is to be moved, has no requests any more."""
        for name, record in replicas.items():
            is_drained = record.intent is Intent.DRAIN and self.now_s >= record.since_s + DRAIN_S
            if is_drained or record.intent is Intent.MOVE:
                self.requests[name] = 0

    # --- ray.experimental.internal_kv ---

    def _internal_kv_put(self, key: str, value: bytes, *, overwrite: bool, namespace: bytes) -> None:
        self._count()
        self.values[key.encode()] = value

    def _internal_kv_get(self, key: bytes, *, namespace: bytes) -> bytes | None:
        return self.values.get(key)

    def _internal_kv_list(self, prefix: str, *, namespace: bytes) -> list[bytes]:
        return [key for key in self.values if key.startswith(prefix.encode())]

    def _internal_kv_del(self, key: str | bytes, *, del_by_prefix: bool = False, namespace: bytes) -> None:
        self._count()
        prefix = key.encode() if isinstance(key, str) else key
        for known in [
            known for known in self.values if known == prefix or (del_by_prefix and known.startswith(prefix))
        ]:
            del self.values[known]

    # --- what there is, for assertions ---

    def serving(self) -> dict[str, int]:
        """Shape -> replicas whose applications run."""
        counts: dict[str, int] = {}
        for name, status in self.applications().items():
            app = self.apps[name]
            if fleet.is_running(status) and app.layout:
                counts[str(app.layout.shape)] = counts.get(str(app.layout.shape), 0) + 1
        return counts


class MemoryObserver(Observer):
    """The real one over a Serve in memory, whose replicas work between two looks."""

    def __init__(self, serve: MemoryServe) -> None:
        super().__init__(serve.hardware, now=lambda: serve.now_s)
        self._serve = serve

    async def look(self, replicas: Mapping[str, ReplicaRecord]) -> World:
        self._serve.work(replicas)
        return await super().look(replicas)


def without(cluster: Cluster, names: Iterable[str]) -> Cluster:
    """The cluster when nodes have gone."""
    return Cluster(nodes=tuple(node for node in cluster.nodes if node.name not in names))
