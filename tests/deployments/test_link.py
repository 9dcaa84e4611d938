import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from link_builders import Fleet, batch, member, passed, request, run, settled

from deployments.link import NoReplicaReadyError, Step
from deployments.membership import IngressReport
from deployments.peer import LEASE_S, RENEW_S, Batch, Frames


def test_a_replica_is_ready_with_its_first_message() -> None:
    async def scenario(fleet: Fleet) -> None:
        assert (fleet["a"].connections, fleet["b"].connections) == (1, 1)
        assert fleet.link.replicas == ("a", "b")
        fleet["b"].greet()
        await settled()
        assert fleet.link.ready == ("b",)

    run(scenario, "a", "b", ready=False)


def test_nothing_is_sent_before_a_replica_is_ready() -> None:
    async def scenario(fleet: Fleet) -> None:
        assert not fleet.link.is_open
        with pytest.raises(NoReplicaReadyError, match="none of the 2 replicas takes requests now"):
            fleet.link.submit(request("r1"))
        fleet["a"].greet()
        fleet["b"].greet()
        await passed(LEASE_S)
        assert fleet["a"].batches == fleet["b"].batches == []
        fleet.assert_nothing_is_left()

    run(scenario, "a", "b", ready=False)


def test_a_sign_of_life_is_no_step() -> None:
    async def scenario(fleet: Fleet) -> None:
        await passed(LEASE_S)
        fleet["a"].say(b"one", b"two")
        assert await fleet.link.next_event() == Step("a", [b"one", b"two"])

    run(scenario, "a")


def test_steps_of_all_replicas_arrive_in_the_order_of_each() -> None:
    async def scenario(fleet: Fleet) -> None:
        for index in range(5):
            fleet["a"].say(b"a%d" % index)
            fleet["b"].say(b"b%d" % index)
        events = [await fleet.link.next_event() for _ in range(10)]
        for name in ("a", "b"):
            assert [event for event in events if isinstance(event, Step) and event.replica == name] == [
                Step(name, [b"%s%d" % (name.encode(), index)]) for index in range(5)
            ]

    run(scenario, "a", "b")


def test_a_backlog_of_steps_does_not_keep_others_waiting() -> None:
    async def scenario(fleet: Fleet) -> None:
        for index in range(10):
            fleet["a"].say(b"%d" % index)
        await settled()
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(another())
        for _ in range(10):
            await fleet.link.next_event()
        task.cancel()
        assert turns >= 10

    run(scenario, "a")


def test_requests_go_where_the_fewest_tokens_are_outstanding() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("big", 4000, 500))
        for index in range(3):
            fleet.link.submit(request(f"small-{index}", 10, 90))
        await settled()
        busy = fleet.where("big")[0]
        assert {fleet.where(f"small-{index}")[0] for index in range(3)} == {"a", "b"} - {busy}

    run(scenario, "a", "b")


def test_requests_go_only_to_replicas_that_are_ready() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet["b"].greet()
        await settled()
        for index in range(4):
            fleet.link.submit(request(f"r{index}"))
        await settled()
        assert fleet["a"].batches == []
        assert fleet["b"].batches == [batch("r0", "r1", "r2", "r3")]

    run(scenario, "a", "b", ready=False)


@pytest.mark.parametrize("end", ["finished", "aborted"])
def test_a_request_that_has_ended_is_no_load(end: str) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("big", 4000, 500))
        fleet.link.submit(request("small", 400, 50))
        await settled()
        busy = fleet.where("big")[0]
        if end == "finished":
            assert fleet.settle(busy, "big", 1, is_finished=True) == "big"
        else:
            fleet.link.abort(["big"])
        fleet.link.submit(request("next"))
        await settled()
        assert fleet.where("next")[0] == busy

    run(scenario, "a", "b")


def test_what_gathers_in_a_turn_of_the_loop_goes_as_one_batch() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        await settled()
        for name in ("r2", "r3", "r4"):
            fleet.link.submit(request(name))
        fleet.link.abort(["r1", "r3"])
        await settled()
        assert fleet["a"].batches == [batch("r1"), batch("r2", "r3", "r4", aborts=("r1", "r3"))]

    run(scenario, "a")


@pytest.mark.parametrize("turn", [False, True], ids=["same batch", "next batch"])
def test_an_abort_goes_with_or_behind_the_request_it_aborts_and_once(turn: bool) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        if turn:
            await settled()
        fleet.link.abort(["r1"])
        fleet.link.abort(["r1"])
        await settled()
        once = [batch("r1", aborts=("r1",))]
        assert fleet["a"].batches == ([batch("r1"), batch(aborts=("r1",))] if turn else once)
        fleet.assert_nothing_is_left()

    run(scenario, "a")


def test_aborting_what_has_ended_or_never_was_sends_nothing() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.settle("a", "r1", 5, is_finished=True)
        fleet.link.abort(["r1", "unknown"])
        await settled()
        assert fleet["a"].batches == [batch("r1")]

    run(scenario, "a")


def test_what_comes_after_the_end_of_a_request_is_about_nobody() -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("finished", "aborted"):
            fleet.link.submit(request(name))
        assert fleet.settle("a", "finished", 1) == "finished"
        assert fleet.settle("a", "finished", 2, is_finished=True) == "finished"
        fleet.link.abort(["aborted"])
        for name in ("finished", "aborted", "unknown"):
            assert fleet.settle("a", name, 3, is_finished=True) is None
        fleet.assert_nothing_is_left()

    run(scenario, "a")


def test_a_replica_that_does_not_connect_does_not_hold_up_another() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet["b"].greet()
        await passed(3 * LEASE_S)
        assert len(fleet["a"].dialled) > 1
        assert fleet.link.ready == ("b",)

    run(scenario, "a", "b", ready=False)


def test_an_idle_link_renews_its_lease() -> None:
    async def scenario(fleet: Fleet) -> None:
        await passed(3.5 * RENEW_S)
        assert fleet["a"].sent == 3 * [Batch()]
        await passed(5 * LEASE_S)
        assert fleet["a"].connections == len(fleet["a"].dialled) == 1

    run(scenario, "a")


def test_the_lease_outlasts_several_renewals() -> None:
    assert LEASE_S >= 3 * RENEW_S


def test_a_closed_link_says_no_more() -> None:
    async def scenario(fleet: Fleet) -> None:
        for index in range(6):
            fleet.link.submit(request(f"r{index}"))
        await settled()
        told = fleet["a"].sent + fleet["b"].sent
        fleet.link.submit(request("not sent yet"))
        fleet.link.close()
        fleet.link.abort(["r1"])
        assert fleet.link.ready == ()
        await passed(5 * LEASE_S)
        assert fleet["a"].sent + fleet["b"].sent == told
        assert (fleet["a"].connections, fleet["b"].connections) == (0, 0)
        assert len(fleet["a"].dialled) == 1

    run(scenario, "a", "b")


def test_a_request_that_cannot_be_encoded_leaves_nothing_behind() -> None:
    def encode(wire_id: str, token_ids: Sequence[int]) -> Frames:
        raise ValueError("not serialisable")

    async def scenario(fleet: Fleet) -> None:
        with pytest.raises(ValueError, match="not serialisable"):
            fleet.link.submit(replace(request("r1"), encode=encode))
        await settled()
        assert fleet["a"].batches == []
        fleet.assert_nothing_is_left()

    run(scenario, "a")


def test_a_link_reports_what_it_has() -> None:
    async def scenario(fleet: Fleet) -> None:
        for index in range(3):
            fleet.link.submit(request(f"r{index}"))
        fleet["a"].die()
        await settled()
        speed = member("a").speed.decode_tokens_per_s
        assert fleet.link.report() == IngressReport(
            ingress="ingress",
            connected=frozenset(),
            unfinished_requests=3,
            held_requests=3,
            decode_tokens_per_s={"a": speed},
            moved_from={"a": 3},
        )

    run(scenario, "a")
