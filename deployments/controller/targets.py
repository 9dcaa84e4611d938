"""What the control API asks of the controller: the fleets as they are, and other pools for them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from deployments import fleet
from deployments.control.audit import AuditLog, entry_of
from deployments.control.events import EventLog
from deployments.control.leases import Leases
from deployments.control.refusals import Refusal, admit, does_not_fit, named, unknown_model
from deployments.control.wire import (
    Accepted,
    AuditEntry,
    AuditOutcome,
    FleetView,
    ForecastView,
    Obstacle,
    Overview,
    PoolsTarget,
)
from deployments.controller import views
from deployments.controller.reconciling import Reconciler
from deployments.controller.records import Former, ModelRecord
from deployments.fleet import FleetPlan
from deployments.ingress import IngressPlan
from deployments.reconcile import Desired, Pools, Way, forecast

LAUNCHER = "the launcher"  # in the audit log: `archipelago serve` and `stop`
Speeds = Mapping[str, float]


class Targets:
    """Takes targets or says why not, and keeps the audit log; the reconciler then works towards what was taken.

    ``speeds`` tells the measured tokens a second of each replica. One caller at a time: nothing here waits.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        events: EventLog,
        audit: AuditLog,
        speeds: Callable[[], Speeds],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reconciler = reconciler
        self._store = reconciler.store
        self._events = events
        self._audit = audit
        self._speeds = speeds
        self._now = now
        self.leases = Leases(self._store, now, lambda text: events.add("", "lease", text))

    def overview(self) -> Overview:
        """Everything as it is now."""
        return Overview(
            cluster=views.cluster_view(self._reconciler.world, self._reconciler.replicas),
            fleets=tuple(self._view(record) for record in self._store.models.values()),
        )

    def serve(self, record: ModelRecord) -> str:
        """Serve a model, or serve it differently; the Serve application that is to answer its clients.

        Raises OSError, and does nothing, as `set_pools`.
        Pools that its configuration names as it did before stay as users and the autoscaler have changed them since.
        """
        model, now_s = record.plan.model, self._now()
        known = self._store.models.get(model)
        before = known.desired.version if known else self._store.last_version
        if known is not None:
            record = _gone_on(known, record)
        is_new = known is None or record.desired is not known.desired
        if is_new:
            desired = replace(record.desired, version=before + 1)  # versions only go up
            record = replace(record, desired=desired, changed_at_s=now_s)
        has_ingress = known is not None and _ingress_plan(known.plan) == _ingress_plan(record.plan)
        outcome: AuditOutcome = "unchanged" if has_ingress and not is_new else "accepted"
        self._put_on_record("serve", model, known, record.desired.pools, record.desired.reason, outcome)
        if not has_ingress:
            name = record.plan.ingress_name(self._store.take_ingress_index())
            record = _with_other_ingress(known, record, name, now_s) if known else replace(record, ingress=name)
        self._store.put_model(record)
        if is_new:
            wanted = named(views.wire_pools(record.desired.pools))
            reason = record.desired.reason or "as configured"
            self._events.add(model, "target", f"The launcher wants {wanted}: {reason}.")
        if known is not None and not has_ingress:
            text = "The launcher wants other settings of the endpoint."
            self._events.add(model, "ingress", text, replica=record.ingress)
        return record.ingress

    def remove(self, model: str) -> None:
        """Serve a model no longer, if it is served. Raises OSError, and does nothing, as `set_pools`."""
        record = self._store.models.get(model)
        if record is not None:
            self._put_on_record("delete", model, record, (), "`archipelago stop`, or a failed `serve`", "accepted")
            gone = replace(record.desired, pools=(), version=record.desired.version + 1, reason="stopped")
            self._store.put_model(replace(record, desired=gone, changed_at_s=self._now()))
            self._events.add(model, "target", "The launcher wants no pools: `archipelago stop`, or a failed `serve`.")

    def _put_on_record(
        self, what: str, model: str, known: ModelRecord | None, pools: Pools, reason: str, outcome: AuditOutcome
    ) -> None:
        """What is done with the rights of the Ray cluster, past the control API, is in the audit log too."""
        self._audit.record(
            AuditEntry(
                at=datetime.now(UTC),
                who=LAUNCHER,
                model=model,
                what=what,
                before=views.wire_pools(known.desired.pools) if known else {},
                after=views.wire_pools(pools),
                outcome=outcome,
                reason=reason or "as configured",
            )
        )

    def set_pools(self, model: str, target: PoolsTarget, who: str) -> Accepted | Refusal:
        """Take a target, or say why not. Raises OSError, and takes nothing, when it cannot be put on record."""
        record = self._store.models.get(model)
        current = self._view(record) if record else None
        answer = (
            self._answer(record, current, target)
            if record and current
            else unknown_model(model, list(self._store.models))
        )
        if target.dry_run:
            return answer
        entry = entry_of(target, answer, who=who, at=datetime.now(UTC), model=model, current=current)
        self._audit.record(entry)
        if record is not None and isinstance(answer, Accepted) and answer.changed:
            self._store.put_model(replace(self._changed(record, target), stall_s=answer.forecast.stall_s))
            self._events.add(model, "target", f"{who} wants {named(target.pools)}: {target.reason}")
        return answer

    def _view(self, record: ModelRecord) -> FleetView:
        mine = [one for one in self._reconciler.replicas if one.model == record.plan.model]
        return views.fleet_view(record, self._reconciler.standing(record), mine, self._speeds(), self._now())

    def _answer(self, record: ModelRecord, current: FleetView, target: PoolsTarget) -> Accepted | Refusal:
        verdict = self.leases.missed(target.lease) or admit(target, current)
        if isinstance(verdict, Refusal):
            return verdict
        version = record.desired.version
        if not verdict:
            return Accepted(version=version, changed=False, forecast=ForecastView(way=None))
        misfit = _misfit(record, target)
        seen = ForecastView(way=None, infeasible=misfit) if misfit else self._forecast(self._changed(record, target))
        if target.dry_run:
            return Accepted(version=version, changed=seen.infeasible is None, forecast=seen)
        if seen.infeasible is not None:
            return does_not_fit(target, current, seen.infeasible)
        return Accepted(version=version + 1, changed=True, forecast=seen)

    def _forecast(self, record: ModelRecord) -> ForecastView:
        reconciler = self._reconciler
        # With what the others want: what one of them gives up for a moment, on its way to other pools, is not free.
        others = [one for model, one in self._store.models.items() if model != record.plan.model]
        return views.forecast_view(
            forecast(
                reconciler.actual(),
                [*(reconciler.wish(one)[0] for one in others), record.desired],
                record.plan.model,
                reconciler.world.where.cluster,
                record.limits,
                reconciler.durations(record),
                leaving=reconciler.world.leaving,
            )
        )

    def _changed(self, record: ModelRecord, target: PoolsTarget) -> ModelRecord:
        """The record with a target taken."""
        pools = views.pools_of(target.pools)
        desired = Desired(
            model=record.plan.model,
            pools=pools,
            version=record.desired.version + 1,
            reason=target.reason,
            way=Way(target.way) if target.way else None,
            min_memory_bytes=max((record.shapes.get(pool.shape, 0) for pool in pools), default=0),
        )
        asked = target.limits.model_dump(exclude_none=True)
        return replace(record, desired=desired, asked_limits=asked, changed_at_s=self._now())


def _gone_on(known: ModelRecord, record: ModelRecord) -> ModelRecord:
    """What is asked for of a model that is served, with what is there of it."""
    is_as_before = known.desired.pools and known.configured == record.configured
    return replace(
        record,
        desired=known.desired if is_as_before else record.desired,
        asked_limits=known.asked_limits if is_as_before else record.asked_limits,
        changed_at_s=known.changed_at_s,
        ingress=known.ingress,
        former=known.former if known.desired.pools else None,
        memory=known.memory,  # what serves now is what a failure goes back to
        starts_s=known.starts_s,
        is_held=known.is_held,  # as it was announced: the reconciler ends it
        stall_s=known.stall_s,
    )


def _with_other_ingress(known: ModelRecord, record: ModelRecord, name: str, now_s: float) -> ModelRecord:
    """The record with ingresses as its plan says, to which clients come when they are ready; `name` is a free one."""
    if not known.desired.pools:  # it was being removed: no clients are to come
        return replace(record, ingress=name)
    former = known.former or Former(
        ingress=known.ingress, plan=known.plan, limits=known.configured_limits, until_s=now_s
    )
    if _ingress_plan(former.plan) == _ingress_plan(record.plan):  # as it was before a change that is under way
        return replace(record, ingress=former.ingress, former=None)
    return replace(record, ingress=name, former=replace(former, until_s=now_s))


def _ingress_plan(plan: FleetPlan) -> IngressPlan:
    """By which two settings of an endpoint are compared; the secret is the cluster's."""
    return fleet.ingress_plan(plan, secret="")


def _misfit(record: ModelRecord, target: PoolsTarget) -> Obstacle | None:
    """A shape that does not hold the model, as far as its size is known."""
    wanted = [pool.shape for pool in views.pools_of(target.pools)]
    unknown = [shape for shape in wanted if record.shapes and shape not in record.shapes]
    if not unknown:
        return None
    known = ", ".join(str(shape) for shape in record.shapes)
    constraint = f"{unknown[0]} cannot hold {record.plan.model} on the GPUs of this cluster, or cannot cut it"
    return Obstacle(constraint=constraint, nearest=f"one of {known}")
