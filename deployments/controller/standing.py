"""How a model is getting on, between what is wanted of it and what was found."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.control.wire import Outcome
from deployments.reconcile import Pools, Way


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a model is getting on: the pools that are worked towards and why they are not the desired ones, if so.

    ``is_stuck``: nothing is under way and nothing can be done. ``way`` is that of the last replicas that were started.
    ``ended`` counts changes that are over, since the controller started.
    """

    pools: Pools
    shortfall: str | None = None
    is_stuck: bool = False
    way: Way = Way.SURGE
    ended: Mapping[tuple[Way, Outcome], int] = field(default_factory=dict)
