"""Which ingresses of a model clients are with, and which may end: one set of settings after another. Pure.

New settings get a Serve application of their own, beside the one that has the clients: Serve would cut the streams of
an application that changes. When all its processes listen and reach the replicas, the others take no new connections,
and end with their last one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ray.serve.schema import ApplicationStatusOverview

from deployments import fleet
from deployments.controller.records import ModelRecord
from deployments.membership import IngressReport

Applications = Mapping[str, ApplicationStatusOverview]


def ingresses_of(record: ModelRecord, applications: Iterable[str]) -> frozenset[str]:
    """All Serve applications that answer HTTP for the model."""
    return frozenset(name for name in applications if record.plan.is_ingress(name))


def leaving(record: ModelRecord, applications: Iterable[str]) -> frozenset[str]:
    """Those whose settings are not wanted any more, and that nothing would go back to."""
    kept = {record.ingress, record.former.ingress} if record.former else {record.ingress}
    return ingresses_of(record, applications) - kept


def has_taken_over(
    record: ModelRecord, applications: Applications, reports: Sequence[IngressReport], replicas: Collection[str]
) -> bool:
    """Whether the new ingresses can have the clients: all of them run, and reach all replicas that serve."""
    mine = [one for one in reports if one.application == record.ingress and one.connected >= set(replicas)]
    return fleet.is_running(applications.get(record.ingress)) and len(mine) >= record.plan.ingresses


def why_failed(record: ModelRecord, applications: Applications, now_s: float) -> str:
    """Why the new ingresses will not have the clients; empty while they may."""
    overview = applications.get(record.ingress)
    if overview is not None and fleet.has_failed(overview):
        return fleet.cause_of(overview)
    timeout_s = record.configured_limits.start_timeout_s
    if record.former is None or now_s - record.former.until_s < timeout_s:
        return ""
    waits = fleet.waits_for(overview) if overview is not None else ""
    return f"not ready after limits.start_timeout_s = {timeout_s:g} s" + (f": {waits}" if waits else "")


def may_end(overview: ApplicationStatusOverview, name: str, reports: Sequence[IngressReport]) -> bool:
    """Whether nobody is with these ingresses any more, as all of them have said."""
    mine = [one for one in reports if one.application == name]
    return all(one.has_left for one in mine) and len(mine) >= fleet.running_processes(overview)
