"""A replica: one sharded engine on its islands, as a Ray Serve deployment with a single actor.

The actor sits on rank 0's node, inside the placement group that Serve made from the layout. It starts the engine,
refuses to serve unless every rank is where the layout puts it, then lets ingresses connect. When its engine or a worker
dies, or no step comes for too long, it exits: nothing inside vLLM recovers from that, and Serve restarts a dead actor
(placement group included) at once, while it would wait through several failed health checks of a live one.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private.state import actors
from ray.util import placement_group_table

from deployments.access.ray_tls import listening_context
from deployments.config import SimulatedEngineConfig
from deployments.ingress_server import IngressServer
from deployments.root_cause import root_cause
from deployments.serve_log import serve_log_kept
from deployments.telemetry.replica_spans import replica_spans
from deployments.verification import Found, verify
from placement import Layout, ModelSpec

if TYPE_CHECKING:
    from deployments.engine import ShardedEngine
    from deployments.simulated_engine import SimulatedEngine

WATCH_PERIOD_S = 1.0

log = logging.getLogger("ray.serve")


class EngineStartError(Exception):
    """vLLM could not start the engine; the message is its root cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """All that one replica needs to start.

    ``node_names`` maps Ray node ids to the names used in the layout. ``secret`` is what ingresses must know. With
    ``simulated`` (and then ``spec``, the model's sizes) no model runs.
    """

    name: str
    model: str
    layout: Layout
    engine_args: Mapping[str, Any] = field(repr=False)  # a token of the hub may be among them
    node_names: Mapping[str, str]
    secret: str = field(repr=False)
    step_timeout_s: float
    otlp_endpoint: str | None = None
    simulated: SimulatedEngineConfig | None = None
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What a running replica says of itself: the layout it was given, where it is now, and where it listens."""

    layout: Layout
    found: Found
    node_names: Mapping[str, str]
    host: str
    port: int
    unfinished_requests: int
    max_running: int
    kv_tokens: int | None


class Replica:
    """The Serve deployment class; one per replica, in an application of its own."""

    async def __init__(self, plan: ReplicaPlan) -> None:  # type: ignore[misc]  # Serve awaits it: the engine needs its loop
        started_s = time.monotonic()
        self._plan = plan
        tls = listening_context(os.environ)  # before a model is loaded, which takes minutes
        placement_group = ray.util.get_current_placement_group()
        if placement_group is None:
            raise RuntimeError(f"replica {plan.name} was started outside a placement group")
        self._placement_group = placement_group
        with serve_log_kept():
            self._engine = self._start_engine()
        self._engine.spans = replica_spans(
            plan.otlp_endpoint, plan.name, str(plan.layout.shape), plan.model, time.time_ns
        )
        self._found = await self._whereabouts()
        await self._engine.prepare()
        verify(plan.layout, self._found, plan.node_names)
        self._worker_actor_ids = [worker.ray_actor_id for worker in self._found.workers]
        self._ingresses = IngressServer(self._engine, plan.secret, tls)
        self._host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._port = await self._ingresses.listen(self._host)
        self._tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._watch())]
        log.info("replica %s is ready after %.1f s", plan.name, time.monotonic() - started_s)

    def _start_engine(self) -> "ShardedEngine | SimulatedEngine":
        # Imported here and not above: the command line imports this module, and vLLM takes seconds to import.
        plan = self._plan
        if plan.simulated is not None and plan.spec is not None:
            from deployments.simulated_engine import simulated_engine

            return simulated_engine(
                plan.spec,
                plan.layout,
                plan.simulated,
                plan.engine_args,
                bundle_nodes=self._bundle_nodes(),
                actor_id=ray.get_runtime_context().get_actor_id() or "",
            )
        from deployments.engine import ShardedEngine, shard_config

        config = shard_config(plan.model, plan.engine_args, plan.layout.shape, self._placement_group)
        try:
            return ShardedEngine(config)
        except RuntimeError as error:
            raise EngineStartError(root_cause(own_output_lines()) or str(error)) from error

    def _bundle_nodes(self) -> tuple[str, ...]:
        """Ray ids of the nodes of the placement group's bundles, in order."""
        table = placement_group_table(self._placement_group)["bundles_to_node_id"]
        return tuple(table[index] for index in sorted(table))

    async def _whereabouts(self) -> Found:
        """Where this replica really is, asked of Ray and of the workers now."""
        return Found(
            replica_node=ray.get_runtime_context().get_node_id(),
            bundle_nodes=self._bundle_nodes(),
            workers=await self._engine.whereabouts(),
        )

    async def report(self, *, fresh: bool = True) -> ReplicaReport:
        """The truth, not the plan: asked of every worker now, or (not ``fresh``) as it was at the start."""
        return ReplicaReport(
            layout=self._plan.layout,
            found=await self._whereabouts() if fresh else self._found,
            node_names=self._plan.node_names,
            host=self._host,
            port=self._port,
            unfinished_requests=self._engine.unfinished_requests,
            max_running=self._engine.max_running,
            kv_tokens=self._engine.kv_tokens,
        )

    async def _pump(self) -> None:
        try:
            while True:
                self._ingresses.deliver(await self._engine.next_step())
        except Exception as error:  # noqa: BLE001  whatever it was: without the pump nobody is served
            self._die(f"no more steps from the engine: {error!r}")

    async def _watch(self) -> None:
        """Die with the engine.

        vLLM reports a dead worker only after the step times out when the output rank is on another node
        (MessageQueue.recv is not interrupted), so the actors' states are read from Ray. A worker that hangs shows only
        in the steps that do not come.
        """
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self._engine.is_dead:
                self._die("the engine has died")
            states = await asyncio.to_thread(lambda: [is_actor_dead(actor_id) for actor_id in self._worker_actor_ids])
            if any(states):
                self._die("a worker has died")
            stalled_s = self._engine.stalled_s(time.monotonic())
            if stalled_s > self._plan.step_timeout_s:
                self._die(f"no step for {stalled_s:.0f} s (limits.step_timeout_s = {self._plan.step_timeout_s:g})")

    def _die(self, reason: str) -> None:
        log.error("replica %s exits: %s", self._plan.name, reason)
        logging.shutdown()
        os._exit(1)


def own_output_lines() -> list[str]:
    """What this process and its children have printed, which Ray writes to a file."""
    path = Path("/proc/self/fd/1").readlink()
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def is_actor_dead(actor_id: str) -> bool:
    """Ask Ray's GCS. (``ray.util.state.get_actor`` would need the dashboard, which a small cluster runs without.)"""
    return bool(actors(actor_id).get("State") == "DEAD")
