"""Everything that travels over the control API, both ways.

Every value is frozen and refuses names it does not know. Times that last are in seconds (`_s`), points in time are ISO
8601 with their offset. Pools are absolute: shape -> number of replicas; a pool of none is left out.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime, Field, NonNegativeInt, RootModel

from deployments.control.values import Holder, LeaseName, Pools, Reason, Seconds, Wire

MAX_WAIT_S = 60.0
MAX_TIMEOUT_S = 86_400.0
MAX_LEASE_S = 3600.0

Way = Literal["surge", "rolling", "swap"]
FleetPhase = Literal["starting", "steady", "repartitioning", "rolling-back", "degraded", "stopped"]
Outcome = Literal["reached", "rolled-back", "failed"]
AuditOutcome = Literal["accepted", "unchanged", "refused"]
ReplicaPhase = Literal["starting", "serving", "draining", "stopping", "failed", "lost"]
EventKind = Literal[
    "target",  # a new target was taken
    "step",  # a step of a repartition began or ended
    "stall",  # requests are held, or are no longer
    "failure",  # a step failed or took too long
    "rollback",  # the last good state is being restored
    "reached",  # the fleet is as wanted
    "rolled-back",  # the fleet is as it was before
    "replica",  # a replica changed its phase
    "ingress",  # clients come to processes of other settings
    "loss",  # hardware went, or is about to
    "replan",  # what is left is cut anew
    "migration",  # requests moved to another replica
    "lease",  # the right to send targets went to another holder
    "quarantine",  # a request that ends replicas is not tried again
    "controller",  # the controller itself started or stopped
]


class SeatView(Wire):
    """Where one rank of a replica runs."""

    rank: NonNegativeInt
    island: str
    node: str
    slot: NonNegativeInt


class ReplicaView(Wire):
    """One replica and its load."""

    name: str
    shape: str
    phase: ReplicaPhase
    in_phase_s: Seconds
    seats: tuple[SeatView, ...]
    unfinished_requests: NonNegativeInt
    tokens_per_s: Seconds | None = Field(default=None, description="Generated tokens a second; null where not known.")
    cause: str | None = Field(default=None, description="Why it is not well; null where it is.")


class RepartitionView(Wire):
    """A repartition in progress."""

    way: Way
    step: NonNegativeInt = Field(description="Steps begun so far.")
    steps: NonNegativeInt = Field(description="Steps in all, as planned now.")
    doing: str = Field(description="The step that runs now, in words.")
    announced_stall_s: Seconds = Field(description="Longest time a stream was announced to stand still.")
    running_s: Seconds
    before: Pools = Field(default={}, description="What it began with: a target of these pools goes back to them.")


class Transitions(Wire):
    """How many changes of a fleet ended like this since the controller started; a first start is one too."""

    way: Way
    outcome: Outcome
    count: NonNegativeInt


class FleetView(Wire):
    """All replicas of one model. `desired_pools` is the last target; `effective_pools` what the hardware allows."""

    model: str
    version: NonNegativeInt = Field(description="Goes up with every target that is taken.")
    phase: FleetPhase
    ingress: str = Field(description="The Serve application that has the clients.")
    next_ingress: str | None = Field(default=None, description="The one with other settings that is to have them.")
    desired_pools: Pools
    effective_pools: Pools
    shortfall: str | None = Field(default=None, description="Why the effective pools differ from the desired ones.")
    replicas: tuple[ReplicaView, ...] = ()
    repartition: RepartitionView | None = None
    start_s: Mapping[str, Seconds] = Field(default={}, description="Shape -> how long its last start took.")
    transitions: tuple[Transitions, ...] = ()


class NodeView(Wire):
    """One Ray node with GPUs."""

    name: str
    island: str
    gpus: NonNegativeInt
    free_gpus: NonNegativeInt
    gpu: str | None = Field(default=None, description="The kind of its GPUs, as Ray labels it; null where it does not.")
    gpu_memory_bytes: NonNegativeInt | None = Field(default=None, description="Of one GPU.")
    draining: bool = Field(default=False, description="It will go; nothing new starts there.")
    machine: str | None = Field(default=None, description="Which nodes of one machine share; null: it is one itself.")


class ClusterView(Wire):
    """The hardware."""

    nodes: tuple[NodeView, ...]

    @property
    def islands(self) -> tuple[str, ...]:
        return tuple(sorted({node.island for node in self.nodes}))

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def free_gpus(self) -> int:
        return sum(node.free_gpus for node in self.nodes if not node.draining)


class Overview(Wire):
    """Everything at one moment."""

    cluster: ClusterView
    fleets: tuple[FleetView, ...]

    def fleet(self, model: str) -> FleetView | None:
        return next((fleet for fleet in self.fleets if fleet.model == model), None)


class Limits(Wire):
    """What a change may cost. What is left out is as configured."""

    floor: float | None = Field(default=None, ge=0, le=1, description="Share of the capacity that keeps serving.")
    max_stall_s: float | None = Field(default=None, ge=0, le=MAX_TIMEOUT_S, description="Longest stall of a stream.")
    drain_timeout_s: float | None = Field(default=None, ge=0, le=MAX_TIMEOUT_S, description="Then streams migrate.")
    start_timeout_s: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_S, description="Then a start failed.")


class LeaseRequest(Wire):
    """Who wants a lease, or wants to keep it, and for how long from now."""

    holder: Holder
    ttl_s: float = Field(gt=0, le=MAX_LEASE_S, description="Seconds until it is free again, unless asked for anew.")


class Lease(Wire):
    """A lease that somebody holds."""

    holder: str
    expires_in_s: Seconds


class LeaseClaim(Wire):
    """The lease that a sender relies on: that it alone decides now."""

    name: LeaseName
    holder: Holder


class PoolsTarget(Wire):
    """What a fleet shall be. No pools: the model is stopped and deleted."""

    pools: Pools = Field(description="Shape -> number of replicas, of all pools: what is not named goes.")
    reason: Reason = Field(description="Why, for the events and the audit log.")
    way: Way | None = Field(default=None, description="How to get there; null: the best that the limits allow.")
    limits: Limits = Limits()
    if_version: NonNegativeInt | None = Field(default=None, description="Refuse unless the fleet has this version.")
    dry_run: bool = Field(default=False, description="Only say what would be done.")
    retry: bool = Field(default=False, description="Try again, where these pools were given up; else it is no change.")
    lease: LeaseClaim | None = Field(default=None, description="Refuse unless this holder has this lease.")


class Obstacle(Wire):
    """Why a target cannot be: the constraint that binds, with its numbers, and the nearest change that fits."""

    constraint: str
    nearest: str

    def __str__(self) -> str:
        return f"{self.constraint}. Nearest: {self.nearest}."


class ForecastStep(Wire):
    """One step of a plan, `at_s` after its start."""

    at_s: Seconds
    step: str = Field(description="The kind of step, in a word: start, shift, hold, drain, stop, ...")
    what: str
    reason: str


class ForecastView(Wire):
    """How a target would be reached. `way` is null where there is nothing to do, or no way."""

    way: Way | None
    timeline: tuple[ForecastStep, ...] = ()
    stall_s: Seconds = Field(default=0.0, description="Longest time that a stream is expected to stand still.")
    gpus_needed: NonNegativeInt = Field(default=0, description="Most GPUs held at once, old and new together.")
    infeasible: Obstacle | None = None


class Accepted(Wire):
    """A target that was taken, or for a dry run would be. `changed` is false where it was the target already."""

    version: NonNegativeInt
    changed: bool
    forecast: ForecastView


class Event(Wire):
    """Something that happened. Numbers go up and are never used twice."""

    number: NonNegativeInt
    at: AwareDatetime
    model: str
    kind: EventKind
    replica: str | None = None
    text: str


class Gap(Wire):
    """Events that are gone because the reader came too late."""

    first: NonNegativeInt
    last: NonNegativeInt


class EventPage(Wire):
    """Events in order. Read on after `newest`, which may be an event of a model that was not asked for."""

    events: tuple[Event, ...]
    newest: NonNegativeInt
    gap: Gap | None = None


class AuditEntry(Wire):
    """One request to change something, whatever came of it."""

    at: AwareDatetime
    who: str
    model: str
    what: str
    before: Pools
    after: Pools
    outcome: AuditOutcome
    reason: str = Field(description="Why it was asked for.")
    refusal: str | None = Field(default=None, description="Why it was refused.")


class AuditPage(Wire):
    """The latest entries, oldest first."""

    entries: tuple[AuditEntry, ...]


class MetricsTarget(Wire):
    """Where one model's ingresses tell Prometheus what they know: one entry of Prometheus's http_sd_configs."""

    targets: tuple[str, ...] = Field(description="host:port of each ingress; the path is /metrics.")
    labels: Mapping[str, str]


class MetricsTargets(RootModel[tuple[MetricsTarget, ...]]):
    """All of them, as Prometheus wants it: a list."""


class Problem(Wire):
    """An error, as in RFC 9457. `detail` is a sentence for people; what follows it depends on `type`."""

    type: str
    title: str
    status: int
    detail: str
    current: FleetView | None = Field(default=None, description="The fleet as it is, where the target conflicts.")
    known_models: tuple[str, ...] | None = None
    obstacle: Obstacle | None = None
    lease: Lease | None = Field(default=None, description="Who has the lease, where somebody else has.")
