"""Who belongs to a fleet: what the fleet controller tells every ingress."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.routing import PredictedSpeed

# Where the planner knows nothing of the GPUs. The ratio between replicas is what matters, and it is measured soon.
UNKNOWN_SPEED = PredictedSpeed(prefill_tokens_per_s=5000.0, decode_tokens_per_s=1000.0, full_batch=32, lone_step_s=0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One replica and its shape, where it listens, and what an ingress may do with it.

    ``accepts``: new requests go there; else it drains, and gets some only while no other can take them. ``leaves``:
    what is on it must move to other replicas now. Its batch holds ``max_running`` requests, its KV cache ``kv_tokens``.
    ``speed`` is a prediction; an ingress corrects it by what it sees.
    """

    replica: str
    shape: str
    host: str
    port: int
    accepts: bool = True
    leaves: bool = False
    max_running: int = 64
    kv_tokens: int | None = None
    speed: PredictedSpeed = UNKNOWN_SPEED


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A fleet at one moment.

    ``hold_s`` is how long a request that has begun waits for a replica when it has lost its own. New requests wait as
    long only while ``holds_new``, during an announced stall; otherwise they are refused at once. ``is_closing``: no new
    requests at all. ``is_going``: no replica will come any more, so nothing waits for one. ``planned_replicas`` counts
    those that are starting as well.

    ``leaving_ingresses`` are Serve applications whose processes take no new connections; ``ingresses`` others do.
    """

    version: int = 0
    members: tuple[Member, ...] = ()
    planned_replicas: int = 0
    hold_s: float = 120.0
    holds_new: bool = False
    is_closing: bool = False
    is_going: bool = False
    leaving_ingresses: frozenset[str] = frozenset()
    ingresses: int = 0

    @property
    def why_lost(self) -> str:
        """Why a request is given up that has waited for a replica in vain."""
        return "the model is being removed" if self.is_going else f"no replica could take it within {self.hold_s:g} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressReport:
    """What an ingress tells the controller whenever it asks for the fleet. Counters are since its start.

    ``moved_from`` counts the requests that have left each replica for another; ``quarantined`` are the latest ids of
    those that are not tried again since replicas have died of them.
    Prometheus finds its series at ``metrics_address`` (host:port), which no other ingress shares. ``application`` is
    what Serve knows it by; ``has_left``: it takes no connections any more, and its last one has gone.
    """

    ingress: str
    connected: frozenset[str]  # replicas
    unfinished_requests: int
    held_requests: int
    decode_tokens_per_s: dict[str, float]  # of each replica, as measured
    metrics_address: str = ""
    moved_from: Mapping[str, int] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()
    application: str = ""
    has_left: bool = False

    @property
    def moved_requests(self) -> int:
        """Times that a request went on to another replica."""
        return sum(self.moved_from.values())
