"""An autoscaler over a real control API with a fleet in memory, eyes and a policy that do as they are told."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from control_builders import MODEL, URL, WRITE, Bridge, MemoryFleet, fleet_view

from autoscaling.decision import Decision, Kind, Option, Price
from autoscaling.ledger.entries import Entry, Figures
from autoscaling.ledger.ledger import Ledger
from autoscaling.live.exported import Metrics
from autoscaling.live.fleet_client import FleetClient, Target
from autoscaling.live.loop import Autoscaler, Terms
from autoscaling.live.steward import Watched
from autoscaling.observation import Blind, Demand, Fleet, History, Observation, PoolLoad, Pools, pools_of, spelled
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from autoscaling.settings.settings import ApprovalSettings
from deployments.control.wire import ReplicaView, SeatView
from placement import Cluster, Lengths, Shape, Slo, cluster_of

START_S, TICK_S, WINDOW_S, SETTLE_S = 1_000_000.0, 15.0, 60.0, 120.0
SLO = Slo(ttft_s=1.0, tpot_s=0.05, percentile=0.95)
HARDWARE = cluster_of("dgx-h100")
APPROVAL = ApprovalSettings(expires_s=300, rejected_s=600)


def pools(text: str) -> Pools:
    """`pools("2 x tp2 + 1 x tp4")`."""
    parts = (part.split(" x ") for part in text.split(" + ") if part)
    return pools_of({Shape.parse(shape): int(replicas) for replicas, shape in parts})


TWO, WIDE = pools("2 x tp2"), pools("1 x tp4")


def wire(of: Pools) -> dict[str, int]:
    return {str(shape): replicas for shape, replicas in of.items()}


def demand(rate: float = 2.0) -> Demand:
    return Demand(
        requests_per_s=rate,
        input_tokens=Lengths(mean_tokens=500, spread=1),
        output_tokens=Lengths(mean_tokens=200, spread=1),
    )


def observation(at_s: float, fleet: Fleet, *, rate: float = 2.0, attainment: float | None = 0.99) -> Observation:
    nothing = np.zeros(0)
    return Observation(
        at_s=at_s,
        window_s=WINDOW_S,
        demand=demand(rate),
        history=History(
            step_s=60,
            end_s=at_s,
            requests_per_s=nothing,
            answered_per_s=nothing,
            input_tokens_per_s=nothing,
            output_tokens_per_s=nothing,
        ),
        pools=tuple(
            PoolLoad(
                shape=shape,
                replicas=replicas,
                running=8.0 * replicas,
                waiting=0,
                kv_usage=0.2,
                requests_per_s=rate * replicas / sum(fleet.serving.values()),
            )
            for shape, replicas in fleet.serving.items()
        ),
        fleet=fleet,
        ttft_s=0.3,
        tpot_s=0.03,
        attainment=attainment,
    )


def option(target: Pools, kind: Kind = "replicas", why: str = "it is cheapest") -> Option:
    return Option(kind=kind, pools=target, price=Price(attainment=0.98, gpu_s=1234.5, final_attainment=0.99), why=why)


def decision(target: Pools, kind: Kind = "replicas", at_s: float = START_S, **given: Any) -> Decision:
    return Decision(
        **{"at_s": at_s, "kind": kind, "cause": "cheapest", "target": target, "reason": f"for {spelled(target)}"}
        | given
    )


def entry(target: Pools, before: Pools, kind: Kind = "replicas", **given: Any) -> Entry:
    fields: dict[str, Any] = {
        "number": 1,
        "at_s": START_S,
        "model": MODEL,
        "mode": "auto",
        "version": 3,
        "before": before,
        "decision": decision(target, kind),
        "state": "acted",
        "since_s": START_S,
    }
    return Entry(**fields | given)


def replicas_of(wanted: Mapping[str, int], phase: Any = "serving") -> tuple[ReplicaView, ...]:
    """Replicas, all on the first node."""
    return tuple(
        ReplicaView(
            name=f"{shape}-{index}",
            shape=shape,
            phase=phase,
            in_phase_s=1,
            seats=(SeatView(rank=0, island="island-0", node="node-0", slot=0),),
            unfinished_requests=0,
        )
        for shape, count in wanted.items()
        for index in range(count)
    )


def story(entries: list[Entry]) -> list[tuple[str, str]]:
    """What was decided and what became of it, in order."""
    return [(entry.decision.cause, entry.state) for entry in entries]


@dataclass(slots=True)
class World:
    """What there is besides the autoscaler. `wanted` is what the policy says of each model, None for a hold."""

    directory: Path
    fleet: MemoryFleet
    now_s: float = START_S
    wanted: dict[str, Pools | None] = field(default_factory=dict)
    kind: Kind = "replicas"
    rules: Rules = field(default_factory=lambda: Rules(slo=SLO))
    hold_cause: Any = "cheapest"
    blind: str | None = None
    rate: float = 2.0
    attainment: Callable[[Pools], float] = lambda pools: 0.99
    predicted: Callable[[Pools], float] = lambda pools: 0.99
    factor: float | None = None
    failing: set[str] = field(default_factory=set)
    is_disk_full: bool = False
    before_asking: Callable[[], object] = lambda: None
    said: list[str] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)

    def decide(
        self, model: str, observed: Observation | Blind, memory: Memory, rules: Rules
    ) -> tuple[Decision, Memory]:
        self.memories.append(memory)
        if model in self.failing:
            raise RuntimeError("a mistake")
        if isinstance(observed, Blind):
            return decision({}, "hold", observed.at_s, cause="blind", reason=observed.why), memory
        memory = replace(memory, seen_s=observed.at_s)
        wanted, desired = self.wanted.get(model), observed.fleet.desired
        if rules.frozen or observed.fleet.changing or wanted in (None, desired):
            cause = "frozen" if rules.frozen else "changing" if observed.fleet.changing else self.hold_cause
            return decision(desired, "hold", observed.at_s, cause=cause), memory
        assert wanted is not None
        return decision(wanted, self.kind, observed.at_s, options=(option(wanted, self.kind),)), memory

    def serve(self, model: str = MODEL) -> None:
        """The fleet is as it is wanted."""
        view = self.fleet.views[model]
        wanted = dict(view.desired_pools)
        self.fleet.views[model] = view.model_copy(
            update={"repartition": None, "effective_pools": wanted, "replicas": replicas_of(wanted)}
        )

    @property
    def asked(self) -> list[dict[str, int]]:
        """Pools that the control API took, in order."""
        return [dict(one.after) for one in self.fleet.entries if one.outcome == "accepted"]


class _Advisor:
    def __init__(self, world: World, model: str) -> None:
        self._world, self._model = world, model

    def decide(
        self, observation: Observation | Blind, memory: Memory, rules: Rules, **given: object
    ) -> tuple[Decision, Memory]:
        return self._world.decide(self._model, observation, memory, rules)

    def figures(self, pools: Pools, demand: Demand, corrections: object) -> Figures:
        return Figures(requests_per_s=demand.requests_per_s, gpus=8, attainment=self._world.predicted(pools))

    def step_factor(self, pool: PoolLoad, demand: Demand) -> float | None:
        return self._world.factor


class _Control(FleetClient):
    """The client, and what happens just before it asks for pools."""

    def __init__(self, world: World) -> None:
        super().__init__(URL, WRITE, transport=Bridge(world.fleet))
        self._world = world

    def set_pools(self, model: str, target: Target) -> int:
        self._world.before_asking()
        return super().set_pools(model, target)


class Running:
    """One autoscaler of a world. Leave it like a process that dies leaves: what it has open is closed, no more."""

    def __init__(
        self,
        world: World,
        *,
        mode: Any = "auto",
        holder: str = "first",
        directory: Path | None = None,
        watched: Sequence[Watched] = (),
    ) -> None:
        self.world, self._stack = world, ExitStack()
        self.control = self._stack.enter_context(_Control(world))
        directory = directory or world.directory
        self.ledger = self._stack.enter_context(Ledger(directory))
        self.metrics = Metrics()
        self.autoscaler = Autoscaler(
            watched or [self._watched(model) for model in world.fleet.views],
            control=self.control,
            ledger=self.ledger,
            terms=Terms(
                mode=mode,
                approval=APPROVAL,
                directory=directory,
                settle_s=SETTLE_S,
                is_frozen=False,
                holder=holder,
                lease_ttl_s=60,
            ),
            now=lambda: world.now_s,
            say=world.said.append,
            metrics=self.metrics,
        )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exit: object) -> None:
        self._stack.close()

    def tick(self, times: int = 1, *, serving: bool = False) -> list[Entry]:
        """So many ticks; with `serving` each change is done at once. The entries after them."""
        for _ in range(times):
            self.world.now_s += TICK_S
            self.world.fleet.now_s += TICK_S
            self.autoscaler.tick()
            mistakes = [sentence for sentence in self.world.said if "this tick failed" in sentence]
            assert self.world.failing or self.world.is_disk_full or not mistakes, mistakes
            if serving:
                self.world.serve()
        return list(self.ledger.entries.values())

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"archipelago_autoscaler_{name}", labels)

    def _watched(self, model: str) -> Watched:
        world = self.world

        def observe(fleet: Fleet, now_s: float) -> Observation | Blind:
            if world.blind is not None:
                return Blind(at_s=now_s, kind="stale", why=world.blind)
            return observation(now_s, fleet, rate=world.rate, attainment=world.attainment(fleet.serving))

        def advisor(cluster: Cluster, shapes: frozenset[Shape]) -> _Advisor:
            return _Advisor(world, model)

        return Watched(model=model, rules=world.rules, hardware=HARDWARE, observe=observe, advisor=advisor)


def world(directory: Path, *models: str) -> World:
    """Each model with one tp2 that serves, on 8 GPUs of two nodes."""
    started = {"tp2": 1}
    views = [
        fleet_view(model, desired_pools=started, effective_pools=started, replicas=replicas_of(started))
        for model in models or (MODEL,)
    ]
    return World(directory=directory, fleet=MemoryFleet(*views))
