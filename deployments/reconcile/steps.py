"""What the fleet controller is told to do. A step is one action; its `reason` is one sentence for the event log.

The controller marks the new phase before it acts, so that a step that takes long is not asked for again.
"""

from dataclasses import dataclass

from deployments.reconcile.states import Record
from placement.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Create the replica on its seats."""

    name: str
    model: str
    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Send the replica no new requests; it finishes what it has."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Take the requests off the replica now: to other replicas, or into the ingress where the model is held."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Delete the replica's application."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The ingress holds the model's requests, and announces a stall of about `stall_s`."""

    model: str
    stall_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The ingress sends on what it holds."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """Give the wish up and store `record`: from now on its `last_good` pools are wanted."""

    model: str
    record: Record
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountFailure:
    """Store `record`: one more attempt has failed."""

    model: str
    record: Record
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Store `record`: all is as wanted. Without `given_up` in it, that is the wish, which is now the last good one."""

    model: str
    record: Record
    reason: str


Step = Start | Drain | Move | Stop | Hold | Release | RollBack | CountFailure | Settle
