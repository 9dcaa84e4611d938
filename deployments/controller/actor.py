"""The fleet controller as a Ray actor: its life, what ingresses ask it, and the control API's side of it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from deployments import fleet
from deployments.access.keyring import control_verifier
from deployments.access.listening import serve
from deployments.access.settings import EdgeLimits
from deployments.control.api import control_app
from deployments.control.audit import AuditLog
from deployments.control.contract import FleetUnavailableError
from deployments.control.events import EventLog
from deployments.control.gate import known_tokens
from deployments.control.refusals import Refusal
from deployments.control.wire import (
    Accepted,
    AuditEntry,
    EventPage,
    Lease,
    LeaseRequest,
    MetricsTarget,
    Overview,
    PoolsTarget,
)
from deployments.controller.clock import steady_clock
from deployments.controller.hardware import Hardware
from deployments.controller.observing import Observer
from deployments.controller.reconciling import Reconciler
from deployments.controller.records import ModelRecord, Settings, Store
from deployments.controller.targets import Targets
from deployments.ingress import listening_socket
from deployments.membership import IngressReport, Membership
from deployments.stream import SUSPECT_AFTER

SHORTEST_PERIOD_S = 0.2
BUSY_PERIOD_S = 0.5
IDLE_PERIOD_S = 5.0  # what cannot wait, ingresses and users tell at once
LONG_POLL_S = 1.0
REPORT_LIFETIME_S = 10.0
EVENTS_KEPT = 10_000
CONNECTIONS = 1024  # at the control API at a time

log = logging.getLogger(__name__)


class FleetController:
    """All fleets of a cluster. Detached and named; Ray starts it again when it dies, with the same ``settings``."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        self._began_s = time.monotonic()
        events = EventLog(capacity=EVENTS_KEPT, first_number=time.time_ns() // 10**6, now=lambda: datetime.now(UTC))
        self._events = events
        self._settings = settings
        self._store = Store()
        self._heard: dict[str, tuple[float, str, IngressReport]] = {}  # by ingress: when, its model, what it said
        observer = Observer(Hardware(settings.gpu_memory_bytes).look)
        now = steady_clock()
        self._reconciler = Reconciler(
            self._store, observer, events, settings.secret, self._unfinished_requests, self._ingress_reports, now
        )
        self._audit = _audit_log(Path(settings.state_dir))
        self._targets = Targets(self._reconciler, events, self._audit, self._speeds, now)
        self._change = asyncio.Event()
        self._wake = asyncio.Event()
        await asyncio.to_thread(fleet.start_serve)
        app = control_app(self, control_verifier(known_tokens(settings.tokens), settings.keys, time.monotonic))
        listener = listening_socket(settings.host, settings.port)
        events.add("", "controller", "The fleet controller has started.")
        self._tasks = [
            asyncio.create_task(serve(app, [listener], EdgeLimits(max_connections=CONNECTIONS), settings.tls)),
            asyncio.create_task(self._reconcile_for_ever()),
        ]

    async def _reconcile_for_ever(self) -> None:
        while True:
            period_s = BUSY_PERIOD_S
            try:
                period_s = BUSY_PERIOD_S if await self._reconciler.turn() else IDLE_PERIOD_S
            except Exception:  # whatever Ray or Serve could not do now may work in the next turn
                log.exception("a turn of the controller failed")
            self._announce()
            await asyncio.sleep(SHORTEST_PERIOD_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await self._wake.wait()
            self._wake.clear()

    def _announce(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    # --- for the launcher and the ingresses ---

    async def settings(self) -> Settings:
        """What this controller was started with."""
        return self._settings

    async def models(self) -> tuple[str, ...]:
        """Names of the models that are served, or are going."""
        return tuple(self._store.models)

    async def serve(self, record: ModelRecord) -> str:
        """Serve a model, or serve it differently; the Serve application that is to answer its clients."""
        ingress = self._targets.serve(record)
        self._wake.set()
        return ingress

    async def membership(self, model: str, version: int, report: IngressReport) -> Membership:
        """The fleet of a model; waits a moment for one that differs from ``version``."""
        self._tell_of(model, report)
        self._heard[report.ingress] = (time.monotonic(), model, report)
        members = self._reconciler.memberships.get(model, Membership()).members
        if report.connected != {member.replica for member in members}:
            self._wake.set()  # the ingress has lost a replica, and sees it first
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONG_POLL_S):
                while self._membership(model, version).version == version:
                    await self._change.wait()
        return self._membership(model, version)

    def _tell_of(self, model: str, report: IngressReport) -> None:
        """Make events of what an ingress has done since its last report; of the first one nobody knows the age."""
        if report.ingress not in self._heard:
            return
        _, _, before = self._heard[report.ingress]
        for replica, count in report.moved_from.items():
            if (moved := count - before.moved_from.get(replica, 0)) > 0:
                text = f"{moved} of its requests went on to other replicas, or wait for one."
                self._events.add(model, "migration", text, replica=replica)
        for request_id in report.quarantined:
            if request_id not in before.quarantined:
                text = f"Request {request_id!r} is not tried again: {SUSPECT_AFTER + 1} replicas died with it aboard."
                self._events.add(model, "quarantine", text)

    def _membership(self, model: str, version: int) -> Membership:
        return self._reconciler.memberships.get(model) or Membership(version=version)

    async def names(self, model: str) -> tuple[str, ...]:
        """Serve applications of the replicas of a model."""
        return tuple(name for name, record in self._store.replicas.items() if record.model == model)

    async def close(self, model: str, timeout_s: float) -> int:
        """Take no new requests for the model, wait for those there are; return how many are left in the end.

        A controller that is new waits first for the ingresses to tell it of any, however short the timeout.
        """
        self._reconciler.close(model)
        self._announce()
        deadline_s = time.monotonic() + timeout_s
        while (left := self._unfinished_requests(model)) is None or (  # noqa: ASYNC110
            left and time.monotonic() < deadline_s
        ):
            await asyncio.sleep(BUSY_PERIOD_S)  # the ingresses tell whenever they ask for the membership
        return left

    async def remove(self, model: str) -> None:
        """Serve the model no longer."""
        self._targets.remove(model)
        self._wake.set()

    async def forget_everything(self) -> None:
        """Leave no record behind: the last model has gone."""
        self._store.clear()

    def _unfinished_requests(self, model: str) -> int | None:
        """Requests that clients still wait for, as the ingresses have told; None before all have had the time to."""
        told = [report.unfinished_requests for report in self._ingress_reports(model)]
        record = self._store.models.get(model)
        is_early = time.monotonic() - self._began_s < REPORT_LIFETIME_S
        return None if is_early and record is not None and len(told) < record.plan.ingresses else sum(told)

    def _ingress_reports(self, model: str) -> list[IngressReport]:
        return [report for served, report in self._reports() if served == model]

    def _reports(self) -> list[tuple[str, IngressReport]]:
        silent_s = time.monotonic() - REPORT_LIFETIME_S
        self._heard = {name: heard for name, heard in self._heard.items() if heard[0] >= silent_s}
        return [(model, report) for _, model, report in self._heard.values()]

    def _speeds(self) -> Mapping[str, float]:
        """Tokens a second of each replica, as the ingresses have measured them."""
        speeds: dict[str, float] = {}
        for _, report in self._reports():
            for replica, tokens_per_s in report.decode_tokens_per_s.items():
                speeds[replica] = speeds.get(replica, 0.0) + tokens_per_s
        return speeds

    # --- what the control API asks ---

    async def read(self) -> Overview:
        """Everything as it was found last; who reads again soon will find it looked at anew."""
        self._wake.set()
        return self._targets.overview()

    async def set_pools(self, model: str, target: PoolsTarget, who: str) -> Accepted | Refusal:
        """Take a target, or say why not."""
        answer = self._targets.set_pools(model, target, who)
        self._wake.set()
        return answer

    async def events(self, after: int | None, model: str | None, wait_s: float) -> EventPage:
        """What happened."""
        return await self._events.read(after, model, wait_s)

    async def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """Who asked for what."""
        return self._audit.latest(limit)

    async def record(self, entry: AuditEntry) -> None:
        """What somebody asked of another than this controller."""
        self._audit.record(entry)

    async def take_lease(self, name: str, request: LeaseRequest) -> Lease | Refusal:
        """Give a lease, or say who has it."""
        return self._targets.leases.take(name, request)

    async def give_back_lease(self, name: str, holder: str) -> Refusal | None:
        """Free a lease."""
        return self._targets.leases.give_back(name, holder)

    async def metrics_targets(self) -> tuple[MetricsTarget, ...]:
        """Where the ingresses tell their metrics, as they have said."""
        if time.monotonic() - self._began_s < REPORT_LIFETIME_S:  # Prometheus keeps the targets that it knows, then
            raise FleetUnavailableError("The controller has just started, and has not heard of all ingresses yet.")
        addresses: dict[str, list[str]] = {}
        for model, report in self._reports():
            if report.metrics_address:
                addresses.setdefault(model, []).append(report.metrics_address)
        return tuple(
            MetricsTarget(targets=tuple(sorted(found)), labels={"model": model})
            for model, found in sorted(addresses.items())
        )


def _audit_log(state_dir: Path) -> AuditLog:
    state_dir.mkdir(parents=True, exist_ok=True)  # the head node may be another machine than the launcher's
    return AuditLog(state_dir / "audit.jsonl")
