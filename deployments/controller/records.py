"""What the controller must not forget: kept in Ray's GCS, so that a controller that died goes on where it was.

Only what is wanted and what was begun is stored. Everything else is asked of Ray and Serve again.
"""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ray.experimental import internal_kv

from deployments.access.settings import Tls
from deployments.control.gate import Caller
from deployments.control.leases import LeaseRecord
from deployments.fleet import FleetPlan
from deployments.reconcile import Desired, Limits, Pools, Record
from deployments.replica import ReplicaReport
from deployments.routing import PredictedSpeed
from placement import Layout, Shape

_NAMESPACE = b"archipelago"
# A request waits at worst through a start that is given up after twice the time it should take, and for what served
# before, which may take as long.
WAY_BACK_STALLS = 2
HOLD_STALLS = 2 + WAY_BACK_STALLS


class Intent(StrEnum):
    """What the controller has decided about a replica."""

    RUN = "run"
    DRAIN = "drain"
    MOVE = "move"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    """One replica that was begun. ``since_s`` (wall clock) is when its intent or its health changed last.

    ``report`` is what it said when it began to serve, None while it does not: by it a new controller knows who serves,
    and where, also of a replica that is too busy to answer at once.
    """

    name: str
    model: str
    layout: Layout
    since_s: float
    intent: Intent = Intent.RUN
    report: ReplicaReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What clients are with until the ingresses of new settings take over, and what is gone back to if they fail.

    ``until_s`` (wall clock) is when the new settings came.
    """

    ingress: str
    plan: FleetPlan
    limits: Limits
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model: how it is served, what is wanted, what that may cost, and what the reconciler remembers of it.

    ``ingress`` is the Serve application that answers its clients, as ``plan`` says. ``configured`` are the pools that
    its configuration named last, from which users and the autoscaler have gone on since.
    ``asked_limits`` come with the last target, by name, and hold for it instead of the configured ones.
    ``shapes`` are those that hold the model on this cluster, with the GPU memory each needs: what may be asked for, and
    the candidates when hardware is lost. Empty when the size of the model is not known.
    ``speeds`` are what the planner predicts of them, where it knows the GPUs.
    ``starts_s`` is how long the last start of each shape took; the shape that was started last is last.
    """

    plan: FleetPlan
    desired: Desired
    configured_limits: Limits
    shapes: Mapping[Shape, int]
    configured: Pools = ()
    ingress: str = ""
    former: Former | None = None
    speeds: Mapping[Shape, PredictedSpeed] = field(default_factory=dict)
    asked_limits: Mapping[str, Any] = field(default_factory=dict)
    memory: Record = field(default_factory=Record)
    is_closing: bool = False
    is_held: bool = False
    stall_s: float = 0.0
    starts_s: Mapping[Shape, float] = field(default_factory=dict)
    changed_at_s: float = 0.0

    @property
    def hold_s(self) -> float:
        """How long a request that has lost its replica waits for another."""
        return max(self.plan.hold_s, HOLD_STALLS * self.stall_s)

    @property
    def limits(self) -> Limits:
        """What the change that is under way may cost.

        While all requests wait for it, a start that hangs ends while there is time to go back to what served before.
        """
        asked = replace(self.configured_limits, **self.asked_limits)
        if not self.is_held:
            return asked
        return replace(asked, start_timeout_s=min(asked.start_timeout_s, self.hold_s - WAY_BACK_STALLS * self.stall_s))

    @property
    def start_s(self) -> float | None:
        """How long the last start took, of whatever shape: the best guess for the next. None before the first."""
        return list(self.starts_s.values())[-1] if self.starts_s else None

    def with_start(self, shape: Shape, start_s: float) -> "ModelRecord":
        """The record after one more start."""
        others = {known: value for known, value in self.starts_s.items() if known != shape}
        return replace(self, starts_s=others | {shape: start_s})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for all models.

    ``secret`` is known to ingresses and replicas; ``tokens`` to users of the control API, which is at
    ``host``:``port`` and takes the keys in the file ``keys`` too. ``gpu_memory_bytes`` is None where the nodes' drivers
    are asked. ``state_dir`` has the audit log.
    """

    secret: str = field(repr=False)
    tokens: Mapping[str, Caller] = field(repr=False)
    host: str
    port: int
    gpu_memory_bytes: int | None
    state_dir: str
    keys: str | None = None
    tls: Tls | None = None


class Store:
    """Records in the key-value store of Ray's GCS, and a copy in memory. One writer: the controller."""

    def __init__(self) -> None:
        self.models: dict[str, ModelRecord] = {record.plan.model: record for record in _load("model/")}
        self.replicas: dict[str, ReplicaRecord] = {record.name: record for record in _load("replica/")}
        self.leases: dict[str, LeaseRecord] = {record.name: record for record in _load("lease/")}
        self.next_index: int = next(iter(_load("next_index")), 0)
        self._next_ingress_index: int = next(iter(_load("next_ingress_index")), 0)
        self.last_version: int = next(iter(_load("last_version")), 0)  # of the models that have gone

    def put_model(self, record: ModelRecord) -> None:
        """Remember a model."""
        self.models[record.plan.model] = record
        _put(f"model/{record.plan.model}", record)

    def drop_model(self, model: str) -> None:
        """Forget a model. Its version is kept: one of that name that comes later is not taken for it."""
        self.last_version = max(self.last_version, self.models[model].desired.version)
        _put("last_version", self.last_version)
        del self.models[model]
        _delete(f"model/{model}")

    def begin_replica(self, record: ReplicaRecord, next_index: int) -> None:
        """Remember a replica before it is started, so that nothing can be running without a record."""
        self.next_index = max(self.next_index, next_index)
        _put("next_index", self.next_index)
        self.put_replica(record)

    def take_ingress_index(self) -> int:
        """A number that no ingress of any model has had."""
        self._next_ingress_index += 1
        _put("next_ingress_index", self._next_ingress_index)
        return self._next_ingress_index - 1

    def put_replica(self, record: ReplicaRecord) -> None:
        """Remember a replica."""
        self.replicas[record.name] = record
        _put(f"replica/{record.name}", record)

    def intend(self, name: str, intent: Intent, now_s: float) -> None:
        """Remember what was decided about a replica."""
        self.put_replica(replace(self.replicas[name], intent=intent, since_s=now_s))

    def drop_replica(self, name: str) -> None:
        """Forget a replica of which nothing is left."""
        del self.replicas[name]
        _delete(f"replica/{name}")

    def put_lease(self, record: LeaseRecord) -> None:
        """Remember who has a lease."""
        self.leases[record.name] = record
        _put(f"lease/{record.name}", record)

    def drop_lease(self, name: str) -> None:
        """Forget a lease that is over."""
        del self.leases[name]
        _delete(f"lease/{name}")

    def clear(self) -> None:
        """Leave nothing behind in a cluster that goes on without a fleet."""
        internal_kv._internal_kv_del(b"", del_by_prefix=True, namespace=_NAMESPACE)


def _load(prefix: str) -> Iterator[Any]:
    for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE):
        value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        if value is not None:
            yield pickle.loads(value)  # written by _put, in the cluster's own store


def _put(key: str, value: object) -> None:
    internal_kv._internal_kv_put(key, pickle.dumps(value), overwrite=True, namespace=_NAMESPACE)


def _delete(key: str) -> None:
    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
