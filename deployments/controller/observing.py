"""What is there now: nodes, Serve applications, replicas."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from deployments import fleet
from deployments.controller.hardware import NOTHING
from deployments.controller.records import Intent, ReplicaRecord
from deployments.islands import Inventory
from deployments.reconcile import Leaving, Phase, ReplicaState
from deployments.replica import ReplicaReport

ASK_TIMEOUT_S = 3.0
# A Serve controller that was started again says DEPLOYING of everything until it has looked at each replica
# (ray/serve/_private/application_state.py, `_status`). For so long that is no news of a replica that served.
SERVE_RECOVERY_S = 30.0

Look = Callable[[], tuple[Inventory, Leaving]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What was found. ``leaving``: nodes that Ray is draining. ``reports``: of the replicas that serve.

    Those in ``unheard`` have not answered this controller yet: the report is an earlier one's, and tells no load.
    """

    where: Inventory = NOTHING
    leaving: Leaving = field(default_factory=dict)
    applications: Mapping[str, ApplicationStatusOverview] = field(default_factory=dict)
    seated: frozenset[str] = frozenset()
    reports: Mapping[str, ReplicaReport] = field(default_factory=dict)
    unheard: frozenset[str] = frozenset()


class Observer:
    """Asks Ray (by ``hardware``), Serve and the replicas. Keeps their last answers, and when each ran last."""

    def __init__(self, hardware: Look, now: Callable[[], float] = time.monotonic) -> None:
        self._hardware = hardware
        self._now = now
        self._answers: dict[str, ReplicaReport] = {}
        self._ran_s: dict[str, float] = {}

    async def look(self, replicas: Mapping[str, ReplicaRecord]) -> World:
        """See everything once."""
        where, leaving = await asyncio.to_thread(self._hardware)
        applications = await asyncio.to_thread(fleet.applications)
        seated = await asyncio.to_thread(fleet.seated_applications)
        running = [name for name in replicas if fleet.is_running(applications.get(name))]
        answers = await asyncio.gather(*map(_ask, running))
        now_s = self._now()
        self._ran_s = {name: now_s if name in running else self._ran_s.get(name, now_s) for name in replicas}
        well = [name for name in replicas if name in running or self._is_doubted(applications.get(name), name, now_s)]
        # A replica that is too busy to answer serves all the same: its last answer stands while Serve says it is well.
        known = {name: self._answers[name] for name in well if name in self._answers}
        self._answers = known | {name: answer for name, answer in zip(running, answers, strict=True) if answer}
        earlier = {name: replicas[name].report for name in well if name not in self._answers}
        unheard = {name: report for name, report in earlier.items() if report is not None}
        return World(
            where=where,
            leaving=leaving,
            applications=applications,
            seated=seated,
            reports=unheard | self._answers,
            unheard=frozenset(unheard),
        )

    def _is_doubted(self, overview: ApplicationStatusOverview | None, name: str, now_s: float) -> bool:
        """Whether it ran until a moment ago, and a new Serve controller is looking at it."""
        is_deploying = overview is not None and overview.status == ApplicationStatus.DEPLOYING
        return is_deploying and now_s - self._ran_s[name] < SERVE_RECOVERY_S


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
        unfinished_requests=None if record.name in world.unheard else report.unfinished_requests if report else 0,
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
