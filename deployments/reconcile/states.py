"""What is, what is wanted, and what the reconciler remembers, as data."""

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from placement.clusters.hardware import Cluster
from placement.layout import Layout, Place
from placement.shape import Shape


class Phase(StrEnum):
    """Where a replica is in its life. It only moves forward."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # takes no new requests; running ones go on
    MOVING = "moving"  # its requests are being moved to other replicas, or back into the ingress
    STOPPING = "stopping"  # its Serve application is being deleted; it still holds its GPUs
    FAILED = "failed"  # its start failed; it still holds its GPUs


class Way(StrEnum):
    """How a fleet gets from one set of pools to another, the gentlest first."""

    SURGE = "surge"  # the new replicas start on free GPUs, then the old ones drain
    ROLLING = "rolling"  # replica by replica, as GPUs come free
    SWAP = "swap"  # the old ones go first; the ingress holds the requests meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """One replica as it is found. `since_s` is when it entered its phase; `cause` says why a start failed, or waits.

    `unfinished_requests` is None where that is not known: nothing that waits for the last of them goes on.
    """

    name: str
    model: str
    layout: Layout
    phase: Phase
    since_s: float
    unfinished_requests: int | None = 0
    cause: str = ""

    @property
    def index(self) -> int:
        """The number at the end of the name; no other replica ever has it."""
        return int(self.name.rpartition("--")[2])

    @property
    def gpus(self) -> int:
        return self.layout.shape.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`replicas` times one shape. Raises `ValueError` for a number below 0."""

    shape: Shape
    replicas: int

    def __post_init__(self) -> None:
        if self.replicas < 0:
            raise ValueError(f"Pool {self.shape}: replicas is {self.replicas}; it must be at least 0.")


Pools = tuple[Pool, ...]


def count_shapes(pools: Iterable[Pool]) -> Counter[Shape]:
    """Replicas of each shape, without shapes that have none: equal fleets compare equal."""
    counts: Counter[Shape] = Counter()
    for pool in pools:
        counts[pool.shape] += pool.replicas
    return +counts


def hardest_first(counts: Counter[Shape]) -> tuple[Shape, ...]:
    """Each shape as often as it is counted, first those that need most GPUs in one island, then in all."""
    return tuple(sorted(counts.elements(), key=lambda shape: (-shape.tp, -shape.gpus, str(shape))))


def gpus_of(pools: Iterable[Pool]) -> int:
    """GPUs that the pools take together."""
    return sum(pool.shape.gpus * pool.replicas for pool in pools)


def name_pools(pools: Iterable[Pool]) -> str:
    """`2 x tp1, 1 x tp2pp2`, for messages."""
    return ", ".join(f"{count} x {shape}" for shape, count in count_shapes(pools).items()) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The fleet that is wanted of one model; no replicas at all means that the model goes.

    A newer wish has another `version`. `way` is None to let the reconciler choose. A GPU must have `min_memory_bytes`
    to hold a rank of the model.
    """

    model: str
    pools: Pools
    version: int = 1
    reason: str = ""
    way: Way | None = None
    min_memory_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pools", tuple(pool for pool in self.pools if pool.replicas))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What must survive a crash of the controller beside the wish itself, per model.

    `last_good` is the last wish that was fully reached. `given_up` says why the wish of this `version` was rolled
    back, and is empty while it was not. `reached`: the wish, or after a roll-back the last good pools, has been reached
    since. `failed_at_s` has the time of each failed attempt that counts now, `failed_on` the GPUs that they were on;
    replicas with an index below `counted_below` have been counted.
    """

    version: int = 0
    last_good: Pools | None = None
    given_up: str = ""
    reached: bool = False
    failed_at_s: tuple[float, ...] = ()
    counted_below: int = 0
    failed_on: frozenset[Place] = frozenset()

    def about(self, version: int) -> "Record":
        """This record, without what belongs to another version of the wish."""
        if version == self.version:
            return self
        return Record(version=version, last_good=self.last_good, counted_below=self.counted_below)


def wanted(desired: Desired, record: Record) -> Desired:
    """What to reconcile towards: the wish, or the last good pools where that wish was rolled back."""
    if not record.about(desired.version).given_up or record.last_good is None:
        return desired
    return replace(desired, pools=record.last_good, way=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """What was found at `now_s`: the replicas of all models, and which models' requests the ingress holds.

    `next_index` is above the index of every replica there ever was: the controller keeps it beside the records, so
    that a name is never used twice.
    """

    now_s: float
    next_index: int
    replicas: tuple[ReplicaState, ...] = ()
    held: frozenset[str] = frozenset()
    records: Mapping[str, Record] = field(default_factory=dict)

    def record(self, desired: Desired) -> Record:
        """What is remembered of the model, as far as it bears on this version of the wish."""
        return self.records.get(desired.model, Record()).about(desired.version)


LEAST_MOVE_S = 10.0  # in which all that can move has moved
# What is on a node that goes is moved so long before: the controller may look 5 s late, and Serve stops what it has on
# the node some seconds before Ray's deadline (ray/serve/_private/deployment_state.py, `_partition_groups_to_stop`).
LEAVING_MARGIN_S = LEAST_MOVE_S + 10.0
# Names of nodes that are about to go -> when (wall clock); `math.inf` where they are in no hurry.
Leaving = Mapping[str, float]
ALL_STAY: Leaving = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a change may cost. Raises `ValueError` for a value out of range.

    During a repartition `floor` times the GPUs of the fleet (before or after, whichever is fewer) keep serving; 0
    allows a swap, whose announced stall is at most `max_stall_s`. After the n-th failed attempt at pools that cannot
    be rolled back, the next waits `retry_after_s[n-1]`; after the last of them there is no other.
    """

    start_timeout_s: float
    drain_timeout_s: float
    floor: float = 0.0
    max_stall_s: float = math.inf
    retry_after_s: tuple[float, ...] = (10.0, 60.0, 300.0)

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is {self.floor}; it must be from 0 to 1.")
        waits = {"start_timeout_s": self.start_timeout_s, "drain_timeout_s": self.drain_timeout_s}
        waits |= {"max_stall_s": self.max_stall_s, "retry_after_s": min(self.retry_after_s, default=0.0)}
        for name, value in waits.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be at least 0.")

    @property
    def move_timeout_s(self) -> float:
        """How long others wait for requests that are still on a replica they should move away from."""
        return max(self.drain_timeout_s, LEAST_MOVE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long things are expected to take: a start, a drain that nobody cuts short, the end of an application."""

    start_s: float
    drain_s: float
    stop_s: float

    @property
    def stall_s(self) -> float:
        """How long nothing serves when old replicas must go before new ones start."""
        return self.stop_s + self.start_s


def without_nodes(cluster: Cluster, leaving: Container[str]) -> Cluster:
    """The cluster without the nodes that are about to go."""
    return Cluster(nodes=tuple(node for node in cluster.nodes if node.name not in leaving))
