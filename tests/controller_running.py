"""The controller's reconciler over a Serve in memory, turn by turn."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from controller_builders import MODEL, Crash, MemoryObserver, MemoryServe, model_record
from reconcile_builders import pools_of

from deployments.control.events import EventLog
from deployments.controller import executing, observing, reconciling, records
from deployments.controller.reconciling import Reconciler
from deployments.controller.records import Store
from deployments.membership import IngressReport, Member, Membership


class Controller:
    """One controller after the other over the same Serve."""

    def __init__(self, serve: MemoryServe, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (executing, observing, reconciling):
            monkeypatch.setattr(module, "fleet", serve)
        monkeypatch.setattr(records, "internal_kv", serve)
        self.serve = serve
        self.told: list[str] = []
        self.crashes = 0
        self.unfinished = 0  # requests that the ingresses tell of
        self.staying: set[str] = set()  # ingresses that still have a client when they are to leave
        self.unconnected: set[str] = set()  # ingresses that reach no replica
        self.begin()

    def begin(self) -> None:
        """A new process: all that it knows is what was stored."""
        self.events = EventLog(capacity=10_000, first_number=1, now=lambda: datetime.now(UTC))
        self.reconciler = Reconciler(
            Store(),
            MemoryObserver(self.serve),
            self.events,
            "secret",
            lambda model: self.unfinished,
            self.heard,
            now=lambda: self.serve.now_s,
        )
        self.store = self.reconciler.store

    def heard(self, model: str) -> list[IngressReport]:
        """What one process of each ingress that runs says."""
        told = self.reconciler.memberships.get(model, Membership())
        names = [name for name, app in self.serve.applications().items() if self.serve.is_running(app)]
        return [
            IngressReport(
                ingress=f"process-of-{name}",
                connected=frozenset(() if name in self.unconnected else (one.replica for one in told.members)),
                unfinished_requests=0,
                held_requests=0,
                decode_tokens_per_s={},
                application=name,
                has_left=name in told.leaving_ingresses - self.staying,
            )
            for name in names
            if self.store.models[model].plan.is_ingress(name)
        ]

    def turn(self) -> bool:
        """One turn, and a second; a controller that dies in it is followed by another one."""
        try:
            return asyncio.run(self.reconciler.turn())
        except Crash:
            self.crashes += 1
            self.begin()
            return True
        finally:
            self.serve.tick()

    def settle(self, turns: int = 300) -> None:
        """Go on until there is nothing to do, for some turns running: stopped applications take a while to go."""
        still = 0
        for _ in range(turns):
            still = 0 if self.turn() else still + 1
            if still == 3:
                return
        raise AssertionError(f"not settled after {turns} turns: {self.texts()[-10:]}")

    def ask(self, pools: str, **changes: Any) -> None:
        """Want other pools of the model."""
        record = self.store.models[MODEL]
        desired = replace(
            record.desired, pools=pools_of(pools), version=record.desired.version + 1, **{"way": None} | changes
        )
        self.store.put_model(replace(record, desired=desired))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events.page(None, None).events]

    def texts(self, *kinds: str) -> list[str]:
        events = self.events.page(None, None).events
        return [event.text for event in events if not kinds or event.kind in kinds]

    def phases(self) -> dict[str, str]:
        return {one.name.rpartition("--")[2]: one.phase.value for one in self.reconciler.replicas}


Begin = Callable[..., Controller]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A controller that has been asked for pools, before its first turn."""

    def begin(pools: str, serve: MemoryServe | None = None, **changes: object) -> Controller:
        controller = Controller(serve or MemoryServe(), monkeypatch)
        controller.store.put_model(model_record(pools, **changes))
        return controller

    return begin


def membership(controller: Controller) -> Membership:
    return controller.reconciler.memberships[MODEL]


def members(controller: Controller) -> dict[str, Member]:
    """By the number at the end of the name."""
    return {member.replica.rpartition("--")[2]: member for member in membership(controller).members}


def check_nothing_is_left_over(controller: Controller) -> None:
    """Serve has exactly what is on record, nothing was started twice, and a new process finds the same."""
    serve, store = controller.serve, controller.store
    answering = {record.ingress for record in store.models.values()}
    assert serve.applications().keys() == store.replicas.keys() | answering
    assert len(serve.started) == len(set(serve.started))
    found = Store()
    assert (found.models, found.replicas, found.next_index) == (store.models, store.replicas, store.next_index)
