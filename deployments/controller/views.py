"""The controller's records and what it found, as the control API shows them. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deployments.control.wire import (
    ClusterView,
    FleetPhase,
    FleetView,
    ForecastStep,
    ForecastView,
    NodeView,
    Obstacle,
    RepartitionView,
    ReplicaPhase,
    ReplicaView,
    SeatView,
    Transitions,
)
from deployments.controller.observing import World
from deployments.controller.records import ModelRecord
from deployments.controller.standing import Standing
from deployments.reconcile import Forecast, Phase, Pool, Pools, ReplicaState, Step, count_shapes
from deployments.reconcile.steps import Drain, Hold, Move, Release, Start, Stop
from placement import Infeasible, Shape

UNNAMED_GPU = "GPU"  # what `islands.inventory` calls those without a label of Ray's
_PHASES: Mapping[Phase, ReplicaPhase] = {
    Phase.STARTING: "starting",
    Phase.SERVING: "serving",
    Phase.DRAINING: "draining",
    Phase.MOVING: "draining",
    Phase.STOPPING: "stopping",
    Phase.FAILED: "failed",
}


def wire_pools(pools: Pools) -> dict[str, int]:
    """Shape -> replicas."""
    return {str(shape): count for shape, count in count_shapes(pools).items()}


def pools_of(wire: Mapping[str, int]) -> Pools:
    """The other way round."""
    return tuple(Pool(shape=Shape.parse(text), replicas=replicas) for text, replicas in wire.items())


def cluster_view(world: World, replicas: Iterable[ReplicaState]) -> ClusterView:
    """The nodes, and how many of their GPUs nothing sits on."""
    taken = Counter(seat.node for replica in replicas for seat in replica.layout.seats)
    return ClusterView(
        nodes=tuple(
            NodeView(
                name=node.name,
                island=node.island,
                gpus=node.gpus,
                free_gpus=max(0, node.gpus - taken[node.name]),
                gpu=node.gpu.name if node.gpu.name != UNNAMED_GPU else None,
                gpu_memory_bytes=node.gpu.memory_bytes,
                draining=node.name in world.leaving,
                machine=node.machine or None,
            )
            for node in world.where.cluster.nodes
        )
    )


def fleet_view(
    record: ModelRecord, standing: Standing, replicas: Sequence[ReplicaState], speeds: Mapping[str, float], now_s: float
) -> FleetView:
    """One model's fleet; ``speeds`` are measured tokens a second by replica."""
    return FleetView(
        model=record.plan.model,
        version=record.desired.version,
        phase=phase_of(record, standing, replicas),
        ingress=record.former.ingress if record.former else record.ingress,
        next_ingress=record.ingress if record.former else None,
        desired_pools=wire_pools(record.desired.pools),
        effective_pools=wire_pools(standing.pools),
        shortfall=standing.shortfall,
        replicas=tuple(_replica_view(replica, speeds, now_s) for replica in replicas),
        repartition=_repartition(record, standing, replicas, now_s),
        start_s={str(shape): max(0.0, start_s) for shape, start_s in record.starts_s.items()},
        transitions=tuple(
            Transitions(way=way.value, outcome=outcome, count=count) for (way, outcome), count in standing.ended.items()
        ),
    )


def phase_of(record: ModelRecord, standing: Standing, replicas: Sequence[ReplicaState]) -> FleetPhase:
    """What a fleet is doing, in a word."""
    desired, effective = count_shapes(record.desired.pools), count_shapes(standing.pools)
    serving = count_shapes(Pool(shape=one.layout.shape, replicas=1) for one in replicas if one.phase is Phase.SERVING)
    if not desired and not replicas:
        return "stopped"
    if serving == effective and len(replicas) == serving.total():
        return "steady" if effective == desired else "degraded"
    if standing.is_stuck:  # no repartition: it would keep new targets out for ever
        return "degraded"
    if record.memory.about(record.desired.version).given_up:
        return "rolling-back"
    if record.memory.last_good is None:
        return "starting"
    if count_shapes(record.memory.last_good) != desired:
        return "repartitioning"
    return "degraded"


def _replica_view(replica: ReplicaState, speeds: Mapping[str, float], now_s: float) -> ReplicaView:
    return ReplicaView(
        name=replica.name,
        shape=str(replica.layout.shape),
        phase=_PHASES[replica.phase],
        in_phase_s=max(0.0, now_s - replica.since_s),
        seats=tuple(
            SeatView(rank=seat.rank, island=seat.island, node=seat.node, slot=seat.slot)
            for seat in replica.layout.seats
        ),
        unfinished_requests=replica.unfinished_requests or 0,
        tokens_per_s=speeds.get(replica.name),
        cause=replica.cause or None,
    )


def _repartition(
    record: ModelRecord, standing: Standing, replicas: Sequence[ReplicaState], now_s: float
) -> RepartitionView | None:
    if phase_of(record, standing, replicas) not in ("repartitioning", "rolling-back"):
        return None
    wanted = count_shapes(standing.pools)
    live = [one for one in replicas if one.phase in (Phase.STARTING, Phase.SERVING)]
    begun = (wanted & Counter(one.layout.shape for one in live)).total()
    going = len(replicas) - len(live)
    unsettled = [one for one in replicas if one.phase is not Phase.SERVING]
    doing = ", ".join(f"{one.name} is {one.phase}" for one in unsettled) or "the next step is about to begin"
    return RepartitionView(
        way=standing.way.value,
        step=begun + going,
        steps=wanted.total() + len(replicas) - begun,
        doing=doing,
        announced_stall_s=record.stall_s,
        running_s=max(0.0, now_s - record.changed_at_s),
        before=wire_pools(record.memory.last_good or ()),
    )


def forecast_view(forecast: Forecast) -> ForecastView:
    """A forecast for the wire."""
    return ForecastView(
        way=forecast.way.value if forecast.way else None,
        timeline=tuple(
            ForecastStep(at_s=timed.at_s, step=type(step).__name__.lower(), what=_what(step), reason=step.reason)
            for timed in forecast.timeline
            if isinstance(step := timed.step, Start | Drain | Move | Stop | Hold | Release)
        ),
        stall_s=forecast.stall_s,
        gpus_needed=forecast.gpus_needed,
        infeasible=obstacle(forecast.infeasible) if forecast.infeasible else None,
    )


def obstacle(infeasible: Infeasible) -> Obstacle:
    """What stands in the way, for the wire."""
    return Obstacle(constraint=infeasible.constraint, nearest=infeasible.nearest)


def _what(step: Step) -> str:
    match step:
        case Start(name=name, layout=layout):
            islands = ", ".join(sorted({seat.island for seat in layout.seats}))
            return f"{name} on {islands}"
        case Drain(name=name) | Move(name=name) | Stop(name=name):
            return name
        case Hold(model=model) | Release(model=model):
            return model
        case _:
            return ""
