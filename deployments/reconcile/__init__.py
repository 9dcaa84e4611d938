"""Brings the fleets that are to what is wanted of them, step by step. Pure: no Ray, no clock, no network.

    replicas as found ----> Actual ---+
    GPUs that are alive --> Cluster --+--> next_steps --> Next(steps, blocked) --> the controller acts, and looks again
    set pools ------------> Desired --+                        |
      | wanted: rolled back?    ^                              +--> RollBack, CountFailure, Settle: stored as Record
      | survive: hardware lost? |
      +-------------------------+

    Start --> STARTING --> SERVING --Drain--> DRAINING --Move (time is up)--> MOVING --Stop (no requests)--> STOPPING
                  |                                                             ^
                  +--> FAILED --Stop                    SERVING --Move (swap, node lost)

    A replica that drains is neither moved nor stopped while what was to take over is broken. One whose node will go
    serves until another does, then drains; it is moved when there is just time for that. One whose requests cannot
    move is waited for, unless the model is held: then for `Limits.move_timeout_s`, since everybody else waits too.

Nothing is remembered between two looks but what `Actual` says, so the controller may crash at any moment. `forecast`
answers "what would happen" by looping `next_steps` in a simulated world.

Partitioning (a replica of another shape) and replication (more or fewer replicas of a shape) take the same steps; only
what is missing and what is too many differs.
"""

from deployments.reconcile.forecast import Forecast, Timed, forecast
from deployments.reconcile.losses import Adjusted, survive
from deployments.reconcile.reconciler import Next, is_owed, next_steps
from deployments.reconcile.simulation import World, carry_out, simulate, wait
from deployments.reconcile.states import (
    Actual,
    Desired,
    Durations,
    Leaving,
    Limits,
    Phase,
    Pool,
    Pools,
    Record,
    ReplicaState,
    Way,
    count_shapes,
    name_pools,
    wanted,
    without_nodes,
)
from deployments.reconcile.steps import (
    CountFailure,
    Drain,
    Hold,
    Move,
    Release,
    RollBack,
    Settle,
    Start,
    Step,
    Stop,
)

__all__ = [
    "Actual",
    "Adjusted",
    "CountFailure",
    "Desired",
    "Drain",
    "Durations",
    "Forecast",
    "Hold",
    "Leaving",
    "Limits",
    "Move",
    "Next",
    "Phase",
    "Pool",
    "Pools",
    "Record",
    "Release",
    "ReplicaState",
    "RollBack",
    "Settle",
    "Start",
    "Step",
    "Stop",
    "Timed",
    "Way",
    "World",
    "carry_out",
    "count_shapes",
    "forecast",
    "is_owed",
    "name_pools",
    "next_steps",
    "simulate",
    "survive",
    "wait",
    "wanted",
    "without_nodes",
]
