"""The controller as launcher, ingresses and users of the control API meet it, over a Serve in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from controller_builders import MODEL, MemoryObserver, MemoryServe, model_record

from deployments.control.client import ControlClient, ControlError
from deployments.control.gate import Caller
from deployments.control.leases import Leases
from deployments.control.wire import Accepted, LeaseClaim, PoolsTarget
from deployments.controller import actor, executing, observing, reconciling, records
from deployments.controller.actor import FleetController
from deployments.controller.records import Settings, Store
from deployments.controller.targets import Targets
from deployments.local_cluster import free_port
from deployments.membership import IngressReport

TOKEN = "s3cret"
DEADLINE_S = 20.0
Body = Callable[[FleetController, ControlClient, MemoryServe], Awaitable[None]]


def report(ingress: str = "a", *, unfinished: int = 0, **speeds: float) -> IngressReport:
    return IngressReport(
        ingress=ingress,
        connected=frozenset(),
        unfinished_requests=unfinished,
        held_requests=0,
        decode_tokens_per_s=speeds,
    )


@asynccontextmanager
async def controller(settings: Settings) -> AsyncIterator[FleetController]:
    """As Ray makes it, and without what it has begun when the test ends."""
    one = FleetController.__new__(FleetController)
    await FleetController.__init__(one, settings)  # type: ignore[misc]
    try:
        yield one
    finally:
        for task in one._tasks:
            task.cancel()
        await asyncio.gather(*one._tasks, return_exceptions=True)


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Body], None]:
    """Runs something with a controller, a client of its control API, and the Serve under it."""

    def meet(body: Body) -> None:
        serve = MemoryServe(now_s=time.time())
        for module in (actor, executing, observing, reconciling):
            monkeypatch.setattr(module, "fleet", serve)
        monkeypatch.setattr(records, "internal_kv", serve)
        monkeypatch.setattr(actor, "Observer", lambda look: MemoryObserver(serve))
        monkeypatch.setattr(actor, "BUSY_PERIOD_S", 0.01)
        monkeypatch.setattr(actor, "IDLE_PERIOD_S", 0.01)
        settings = Settings(
            secret="between us",
            tokens={TOKEN: Caller(name="operator", role="operate")},
            host="127.0.0.1",
            port=free_port(),
            gpu_memory_bytes=2**30,
            state_dir=str(tmp_path / "on" / "another" / "machine"),
        )

        async def run() -> None:
            async with controller(settings) as one, asyncio.timeout(DEADLINE_S):
                with ControlClient(f"http://127.0.0.1:{settings.port}", TOKEN) as client:
                    await body(one, client, serve)

        asyncio.run(run())

    return meet


async def until(serve: MemoryServe, is_so: Callable[[], Awaitable[bool]]) -> None:
    """Let time pass until something is so; the deadline of the test bounds it."""
    while not await is_so():
        serve.tick(0.5)
        await asyncio.sleep(0.01)


async def until_steady(one: FleetController, serve: MemoryServe, version: int) -> None:
    async def is_steady() -> bool:
        view = (await one.read()).fleet(MODEL)
        return view is not None and (view.phase, view.version) == ("steady", version)

    await until(serve, is_steady)


def test_a_model_is_served_cut_anew_and_ended(meet: Callable[[Body], None]) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        await one.serve(model_record("2 tp1"))
        await until_steady(one, serve, 1)
        assert set(await one.names(MODEL)) == set(serve.started)
        target = PoolsTarget(pools={"tp2": 1}, reason="a test")
        taken = await asyncio.to_thread(client.set_pools, MODEL, target)
        assert taken.version == 2
        await until_steady(one, serve, 2)
        assert serve.serving() == {"tp2": 1}
        (entry,) = await asyncio.to_thread(client.audit, 1)
        assert (entry.who, entry.outcome) == ("operator", "accepted")
        page = await asyncio.to_thread(client.events)
        assert "operator wants 1 x tp2: a test" in [event.text for event in page.events]
        await one.membership(MODEL, 0, report())
        await one.remove(MODEL)

        async def is_gone() -> bool:
            return await one.models() == ()

        await until(serve, is_gone)
        await one.forget_everything()
        assert (serve.values, serve.applications()) == ({}, {})

    meet(body)


def test_a_model_that_is_removed_over_the_api_goes_when_its_ingresses_have_told_their_clients(
    meet: Callable[[Body], None],
) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        await one.serve(model_record("1 tp1"))
        await until_steady(one, serve, 1)
        await one.membership(MODEL, 0, report("a", unfinished=1))
        await asyncio.to_thread(client.set_pools, MODEL, PoolsTarget(pools={}, reason="a test"))

        async def has_no_replica() -> bool:
            return await one.names(MODEL) == ()

        await until(serve, has_no_replica)
        for _ in range(10):
            serve.tick()
            await asyncio.sleep(0.02)
        assert list(serve.applications()) == ["acme-tiny--ingress--0"]
        await one.membership(MODEL, 0, report("a"))

        async def is_gone() -> bool:
            return (await one.read()).fleets == ()

        await until(serve, is_gone)
        assert serve.applications() == {}

    meet(body)


def test_the_control_api_wants_the_token(meet: Callable[[Body], None]) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        with ControlClient(client.url, "guessed") as stranger, pytest.raises(ControlError, match="token is not known"):
            await asyncio.to_thread(stranger.overview)

    meet(body)


def test_an_ingress_that_asks_waits_for_news_and_no_longer_than_a_moment(meet: Callable[[Body], None]) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        nothing = await one.membership(MODEL, 7, report())
        assert (nothing.version, nothing.members) == (7, ())
        await one.serve(model_record("1 tp1"))
        await until_steady(one, serve, 1)
        now = await one.membership(MODEL, 0, report())
        assert [member.replica for member in now.members] == ["acme-tiny--tp1--0"]
        begin_s = time.monotonic()
        waiting = asyncio.create_task(one.membership(MODEL, now.version, report()))
        assert await waiting == now
        assert time.monotonic() - begin_s >= actor.LONG_POLL_S * 0.9
        waiting = asyncio.create_task(one.membership(MODEL, now.version, report()))
        await asyncio.sleep(0)
        begin_s = time.monotonic()
        assert await one.close(MODEL, 0) == 0
        assert (await waiting).is_closing
        assert time.monotonic() - begin_s < actor.LONG_POLL_S / 2

    meet(body)


def test_closing_waits_for_what_the_ingresses_still_have(meet: Callable[[Body], None]) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        await one.serve(model_record("1 tp1"))
        await until_steady(one, serve, 1)
        await one.membership(MODEL, 0, report("a", unfinished=2))
        await one.membership(MODEL, 0, report("b", unfinished=1))
        await one.membership("other", 0, report("c", unfinished=5))
        assert await one.close(MODEL, 0) == 3
        closing = asyncio.create_task(one.close(MODEL, DEADLINE_S))
        await one.membership(MODEL, 0, report("a"))
        assert not closing.done()
        await one.membership(MODEL, 0, report("b"))
        assert await closing == 0

    meet(body)


def test_a_new_controller_does_not_say_that_nobody_waits_before_it_has_heard(meet: Callable[[Body], None]) -> None:
    """`archipelago stop` ends all processes on that word."""

    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        record = model_record("1 tp1")
        await one.serve(replace(record, plan=replace(record.plan, ingresses=2)))
        await until_steady(one, serve, 1)
        await one.membership(MODEL, 0, report("a"))
        closing = asyncio.create_task(one.close(MODEL, 0))
        await asyncio.sleep(0.1)
        assert not closing.done(), "the other ingress has said nothing yet"
        await one.membership(MODEL, 0, report("b", unfinished=2))
        assert await closing == 2
        await one.membership(MODEL, 0, report("b"))
        assert await one.close(MODEL, 0) == 0
        one._heard.clear()
        one._began_s -= actor.REPORT_LIFETIME_S
        assert await one.close(MODEL, 0) == 0, "an ingress that is silent for so long is none"

    meet(body)


def test_speeds_of_all_ingresses_add_up(meet: Callable[[Body], None]) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        await one.serve(model_record("1 tp1"))
        await until_steady(one, serve, 1)
        for ingress, speed in (("a", 10.0), ("b", 5.0), ("a", 12.0)):
            await one.membership(MODEL, 0, report(ingress, **{"acme-tiny--tp1--0": speed}))
        view = (await one.read()).fleet(MODEL)
        assert view is not None
        assert view.replicas[0].tokens_per_s == 17.0

    meet(body)


def test_prometheus_is_told_where_the_ingresses_are_once_they_have_had_time_to_say(
    meet: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        for model, name, address in (("m", "b", "n:2"), ("m", "a", "n:1"), ("other", "c", "n:3"), ("m", "new", "")):
            await one.membership(model, 0, replace(report(name), metrics_address=address))
        with pytest.raises(ControlError, match="has just started") as early:
            await asyncio.to_thread(client.metrics_targets)
        assert early.value.may_pass
        one._began_s -= actor.REPORT_LIFETIME_S
        found = await asyncio.to_thread(client.metrics_targets)
        assert [(dict(target.labels), target.targets) for target in found] == [
            ({"model": "m"}, ("n:1", "n:2")),
            ({"model": "other"}, ("n:3",)),
        ]

    monkeypatch.setattr(actor, "LONG_POLL_S", 0.01)
    meet(body)


def test_a_lease_holds_for_targets_and_over_a_restart(meet: Callable[[Body], None]) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        await one.serve(model_record("1 tp1"))
        await until_steady(one, serve, 1)
        await asyncio.to_thread(client.take_lease, "autoscaler", "first", 60)
        again = Targets(one._reconciler, one._events, one._audit, dict)
        again.leases = Leases(Store(), time.time, lambda text: None)  # as a new process finds it
        for holder, is_taken in (("second", False), ("first", True)):
            claim = LeaseClaim(name="autoscaler", holder=holder)
            target = PoolsTarget(pools={"tp2": 1}, reason="a test", lease=claim)
            answer = again.set_pools(MODEL, target, "operator")
            assert isinstance(answer, Accepted) is is_taken
            view = (await one.read()).fleet(MODEL)
            assert view is not None
            assert view.version == (2 if is_taken else 1)
        await asyncio.to_thread(client.give_back_lease, "autoscaler", "first")
        assert Store().leases == {}

    meet(body)


def test_what_ingresses_do_with_requests_is_told_once(
    meet: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(one: FleetController, client: ControlClient, serve: MemoryServe) -> None:
        said = replace(report("a"), moved_from={"m--tp1--0": 2}, quarantined=("old",))
        more = replace(report("a"), moved_from={"m--tp1--0": 2, "m--tp1--1": 3}, quarantined=("old", "killer\x1b[2J"))
        for each in (said, more, more):
            await one.membership("m", 0, each)
        events = [
            event for event in (await one.events(None, "m", 0)).events if event.kind in ("migration", "quarantine")
        ]
        assert [(event.kind, event.replica, event.text) for event in events] == [
            ("migration", "m--tp1--1", "3 of its requests went on to other replicas, or wait for one."),
            ("quarantine", None, r"Request 'killer\x1b[2J' is not tried again: 3 replicas died with it aboard."),
        ]

    monkeypatch.setattr(actor, "LONG_POLL_S", 0.01)
    meet(body)
