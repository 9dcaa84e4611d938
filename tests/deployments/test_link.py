import pytest
from link_builders import FakeReplica, batch, request, run, settled, until

from deployments.link import FleetLink, NoReplicaReadyError, Step


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
