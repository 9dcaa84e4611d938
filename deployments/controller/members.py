"""The fleet of a model as its ingresses are told of it. Pure."""

from collections.abc import Iterable, Mapping

from deployments.controller.ingresses import leaving
from deployments.controller.records import Intent, ModelRecord, ReplicaRecord
from deployments.membership import UNKNOWN_SPEED, Member, Membership
from deployments.replica import ReplicaReport
from deployments.routing import PredictedSpeed


def membership(
    record: ModelRecord,
    replicas: Iterable[ReplicaRecord],
    reports: Mapping[str, ReplicaReport],
    applications: Iterable[str],
    version: int,
) -> Membership:
    """The replicas that run, and what to do while none does; and which of Serve's `applications` have the clients."""
    mine = [one for one in replicas if one.model == record.plan.model]
    is_going = not record.desired.pools
    return Membership(
        version=version,
        members=tuple(
            _member(one, reports[one.name], record.speeds.get(one.layout.shape, UNKNOWN_SPEED))
            for one in mine
            if one.name in reports
        ),
        planned_replicas=sum(one.intent is Intent.RUN for one in mine),
        hold_s=record.hold_s,
        holds_new=record.is_held,
        is_closing=record.is_closing or is_going,
        is_going=is_going,
        leaving_ingresses=leaving(record, applications),
        ingresses=record.plan.ingresses,
    )


def _member(record: ReplicaRecord, report: ReplicaReport, speed: PredictedSpeed) -> Member:
    return Member(
        replica=record.name,
        shape=str(record.layout.shape),
        host=report.host,
        port=report.port,
        accepts=record.intent is Intent.RUN,
        leaves=record.intent in (Intent.MOVE, Intent.STOP),
        max_running=report.max_running,
        kv_tokens=report.kv_tokens,
        speed=speed,
    )
