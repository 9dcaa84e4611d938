"""Losses amid a repartition: the moments in which something dies, and what clients are told meanwhile."""

import signal
from collections.abc import Callable, Sequence
from typing import Any

import live_streams
import psutil
from moving_streams import Answer
from running_system import Deployed, until
from simulated_fleet import System, names_of, settled, when, when_busy

from deployments.control.wire import FleetView, Limits, PoolsTarget

Moment = Callable[[FleetView], bool]
Victim = Callable[[set[str]], psutil.Process]  # chooses a process, given the replicas that have been begun
SETTLED_S = 240


def any_is(phase: str) -> Moment:
    """One replica is in this phase."""
    return lambda view: any(replica.phase == phase for replica in view.replicas)


def moves(view: FleetView) -> bool:
    """Its requests are on their way to another replica, or wait for one."""
    return view.repartition is not None and " is moving" in view.repartition.doing


SHORT_DRAIN = {"limits": Limits(drain_timeout_s=0.5)}
SWAP = {"way": "swap"}
MOMENTS: dict[str, tuple[Moment, dict[str, Any]]] = {
    "starting": (any_is("starting"), {}),
    "draining": (any_is("draining"), {}),
    "moving": (moves, SHORT_DRAIN),
    "stopping": (any_is("stopping"), {}),
    "moving-into-the-ingress": (moves, SWAP),
    "stopping-while-held": (any_is("stopping"), SWAP),
    "starting-while-held": (any_is("starting"), SWAP),
}


def lose_amid(
    deployed: Deployed,
    wanted: str,
    moment: str,
    victim: Victim,
    requests: Sequence[dict[str, Any]],
    by: signal.Signals = signal.SIGKILL,
) -> tuple[list[list[Answer]], set[str]]:
    """Cut a fleet of one replica to the shape ``wanted``, and lose a process at this moment of it.

    Returns when ``wanted`` serves: all answers to each request, and the replicas that had been begun before the loss.
    """
    before = names_of(deployed.view())
    is_time, target = MOMENTS[moment]
    begun: set[str] = set()

    def repartition() -> None:
        when_busy(deployed)
        accepted = deployed.control.set_pools(deployed.model, PoolsTarget(pools={wanted: 1}, reason="test", **target))
        begun.update(names_of(when(deployed, is_time, "the moment")) - before)
        lost = victim(begun)
        lost.send_signal(by)
        until(lambda: has_ended(lost), f"{lost} is dead")
        try:
            until(lambda: settled(deployed, accepted.version), f"{wanted} serves", timeout_s=SETTLED_S)
        except AssertionError as error:
            told = [
                f"{event.at} {event.replica or ''} {event.text}" for event in deployed.control.events().events[-40:]
            ]
            error.add_note("\n".join([repr(deployed.view()), *told]))
            raise

    return live_streams.during(deployed.url, requests, repartition), begun


def replica_process(system: System, names: set[str]) -> psutil.Process:
    """The process of the only one of these replicas."""
    (name,) = names
    return system.processes(f"ServeReplica:{name}:replica")[0]


def has_ended(process: psutil.Process) -> bool:
    """It runs no more, whether or not its parent has asked how it ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
