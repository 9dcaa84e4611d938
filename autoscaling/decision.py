"""What the autoscaler answers: the option it took, what that is expected to cost, and every option that lost."""

from dataclasses import dataclass, field
from typing import Literal

from autoscaling.observation import Pools

# The two answers to demand are kept apart: `replicas` serve more requests, `repartition` cuts the model differently.
Kind = Literal["hold", "replicas", "repartition"]
Cause = Literal[
    "cheapest",  # of the options that keep the SLO it costs least
    "least-bad",  # none keeps the SLO; this one comes nearest
    "blind",  # nothing is known
    "changing",  # the last target is not reached yet
    "cooldown",  # the last change was too short ago
    "not-yet",  # what speaks for it has not lasted long enough
    "not-worth-it",  # a change would gain less than it costs
    "barred",  # it was tried, and was worse than predicted
    "schedule",  # the schedule wants more, or allows less
    "window",  # outside the maintenance window
    "frozen",  # a person has said so
    "limit",  # more would change at once than is allowed
    "revert",  # the last change did worse than what it replaced
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an option is expected to bring over the horizon.

    `attainment` is the share of arrivals that keep the SLO, the transition's own included; `gpu_s` GPU-seconds held, of
    old and new replicas together. `transition_s` passes until the target serves, `stall_s` is the longest stop of a
    stream, `transition_gpu_s` are those held beyond what serves. `final_attainment` is that of the pools themselves,
    once they serve.
    """

    attainment: float
    gpu_s: float
    final_attainment: float
    transition_s: float = 0.0
    transition_gpu_s: float = 0.0
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Pools that could be the next target. `why` says in a sentence why it won or lost."""

    kind: Kind
    pools: Pools = field(hash=False)
    price: Price
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The demand that a decision is for: a quantile of the forecast over the horizon, and its mean."""

    horizon_s: float
    requests_per_s: float
    mean_requests_per_s: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`target` is what shall run; it is what runs already for a hold. `reason` is a sentence for an operator.

    `options` are all that were priced, the best first; empty where nothing was priced, as when blind.
    """

    at_s: float
    kind: Kind
    cause: Cause
    target: Pools = field(hash=False)
    reason: str
    expected: Expected | None = None
    options: tuple[Option, ...] = ()
