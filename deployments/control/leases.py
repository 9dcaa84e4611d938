"""Leases: a name that one holder at a time has, until it is over. So two autoscalers never act at once.

A lease is for who would act, not for who asks: whoever has the write token may still send a target without one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.control.refusals import Refusal, lease_held, lease_lost
from deployments.control.wire import Lease, LeaseClaim, LeaseRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """Who has a lease until when, on the clock of the wall: that is the same after a restart."""

    name: str
    holder: str
    expires_at_s: float


class LeaseStore(Protocol):
    """Where leases are kept."""

    @property
    def leases(self) -> Mapping[str, LeaseRecord]:
        """By name."""
        ...

    def put_lease(self, record: LeaseRecord) -> None:
        """Remember one."""
        ...

    def drop_lease(self, name: str) -> None:
        """Forget one."""
        ...


class Leases:
    """Gives leases out and takes them back. `told` hears of each new holder. One caller at a time."""

    def __init__(self, store: LeaseStore, now: Callable[[], float], told: Callable[[str], object]) -> None:
        self._store = store
        self._now = now
        self._told = told

    def take(self, name: str, request: LeaseRequest) -> Lease | Refusal:
        """Give a lease, or give it for longer to who has it."""
        known = self._current(name)
        if known is not None and known.holder != request.holder:
            return lease_held(name, self._shown(known))
        # Names that nobody asks for any more must not pile up.
        for over in [one.name for one in self._store.leases.values() if one.expires_at_s <= self._now()]:
            self._store.drop_lease(over)
        record = LeaseRecord(name=name, holder=request.holder, expires_at_s=self._now() + request.ttl_s)
        self._store.put_lease(record)
        if known is None:
            self._told(f"{request.holder} has the lease {name} now.")
        return self._shown(record)

    def give_back(self, name: str, holder: str) -> Refusal | None:
        """Free a lease that this holder has; one that is free stays so."""
        known = self._current(name)
        if known is None:
            return None
        if known.holder != holder:
            return lease_held(name, self._shown(known))
        self._store.drop_lease(name)
        self._told(f"{holder} has given the lease {name} back.")
        return None

    def missed(self, claim: LeaseClaim | None) -> Refusal | None:
        """Why what comes under a lease is not taken, if so."""
        if claim is None:
            return None
        known = self._current(claim.name)
        if known is not None and known.holder == claim.holder:
            return None
        return lease_lost(claim, self._shown(known) if known else None)

    def _current(self, name: str) -> LeaseRecord | None:
        record = self._store.leases.get(name)
        return record if record is not None and record.expires_at_s > self._now() else None

    def _shown(self, record: LeaseRecord) -> Lease:
        return Lease(holder=record.holder, expires_in_s=max(0.0, record.expires_at_s - self._now()))
