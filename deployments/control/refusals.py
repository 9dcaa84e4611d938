"""Why a target is not taken, as data, and the checks that need nothing but the target and the fleet as it is. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from deployments.config_messages import shown
from deployments.control.values import Pools
from deployments.control.wire import FleetView, Lease, LeaseClaim, Obstacle, PoolsTarget

RefusalKind = Literal["unknown-model", "stale-version", "busy", "does-not-fit", "lease-held", "lease-lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A target that is not taken, or a lease that is not given: nothing was done. `sentence` is for people."""

    kind: RefusalKind
    sentence: str
    current: FleetView | None = None
    known_models: tuple[str, ...] | None = None
    obstacle: Obstacle | None = None
    lease: Lease | None = None


def admit(target: PoolsTarget, current: FleetView) -> Refusal | bool:
    """Whether `target` would change the fleet, or why it is not taken.

    A target whose pools are wanted already is no change, even with an old version: the sender may only be repeating a
    request whose answer was lost. Way and limits say how to get there, so they alone are no change either. But what was
    given up may be asked for once more, by who says so. A target of the pools of before ends what is under way, and so
    does the removal of the model.
    """
    if target.pools == current.desired_pools and not (target.retry and current.phase == "degraded"):
        return False
    if target.if_version is not None and target.if_version != current.version:
        return Refusal(
            kind="stale-version",
            sentence=f"if_version: {target.if_version} is not the version of {current.model} any more; it is "
            f"{current.version}, with {named(current.desired_pools)}. Read the fleet and decide again.",
            current=current,
        )
    if current.repartition is not None and target.pools not in ({}, current.repartition.before):
        return Refusal(
            kind="busy",
            sentence=f"pools: {named(target.pools)} is not accepted while {current.model} is repartitioned to "
            f"{named(current.desired_pools)}; wait until that is done, or give the pools of before to go back: "
            f"{named(current.repartition.before)}.",
            current=current,
        )
    return True


def unknown_model(model: str, known: Sequence[str]) -> Refusal:
    """There is no such model to read or to change."""
    close = get_close_matches(model, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(known)}." if known else "none is served."
    return Refusal(
        kind="unknown-model", sentence=f"model: {shown(model)} is not known; {hint}", known_models=tuple(known)
    )


def does_not_fit(target: PoolsTarget, current: FleetView, obstacle: Obstacle) -> Refusal:
    """The hardware, the model or the limits do not allow the target."""
    sentence = f"pools: {named(target.pools)} does not fit: {obstacle}"
    return Refusal(kind="does-not-fit", sentence=sentence, current=current, obstacle=obstacle)


def lease_held(name: str, lease: Lease) -> Refusal:
    """Somebody else has the lease."""
    sentence = f"lease: {name} is held by {lease.holder} for another {lease.expires_in_s:.0f} s; wait for it."
    return Refusal(kind="lease-held", sentence=sentence, lease=lease)


def lease_lost(claim: LeaseClaim, lease: Lease | None) -> Refusal:
    """A target came under a lease that its sender has not, or has no longer."""
    instead = f"{lease.holder} has it for another {lease.expires_in_s:.0f} s" if lease else "nobody has it"
    sentence = f"lease: {claim.holder} does not hold {claim.name}; {instead}. Get the lease and decide again."
    return Refusal(kind="lease-lost", sentence=sentence, lease=lease)


def named(pools: Pools) -> str:
    """Pools in words: "2 x tp2, 1 x tp4"."""
    return ", ".join(f"{replicas} x {shape}" for shape, replicas in pools.items()) or "no pools"
