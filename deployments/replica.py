"""A replica: one sharded engine on its islands, as a Ray Serve deployment with a single actor.

The actor sits on rank 0's node, inside the placement group that Serve made from the layout. It starts the engine,
refuses to serve unless every rank is where the layout puts it, then carries batches in and steps out. When its engine
or a worker dies it exits: nothing inside vLLM recovers from that, and Serve restarts a dead actor (placement group
included) at once, while it would wait through several failed health checks of a live one.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.util import placement_group_table

from deployments.link import LEASE_S, Batch, Frames
from deployments.root_cause import root_cause
from deployments.verification import Found, verify
from placement import Layout

DRAIN_POLL_S = 0.05

log = logging.getLogger("ray.serve")


class EngineStartError(Exception):
    """vLLM could not start the engine; the message is its root cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """All that one replica needs to start. ``node_names`` maps Ray node ids to the names used in the layout."""

    name: str
    model: str
    layout: Layout
    engine_args: Mapping[str, Any]
    node_names: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What a running replica says of itself: the layout it was given and where it is now."""

    layout: Layout
    found: Found
    node_names: Mapping[str, str]
    unfinished_requests: int


class Replica:
    """The Serve deployment class; one per replica, in an application of its own."""

    async def __init__(self, plan: ReplicaPlan) -> None:  # type: ignore[misc]  # Serve awaits it: the engine needs its loop
        # Here and not above: the command line imports this module, and vLLM takes seconds to import.
        from deployments.engine import ShardedEngine, shard_config

        started_s = time.monotonic()
        self._plan = plan
        placement_group = ray.util.get_current_placement_group()
        if placement_group is None:
            raise RuntimeError(f"replica {plan.name} was started outside a placement group")
        self._placement_group = placement_group
        config = shard_config(plan.model, plan.engine_args, plan.layout.shape, self._placement_group)
        try:
            self._engine = ShardedEngine(config)
        except RuntimeError as error:
            raise EngineStartError(root_cause(own_output_lines()) or str(error)) from error
        found = await self._whereabouts()
        await self._engine.unlink_shared_memory()
        verify(plan.layout, found, plan.node_names)
        self._worker_actor_ids = [worker.ray_actor_id for worker in found.workers]
        self._outboxes: dict[str, asyncio.Queue[Frames | None]] = {}
        self._last_heard_s: dict[str, float] = {}
        self._pump_task = asyncio.create_task(self._pump())
        log.info("replica %s is ready after %.1f s", plan.name, time.monotonic() - started_s)

    async def steps(self, ingress: str) -> AsyncIterator[Frames]:
        """Stream to one ingress: an empty message at once, then one message per engine step that concerns it."""
        await self._drop(ingress)  # what a stream that broke has left: the ingress has given it up
        outbox: asyncio.Queue[Frames | None] = asyncio.Queue()
        self._outboxes[ingress] = outbox
        self._last_heard_s[ingress] = time.monotonic()
        yield []
        while (frames := await outbox.get()) is not None:
            yield frames

    async def submit(self, ingress: str, batch: Batch) -> None:
        """Take requests and aborts of one ingress, in that order, and renew its lease."""
        self._last_heard_s[ingress] = time.monotonic()
        for frames in batch.requests:
            await self._engine.submit(ingress, frames)
        if batch.aborts:
            await self._engine.abort(batch.aborts)

    async def _whereabouts(self) -> Found:
        """Where this replica really is, asked of Ray and of the workers now."""
        table = placement_group_table(self._placement_group)["bundles_to_node_id"]
        return Found(
            replica_node=ray.get_runtime_context().get_node_id(),
            bundle_nodes=tuple(table[index] for index in sorted(table)),
            workers=await self._engine.whereabouts(),
        )

    async def report(self) -> ReplicaReport:
        """For `archipelago status`: the truth, not the plan."""
        return ReplicaReport(
            layout=self._plan.layout,
            found=await self._whereabouts(),
            node_names=self._plan.node_names,
            unfinished_requests=self._engine.unfinished_requests,
        )

    async def drain(self, timeout_s: float) -> int:
        """Wait until nothing is running, then end all streams; return how many requests were cut off."""
        deadline_s = time.monotonic() + timeout_s
        while self._engine.unfinished_requests and time.monotonic() < deadline_s:  # noqa: ASYNC110  (has no event)
            await asyncio.sleep(DRAIN_POLL_S)
        for outbox in self._outboxes.values():
            outbox.put_nowait(None)
        return self._engine.unfinished_requests

    async def check_health(self) -> None:
        """Serve calls this every few seconds: die with the engine, and drop what belongs to ingresses that have gone.

        vLLM reports a dead worker only after the step times out when the output rank is on another node
        (MessageQueue.recv is not interrupted), so the actors' states are read from Ray.
        """
        if self._engine.is_dead or any(is_actor_dead(actor_id) for actor_id in self._worker_actor_ids):
            self._die("the engine or one of its workers has died")
        silent_since_s = time.monotonic() - LEASE_S
        for ingress in [name for name, heard_s in self._last_heard_s.items() if heard_s < silent_since_s]:
            log.warning("replica %s: ingress %s has gone; its requests are dropped", self._plan.name, ingress)
            await self._drop(ingress)

    async def _drop(self, ingress: str) -> None:
        self._last_heard_s.pop(ingress, None)
        outbox = self._outboxes.pop(ingress, None)
        if outbox is not None:
            outbox.put_nowait(None)
        await self._engine.abort_all_of(ingress)

    async def _pump(self) -> None:
        try:
            while True:
                for ingress, frames in (await self._engine.next_step()).items():
                    if ingress in self._outboxes:
                        self._outboxes[ingress].put_nowait(frames)
        except Exception as error:  # noqa: BLE001  whatever it was: without the pump nobody is served
            self._die(f"no more steps from the engine: {error!r}")

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
