"""What the control API needs of the controller behind it."""

from typing import Protocol

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


class FleetUnavailableError(Exception):
    """The controller does not answer now; it may soon. The message is a sentence for the user."""


class Fleet(Protocol):
    """The controller of all fleets. Any method may raise `FleetUnavailableError`."""

    async def read(self) -> Overview:
        """Everything as it is now."""
        ...

    async def set_pools(self, model: str, target: PoolsTarget, who: str) -> Accepted | Refusal:
        """Take a target for one model, once it is stored and in the audit log; without pools the model is deleted.

        Whoever reads the fleet after this answered finds `repartition` in progress (for any change, of a number of
        replicas too), or the target reached. A dry run changes nothing; where the target does not fit, its forecast
        says so. One under a lease is refused unless its holder has it.
        """
        ...

    async def events(self, after: int | None, model: str | None, wait_s: float) -> EventPage:
        """Events with a number above `after` (None: all that are still held), of one model or of all.

        Answers at once where there are any, else as soon as there is one, at the latest after `wait_s`.
        """
        ...

    async def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """The latest entries of the audit log, oldest first."""
        ...

    async def record(self, entry: AuditEntry) -> None:
        """Put one more entry in the audit log. Raises `OSError`: what cannot be recorded should not be done."""
        ...

    async def take_lease(self, name: str, request: LeaseRequest) -> Lease | Refusal:
        """Give a lease to a holder, or keep it for who has it; a restart of the controller changes nothing."""
        ...

    async def give_back_lease(self, name: str, holder: str) -> Refusal | None:
        """Free a lease, unless another has it."""
        ...

    async def metrics_targets(self) -> tuple[MetricsTarget, ...]:
        """Where the ingresses of each model tell their metrics; unavailable while that is not known."""
        ...
