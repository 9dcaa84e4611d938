"""A control API over fleets in memory, and ways to speak with it, for the tests of `deployments.control`."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from deployments.control.api import control_app
from deployments.control.audit import entry_of
from deployments.control.client import ControlClient
from deployments.control.commands import add_fleet_commands
from deployments.control.contract import FleetUnavailableError
from deployments.control.events import EventLog
from deployments.control.gate import Caller, known_tokens
from deployments.control.leases import LeaseRecord, Leases
from deployments.control.refusals import Refusal, admit, does_not_fit, unknown_model
from deployments.control.wire import (
    Accepted,
    AuditEntry,
    ClusterView,
    EventPage,
    FleetView,
    ForecastStep,
    ForecastView,
    Lease,
    LeaseRequest,
    MetricsTarget,
    NodeView,
    Obstacle,
    Overview,
    PoolsTarget,
    RepartitionView,
    ReplicaView,
    SeatView,
)
from placement import Shape

URL = "http://control.test"
MODEL = "acme/tiny"  # with a slash, as most names on the hub
READ, WRITE = "read-token", "write-token"
CALLERS = {READ: Caller(name="dashboard", role="read"), WRITE: Caller(name="alice", role="operate")}
GPUS = 8
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FIRST_NUMBER = 1000

REPLICA = ReplicaView(
    name="tiny-tp2pp2-0",
    shape="tp2pp2",
    phase="serving",
    in_phase_s=61.4,
    seats=tuple(
        SeatView(rank=rank, island=f"island-{rank // 2}", node=f"node-{rank // 2}", slot=rank % 2) for rank in range(4)
    ),
    unfinished_requests=7,
    tokens_per_s=123.4,
)
UNDER_WAY = RepartitionView(
    way="rolling", step=2, steps=5, doing="start tp4 on island-1", announced_stall_s=0.8, running_s=12
)


def fleet_view(model: str = MODEL, **changes: Any) -> FleetView:
    pools = {"tp2pp2": 1}
    view = FleetView(
        model=model,
        version=3,
        phase="steady",
        ingress=f"{model}--ingress--0",
        desired_pools=pools,
        effective_pools=pools,
        replicas=(REPLICA,),
    )
    return view.model_copy(update=changes)


def target(pools: dict[str, int], **changes: Any) -> PoolsTarget:
    return PoolsTarget(**{"pools": pools, "reason": "a test", **changes})


class MemoryLeases(dict[str, LeaseRecord]):
    """Leases that nobody else keeps."""

    @property
    def leases(self) -> dict[str, LeaseRecord]:
        return self

    def put_lease(self, record: LeaseRecord) -> None:
        self[record.name] = record

    def drop_lease(self, name: str) -> None:
        del self[name]


class MemoryFleet:
    """Fleets that only exist as views. `script` holds what happens before each next read; None is nothing."""

    def __init__(self, *views: FleetView) -> None:
        self.views = {view.model: view for view in views or (fleet_view(), fleet_view("other"))}
        self.log = EventLog(capacity=5, first_number=FIRST_NUMBER, now=lambda: START + timedelta(seconds=90))
        self.entries: list[AuditEntry] = []
        self.script: list[Callable[[], object] | None] = []
        self.is_away = False
        self.now_s = 0.0
        self.leases = Leases(MemoryLeases(), lambda: self.now_s, lambda text: self.log.add("", "lease", text))
        self.addresses = {MODEL: ("10.0.0.1:9000", "10.0.0.2:9000")}

    async def read(self) -> Overview:
        if self.is_away:
            raise FleetUnavailableError("The controller is starting again.")
        if self.script and (happening := self.script.pop(0)):
            happening()
        nodes = tuple(NodeView(name=f"node-{i}", island=f"island-{i}", gpus=4, free_gpus=2) for i in range(2))
        return Overview(cluster=ClusterView(nodes=nodes), fleets=tuple(self.views.values()))

    async def set_pools(self, model: str, target: PoolsTarget, who: str) -> Accepted | Refusal:
        current = self.views.get(model)
        answer = self._answer(model, target)
        if not target.dry_run:
            self.entries.append(entry_of(target, answer, who=who, at=START, model=model, current=current))
        return answer

    async def events(self, after: int | None, model: str | None, wait_s: float) -> EventPage:
        return await self.log.read(after, model, wait_s)

    async def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        return tuple(self.entries[-limit:])

    async def record(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    async def take_lease(self, name: str, request: LeaseRequest) -> Lease | Refusal:
        return self.leases.take(name, request)

    async def give_back_lease(self, name: str, holder: str) -> Refusal | None:
        return self.leases.give_back(name, holder)

    async def metrics_targets(self) -> tuple[MetricsTarget, ...]:
        return tuple(MetricsTarget(targets=found, labels={"model": model}) for model, found in self.addresses.items())

    def change(self, **changes: Any) -> None:
        """Change the view of MODEL."""
        self.views[MODEL] = self.views[MODEL].model_copy(update=changes)

    def _answer(self, model: str, target: PoolsTarget) -> Accepted | Refusal:
        current = self.views.get(model)
        if current is None:
            return unknown_model(model, list(self.views))
        change = self.leases.missed(target.lease) or admit(target, current)
        if isinstance(change, Refusal):
            return change
        if not change:
            return Accepted(version=current.version, changed=False, forecast=ForecastView(way=None))
        forecast = _forecast(target)
        if target.dry_run:
            return Accepted(version=current.version, changed=forecast.infeasible is None, forecast=forecast)
        if forecast.infeasible is not None:
            return does_not_fit(target, current, forecast.infeasible)
        version = current.version + 1
        changes = {"version": version, "desired_pools": target.pools, "repartition": UNDER_WAY}
        self.views[model] = current.model_copy(update=changes)
        self.log.add(model, "target", f"{target.reason} ({version})")
        return Accepted(version=version, changed=True, forecast=forecast)


def _forecast(target: PoolsTarget) -> ForecastView:
    gpus = sum(Shape.parse(shape).gpus * replicas for shape, replicas in target.pools.items())
    if gpus > GPUS:
        return ForecastView(
            way=None, infeasible=Obstacle(constraint=f"it needs {gpus} GPUs; there are {GPUS}", nearest="tp4, twice")
        )
    steps = (
        ForecastStep(at_s=0, step="start", what="tp4 on island-1", reason="2 GPUs are free there"),
        ForecastStep(at_s=31.5, step="drain", what="tiny-tp2pp2-0", reason="tp4 serves"),
    )
    return ForecastView(way=target.way or "surge", timeline=steps, stall_s=0.8, gpus_needed=gpus + 4)


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 4096):
        yield body[start : start + 4096]


class Bridge(httpx.BaseTransport):
    """Carries requests of a client that blocks to the application, all in one event loop of its own."""

    def __init__(self, fleet: MemoryFleet) -> None:
        self._runner = asyncio.Runner()
        self._app = httpx.ASGITransport(control_app(fleet, known_tokens(CALLERS)), raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._runner.run(self._handle(request))

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        request = httpx.Request(request.method, request.url, headers=request.headers, content=_chunks(request.read()))
        response = await self._app.handle_async_request(request)
        return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

    def close(self) -> None:
        self._runner.close()


def raw_client(fleet: MemoryFleet, token: str | None = WRITE) -> httpx.Client:
    """Speaks HTTP with the control API of `fleet`."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(transport=Bridge(fleet), base_url=URL, headers=headers)


@pytest.fixture
def fleet() -> MemoryFleet:
    return MemoryFleet()


@pytest.fixture
def http(fleet: MemoryFleet) -> Iterator[httpx.Client]:
    with raw_client(fleet) as client:
        yield client


def control_client(fleet: MemoryFleet, token: str = WRITE) -> ControlClient:
    return ControlClient(URL, token, transport=Bridge(fleet))


Ran = tuple[int, str, str]
Run = Callable[..., Ran]


def ran(capsys: pytest.CaptureFixture[str], fleet: MemoryFleet, *argv: str, token: str = WRITE) -> Ran:
    """Runs a command against `fleet`; returns its exit code, output and errors."""
    parser = argparse.ArgumentParser(prog="archipelago")
    add_fleet_commands(parser.add_subparsers(required=True), lambda: control_client(fleet, token))
    try:
        arguments = parser.parse_args(argv)
        code = arguments.run(arguments)
    except SystemExit as end:  # how argparse ends
        code = int(end.code or 0)
    output, errors = capsys.readouterr()
    return code, output, errors


def rows(output: str) -> list[list[str]]:
    """The cells of the tables."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def reached(fleet: MemoryFleet, pools: dict[str, int]) -> None:
    fleet.log.add(MODEL, "reached", "it serves")
    fleet.change(repartition=None, effective_pools=pools)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  (what is waited for has no event)
        await asyncio.sleep(0)
