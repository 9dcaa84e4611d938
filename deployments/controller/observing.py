"""What is there now: nodes, Serve applications, replicas."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from deployments import fleet
from deployments.controller.records import Intent, ReplicaRecord
from deployments.gpu_memory import gpu_memory_bytes
from deployments.islands import Inventory, NoGpusError, inventory
from deployments.reconcile import Phase, ReplicaState
from deployments.replica import ReplicaReport
from placement import Cluster

ASK_TIMEOUT_S = 3.0
NOTHING = Inventory(cluster=Cluster(nodes=()), selectors={}, ray_node_ids={})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What was found. ``leaving``: names of nodes that Ray is draining. ``reports``: of replicas that answered."""

    where: Inventory = NOTHING
    leaving: frozenset[str] = frozenset()
    applications: Mapping[str, ApplicationStatusOverview] = field(default_factory=dict)
    seated: frozenset[str] = frozenset()
    reports: Mapping[str, ReplicaReport] = field(default_factory=dict)


class Observer:
    """Asks Ray, Serve and the replicas. Keeps the memory of nodes' GPUs, which cannot change, and last answers."""

    def __init__(self, gpu_memory: int | None) -> None:
        self._given_bytes = gpu_memory
        self._memory_bytes: dict[str, int] = {}
        self._reports: dict[str, ReplicaReport] = {}

    async def look(self, replicas: Mapping[str, ReplicaRecord]) -> World:
        """See everything once."""
        where, leaving = await asyncio.to_thread(self._hardware)
        applications = await asyncio.to_thread(fleet.applications)
        seated = await asyncio.to_thread(fleet.seated_applications)
        running = [name for name in replicas if fleet.is_running(applications.get(name))]
        answers = await asyncio.gather(*map(_ask, running))
        # A replica that is too busy to answer serves all the same: its last answer stands while Serve says it is well.
        known = {name: self._reports[name] for name in running if name in self._reports}
        self._reports = known | {name: answer for name, answer in zip(running, answers, strict=True) if answer}
        return World(
            where=where, leaving=leaving, applications=applications, seated=seated, reports=self._reports.copy()
        )

    def _hardware(self) -> tuple[Inventory, frozenset[str]]:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        unknown = [node for node in nodes if node["Alive"] and node["NodeID"] not in self._memory_bytes]
        if self._given_bytes is not None:
            self._memory_bytes.update({node["NodeID"]: self._given_bytes for node in unknown})
        elif unknown:
            self._memory_bytes.update(gpu_memory_bytes(unknown))
        try:
            where = inventory(nodes, self._memory_bytes)
        except NoGpusError:
            return NOTHING, frozenset()
        draining = set(ray_state.get_draining_nodes())
        return where, frozenset(name for name, node_id in where.ray_node_ids.items() if node_id in draining)


async def _ask(name: str) -> ReplicaReport | None:
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await fleet.report_of(name)
    except (RayError, RayServeException, TimeoutError) as error:
        log.warning("replica %s does not answer: %r", name, error)
        return None


def state_of(record: ReplicaRecord, world: World) -> ReplicaState:
    """What a replica that was begun is now."""
    report = world.reports.get(record.name)
    phase, cause = _phase(record, world)
    return ReplicaState(
        name=record.name,
        model=record.model,
        layout=record.layout,
        phase=phase,
        since_s=record.since_s,
        unfinished_requests=report.unfinished_requests if report else 0,
        cause=cause,
    )


def _phase(record: ReplicaRecord, world: World) -> tuple[Phase, str]:
    if record.intent is Intent.STOP:
        return Phase.STOPPING, ""
    overview = world.applications.get(record.name)
    if overview is None or fleet.is_going(overview):
        return Phase.FAILED, "Serve has no application of it any more"
    if fleet.has_failed(overview):
        return Phase.FAILED, fleet.cause_of(overview)
    if record.intent is Intent.DRAIN:
        return Phase.DRAINING, ""
    if record.intent is Intent.MOVE:
        return Phase.MOVING, ""
    if record.name in world.reports:
        return Phase.SERVING, ""
    return Phase.STARTING, fleet.waits_for(overview)


def is_gone(record: ReplicaRecord, world: World) -> bool:
    """Whether nothing is left of a replica that was stopped: its GPUs are free."""
    return record.name not in world.applications and record.name not in world.seated
