import asyncio

import pytest
from link_builders import FakeReplica, batch, request, run, settled, until

from deployments.link import LEASE_S, RENEW_S, Batch, FleetLink, Lost, Step


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


def test_an_idle_link_renews_its_lease() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        await until(lambda: len(a.batches) >= 3)
        assert set(a.batches) == {Batch()}

    run(scenario, "a", renew_s=0.001)


def test_a_replica_that_is_not_ready_has_no_lease() -> None:
    async def scenario(link: FleetLink, a: FakeReplica) -> None:
        await asyncio.sleep(0.02)
        assert a.batches == []

    run(scenario, "a", ready=False, renew_s=0.001)


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
