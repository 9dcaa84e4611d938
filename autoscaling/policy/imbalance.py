"""A queue at one replica while the others have room: what waits there is answered by no other, old or new.

Requests go to another replica only when theirs drains or is lost. So such a queue is no demand for more replicas, and
says nothing against the model of the shape: something is wrong with that replica, or with how requests are sent to it.
"""

from dataclasses import dataclass

from autoscaling.observation import Observation, PoolLoad, ReplicaLoad
from placement import Shape

USUAL_WAITING = 0.1  # of the running requests: what waits for the next step is no backlog
_MANY = 8.0  # requests; fewer wait by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Imbalance:
    """The replica on which most of `waiting` requests wait, and its shape."""

    shape: Shape
    load: ReplicaLoad
    waiting: float


def imbalance(observation: Observation) -> Imbalance | None:
    """The one replica with a queue; None where several have one, or all know too little of each other."""
    pools = [pool for pool in observation.pools if pool.each]
    if sum(len(pool.each) for pool in pools) < 2:
        return None
    pool, fullest = max(((pool, _fullest(pool)) for pool in pools), key=lambda one: one[1].waiting)
    others = [load for pool in pools for load in pool.each if load is not fullest]
    if fullest.waiting < _MANY or any(_has_queue(load) for load in others) or not _has_queue(fullest):
        return None
    waiting = fullest.waiting + sum(load.waiting for load in others)
    return Imbalance(shape=pool.shape, load=fullest, waiting=waiting)


def _fullest(pool: PoolLoad) -> ReplicaLoad:
    return max(pool.each, key=lambda load: load.waiting)


def _has_queue(load: ReplicaLoad) -> bool:
    return load.waiting > USUAL_WAITING * load.running
