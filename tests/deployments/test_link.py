import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from deployment_builders import FakeReplica
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import link as link_module
from deployments.link import LEASE_S, RENEW_S, Batch, FleetLink, Lost, NoReplicaReadyError, Request, Step

TIMEOUT_S = 30
NEVER_S = 3600.0


@pytest.fixture(autouse=True, scope="module")
def quick_reconnects() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "RECONNECT_S", 0.0)
        patch.setattr(link_module, "RENEW_S", NEVER_S)
        yield


def request(name: str, prompt_tokens: int = 10, max_tokens: int = 90) -> Request:
    return Request(name, [name.encode()], prompt_tokens, max_tokens)


def batch(*requests: str, aborts: tuple[str, ...] = ()) -> Batch:
    return Batch(tuple([name.encode()] for name in requests), aborts)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  (what is waited for has no event)
        await asyncio.sleep(0)


async def settled() -> None:
    """Give every task the turns it needs to come to rest."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(scenario: Callable[..., Awaitable[None]], *names: str, ready: bool = True) -> None:
    """Play a scenario on an open link over replicas in memory, which the scenario gets as further arguments."""

    async def play() -> None:
        replicas = {name: FakeReplica() for name in names}
        link = FleetLink("ingress-1", replicas)
        link.open()
        if ready:
            for replica in replicas.values():
                replica.say()
            await until(lambda: len(link.ready) == len(replicas))
        try:
            await scenario(link, *replicas.values())
        finally:
            link.close()

    asyncio.run(asyncio.wait_for(play(), TIMEOUT_S))


def test_a_replica_is_ready_with_its_first_message() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        await until(lambda: a.streams and b.streams)
        await settled()
        assert link.replicas == ("a", "b")
        assert link.ready == ()
        b.say()
        await until(lambda: link.ready)
        assert link.ready == ("b",)

    run(scenario, "a", "b", ready=False)


def test_nothing_is_sent_before_a_replica_is_ready() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        with pytest.raises(NoReplicaReadyError, match="none of the 2 replicas is ready"):
            link.submit(request("r1"))
        a.say()
        b.say()
        await until(lambda: len(link.ready) == 2)
        await settled()
        assert a.batches == b.batches == []

    run(scenario, "a", "b", ready=False)


def test_an_empty_message_is_no_step() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        a.say(b"one", b"two")
        assert await link.next_event() == Step("a", [b"one", b"two"])

    run(scenario, "a")


def test_steps_of_all_replicas_arrive_in_the_order_of_each() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        for index in range(5):
            a.say(b"a%d" % index)
            b.say(b"b%d" % index)
        steps = [await link.next_event() for _ in range(10)]
        for replica in ("a", "b"):
            assert [s.frames for s in steps if s.replica == replica] == [
                [b"%s%d" % (replica.encode(), i)] for i in range(5)
            ]

    run(scenario, "a", "b")


def test_requests_go_where_the_fewest_tokens_are_outstanding() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        link.submit(request("big", 1000, 100))  # a, the first name among equals
        for index in range(3):
            link.submit(request(f"small-{index}", 10, 90))  # b, until it has as much
        await settled()
        assert a.batches == [batch("big")]
        assert b.batches == [batch("small-0", "small-1", "small-2")]

    run(scenario, "a", "b")


def test_requests_go_only_to_replicas_that_are_ready() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        b.say()
        await until(lambda: link.ready)
        for index in range(4):
            link.submit(request(f"r{index}"))
        await settled()
        assert a.batches == []
        assert b.batches == [batch("r0", "r1", "r2", "r3")]

    run(scenario, "a", "b", ready=False)


def test_computed_tokens_lower_the_load() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        link.submit(request("on-a", 10, 90))
        link.submit(request("on-b", 10, 80))
        link.settle("on-a", 11, finished=False)  # a has 89 left, b has 90
        link.submit(request("next"))
        await settled()
        assert a.batches == [batch("on-a", "next")]

    run(scenario, "a", "b")


def test_a_finished_request_is_no_load() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        link.submit(request("on-a", 10, 90))
        link.submit(request("on-b", 10, 1))
        link.settle("on-a", 90, finished=True)
        link.submit(request("next"))
        link.settle("on-a", 1, finished=True)  # a late word about what has finished changes nothing
        await settled()
        assert a.batches == [batch("on-a", "next")]

    run(scenario, "a", "b")


def test_an_unfinished_request_is_some_load_however_much_was_computed() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        link.submit(request("on-a", 1, 1))
        link.settle("on-a", 1000, finished=False)
        link.submit(request("next"))
        await settled()
        assert b.batches == [batch("next")]

    run(scenario, "a", "b")


def test_an_aborted_request_is_no_load() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        link.submit(request("on-a", 10, 90))
        link.submit(request("on-b", 10, 1))
        link.abort(["on-a"])
        link.submit(request("next"))
        await settled()
        assert a.batches == [batch("on-a", "next", aborts=("on-a",))]

    run(scenario, "a", "b")


def test_what_gathers_while_a_batch_is_on_its_way_goes_as_one_batch() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        a.answers.clear()
        link.submit(request("r1"))
        await until(lambda: a.batches)
        for name in ("r2", "r3", "r4"):
            link.submit(request(name))
        link.abort(["r1", "r3"])
        await settled()
        assert a.batches == [batch("r1")]
        a.answers.set()
        await until(lambda: len(a.batches) > 1)
        await settled()
        assert a.batches == [batch("r1"), batch("r2", "r3", "r4", aborts=("r1", "r3"))]

    run(scenario, "a")


def test_an_abort_stays_behind_the_request_it_aborts() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        a.answers.clear()
        link.submit(request("r1"))
        await until(lambda: a.batches)
        link.abort(["r1"])
        await settled()
        assert a.batches == [batch("r1")]  # the abort waits until the request has arrived
        a.answers.set()
        await until(lambda: len(a.batches) > 1)
        assert a.batches[1] == batch(aborts=("r1",))

    run(scenario, "a")


def test_a_slow_replica_does_not_hold_up_another() -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        a.answers.clear()
        for index in range(4):
            link.submit(request(f"r{index}"))
            await settled()
        assert a.batches == [batch("r0")]
        assert b.batches == [batch("r1"), batch("r3")]

    run(scenario, "a", "b")


def test_aborting_what_has_ended_or_never_was_sends_nothing() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        link.submit(request("r1"))
        await until(lambda: a.batches)
        link.settle("r1", 5, finished=True)
        link.abort(["r1", "unknown"])
        await settled()
        assert a.batches == [batch("r1")]

    run(scenario, "a")


def test_a_request_is_aborted_once() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        link.submit(request("r1"))
        link.abort(["r1"])
        link.abort(["r1"])
        await settled()
        assert a.batches == [batch("r1", aborts=("r1",))]

    run(scenario, "a")


@pytest.mark.parametrize("error", [None, ConnectionError("gone")], ids=["ends", "breaks"])
def test_a_stream_that_ends_loses_exactly_the_unfinished_requests_and_is_made_again(error: Exception | None) -> None:
    async def scenario(link: FleetLink, a: FakeReplica, b: FakeReplica) -> None:
        for name in ("a1", "b1", "a2", "b2", "a3", "b3"):
            link.submit(request(name))
        link.settle("a1", 90, finished=True)
        link.abort(["a2"])
        a.break_stream(error)
        assert await link.next_event() == Lost("a", ("a3",))
        assert link.ready == ("b",)
        await until(lambda: a.streams == 2)
        link.submit(request("after"))
        a.say()
        await until(lambda: link.ready == ("a", "b"))
        link.submit(request("again"))
        a.say(b"step")
        assert await link.next_event() == Step("a", [b"step"])  # and no second event of the loss
        await settled()
        assert b.batches[-1].requests == ([b"after"],)
        assert a.batches[-1].requests == ([b"again"],)

    run(scenario, "a", "b")


def test_a_loss_without_requests_is_no_event() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        a.break_stream()
        await until(lambda: a.streams == 2)
        a.say()
        a.say(b"step")
        assert await link.next_event() == Step("a", [b"step"])

    run(scenario, "a")


def test_what_was_computed_before_a_loss_arrives_before_it() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        link.submit(request("r1"))
        a.say(b"step")
        a.break_stream(ConnectionError("gone"))
        assert await link.next_event() == Step("a", [b"step"])
        assert await link.next_event() == Lost("a", ("r1",))

    run(scenario, "a")


def test_mail_that_was_not_sent_yet_is_lost_with_the_stream_and_not_sent_later() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        a.answers.clear()
        link.submit(request("r1"))
        await until(lambda: a.batches)
        link.submit(request("r2"))
        a.break_stream()
        assert await link.next_event() == Lost("a", ("r1", "r2"))
        a.answers.set()
        a.say()
        await until(lambda: link.ready)
        link.submit(request("r3"))
        await until(lambda: len(a.batches) > 1)
        assert a.batches[1].requests == ([b"r3"],)

    run(scenario, "a")


def test_a_batch_that_was_not_taken_loses_what_was_on_the_replica_and_connects_again() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        link.submit(request("r1"))
        await until(lambda: a.batches)
        a.refusals.append(RuntimeError("the replica does not want it"))
        link.submit(request("r2"))
        assert await link.next_event() == Lost("a", ("r1", "r2"))
        assert link.ready == ()
        # The stream itself did not break: it must not stay silent, with the replica unused, until the lease has passed.
        await until(lambda: a.streams == 2)
        a.say()
        await until(lambda: link.ready)
        link.submit(request("r3"))
        await until(lambda: len(a.batches) == 3)
        assert a.batches[2] == batch("r3")

    run(scenario, "a")


def test_a_request_may_come_again_by_the_same_id_after_a_loss() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        link.submit(request("r1"))
        await until(lambda: a.batches)
        a.break_stream()
        assert await link.next_event() == Lost("a", ("r1",))
        a.say()
        await until(lambda: link.ready)
        link.submit(request("r1"))
        await until(lambda: len(a.batches) > 1)
        assert a.batches[1] == batch("r1")  # and not an abort of what is just being sent

    run(scenario, "a")


def test_a_batch_stuck_on_its_way_when_the_stream_breaks_does_not_hold_up_the_next_connection() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        a.answers.clear()
        link.submit(request("r1"))
        await until(lambda: a.batches)
        a.break_stream()
        assert await link.next_event() == Lost("a", ("r1",))
        a.say()
        await until(lambda: link.ready)
        link.submit(request("r2"))
        await until(lambda: len(a.batches) > 1)
        assert a.batches[1].requests == ([b"r2"],)

    run(scenario, "a")


def test_an_idle_link_renews_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RENEW_S", 0.001)

    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        await until(lambda: len(a.batches) >= 3)
        assert set(a.batches) == {Batch()}

    run(scenario, "a")


def test_a_replica_that_is_not_ready_has_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RENEW_S", 0.001)

    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        await asyncio.sleep(0.02)
        assert a.batches == []

    run(scenario, "a", ready=False)


def test_the_lease_outlasts_several_renewals() -> None:
    assert LEASE_S >= 3 * RENEW_S


def test_a_closed_link_says_no_more() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        link.submit(request("r1"))
        await until(lambda: a.batches)
        link.close()
        link.abort(["r1"])
        await settled()
        assert link.ready == ()
        assert a.batches == [batch("r1")]
        assert a.streams == 1

    run(scenario, "a")


# Each pair is an action and what it acts on: a request (modulo those there are) or a replica.
actions = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "finish", "compute", "abort", "break", "connect", "turn"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


class Played:
    """What a link is told, and by plain book-keeping what must follow."""

    def __init__(self, link: FleetLink, replicas: tuple[FakeReplica, ...]) -> None:
        self.link = link
        self.replicas = replicas
        self.load: dict[str, dict[str, int]] = {name: {} for name in link.replicas}  # -> unfinished request -> tokens
        self.sent: list[str] = []
        self.ended: list[str] = []

    @property
    def unfinished(self) -> list[str]:
        return [request_id for held in self.load.values() for request_id in held]

    async def play(self, action: str, number: int) -> None:
        if action == "submit" and self.link.ready:
            self.submit(number)
        elif action in ("break", "connect"):
            await self.change(action, number % len(self.replicas))
        elif action in ("compute", "finish", "abort") and self.unfinished:
            self.go_on(action, self.unfinished[number % len(self.unfinished)])
        elif action == "turn":
            await settled()

    def submit(self, prompt_tokens: int) -> None:
        sums = {name: sum(self.load[name].values()) for name in self.link.ready}
        chosen = min(name for name in sums if sums[name] == min(sums.values()))
        self.sent.append(f"r{len(self.sent)}")
        self.link.submit(request(self.sent[-1], prompt_tokens, 7))
        self.load[chosen][self.sent[-1]] = prompt_tokens + 7

    def go_on(self, action: str, request_id: str) -> None:
        (held,) = [held for held in self.load.values() if request_id in held]
        if action == "compute":
            self.link.settle(request_id, 3, finished=False)
            held[request_id] = max(1, held[request_id] - 3)
            return
        if action == "finish":
            self.link.settle(request_id, 3, finished=True)
        else:
            self.link.abort([request_id])
        del held[request_id]
        self.ended.append(request_id)

    async def change(self, action: str, index: int) -> None:
        name = self.link.replicas[index]
        if action == "connect":
            self.replicas[index].say()
        else:
            self.replicas[index].break_stream()
        await settled()
        assert (name in self.link.ready) == (action == "connect")
        if action == "break" and self.load[name]:
            assert await self.link.next_event() == Lost(name, tuple(self.load[name]))
            self.ended += self.load[name]
            self.load[name] = {}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(actions)
def test_every_request_goes_to_a_least_loaded_ready_replica_and_ends_once(actions: list[tuple[str, int]]) -> None:
    async def scenario(link: FleetLink, *replicas: FakeReplica) -> None:
        played = Played(link, replicas)
        for action, number in actions:
            await played.play(action, number)
        assert sorted(played.ended + played.unfinished) == sorted(played.sent)
        await settled()
        for name, replica in zip(link.replicas, replicas, strict=True):
            arrived = [frames[0].decode() for taken in replica.batches for frames in taken.requests]
            assert set(played.load[name]) <= set(arrived)
            assert len(arrived) == len(set(arrived))
        assert_aborts_follow(replicas)

    run(scenario, "a", "b", "c")


def assert_aborts_follow(replicas: tuple[FakeReplica, ...]) -> None:
    """No request was sent twice or after its abort; within a batch a replica takes the requests first."""
    sent: set[str] = set()
    for replica in replicas:
        for taken in replica.batches:
            names = [frames[0].decode() for frames in taken.requests]
            assert not sent.intersection(names)
            sent.update(names)
            assert sent.issuperset(taken.aborts)
