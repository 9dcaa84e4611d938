"""Carries the reconciler's steps out: in the store, with Serve, and for the readers of events."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from deployments import fleet
from deployments.control.events import EventLog
from deployments.control.wire import EventKind, Outcome
from deployments.controller.records import Intent, ReplicaRecord, Store
from deployments.islands import Inventory
from deployments.reconcile import CountFailure, Drain, Hold, Move, Release, RollBack, Settle, Start, Step, Stop, Way


class Executor:
    """What is decided is stored before it is done, so that a controller that dies over it can be followed by another.

    ``ways`` are those of the changes under way; ``ended`` counts those that are over.
    """

    def __init__(self, store: Store, events: EventLog, secret: str, now: Callable[[], float]) -> None:
        self.ways: dict[str, Way] = {}
        self.ended: dict[str, Counter[tuple[Way, Outcome]]] = {}
        self._store = store
        self._events = events
        self._secret = secret
        self._now = now

    async def start(self, record: ReplicaRecord, where: Inventory) -> None:
        """Have Serve start a replica that is on record."""
        plan = self._store.models[record.model].plan
        await asyncio.to_thread(fleet.start_replica, plan, record.name, record.layout, where, self._secret)

    async def execute(self, step: Step, where: Inventory) -> None:
        """Do one step; ``where`` is the hardware it was decided for."""
        match step:
            case Start(name=name, model=model, layout=layout, reason=reason):
                self._events.add(model, "step", f"Start on {_islands(step)}. {reason}", replica=name)
                record = ReplicaRecord(name=name, model=model, layout=layout, since_s=self._now())
                self._store.begin_replica(record, next_index=int(name.rpartition("--")[2]) + 1)
                await self.start(record, where)
            case Drain(name=name, reason=reason):
                self._intend(name, Intent.DRAIN, f"Drain. {reason}")
            case Move(name=name, reason=reason):
                self._intend(name, Intent.MOVE, f"Move its requests. {reason}")
            case Stop(name=name, reason=reason):
                self._intend(name, Intent.STOP, f"Stop. {reason}")
                await asyncio.to_thread(fleet.delete, name)
            case Hold(model=model, stall_s=stall_s, reason=reason):
                self._change(model, "stall", reason, is_held=True, stall_s=stall_s)
            case Release(model=model, reason=reason):
                self._change(model, "stall", f"Requests go on. {reason}", is_held=False)
            case RollBack(model=model, record=memory, reason=reason):
                self._change(model, "rollback", reason, memory=memory)
            case CountFailure(model=model, record=memory, reason=reason):
                self._count(model, "failed")
                self._change(model, "failure", reason, memory=memory)
            case Settle(model=model, record=memory, reason=reason):
                outcome: Literal["rolled-back", "reached"] = "rolled-back" if memory.given_up else "reached"
                self._count(model, outcome)
                self._change(model, outcome, reason, memory=memory, stall_s=0.0)

    def forget(self, model: str) -> None:
        """Keep nothing of a model that has gone."""
        self.ways.pop(model, None)
        self.ended.pop(model, None)

    def _count(self, model: str, outcome: Outcome) -> None:
        self.ended.setdefault(model, Counter())[self.ways.get(model, Way.SURGE), outcome] += 1

    def _intend(self, name: str, intent: Intent, text: str) -> None:
        self._store.intend(name, intent, self._now())
        self._events.add(self._store.replicas[name].model, "step", text, replica=name)

    def _change(self, model: str, kind: EventKind, text: str, **changes: object) -> None:
        self._store.put_model(replace(self._store.models[model], **changes))  # type: ignore[arg-type]
        self._events.add(model, kind, text)


def _islands(step: Start) -> str:
    return ", ".join(sorted({seat.island for seat in step.layout.seats}))
