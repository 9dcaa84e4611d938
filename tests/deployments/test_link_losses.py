import asyncio

import pytest
from link_builders import BACK_S, ClockLoop, Fleet, batch, member, passed, request, run, settled

from deployments.link import Failed, NoReplicaReadyError
from deployments.peer import LEASE_S, RECONNECT_S, RENEW_S
from deployments.stream import ACQUITTED_AFTER_TOKENS, SUSPECT_AFTER

HOLD_S = 30.0


@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError(), ValueError("not understood")], ids=repr)
def test_requests_of_a_lost_replica_go_on_elsewhere_after_the_last_token_that_arrived(error: Exception) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.link.submit(request("done"))
        fleet.link.submit(request("r2"))
        fleet.settle("a", "r1", 7)
        fleet.settle("a", "r1", 8, 9)
        fleet.settle("a", "done", 5, is_finished=True)
        fleet.add(member("b"))
        await settled()
        fleet["a"].is_up = False
        fleet["a"].break_connection(error)
        await settled()
        assert fleet["b"].batches == [batch("r1~1 7 8 9", "r2~1")]
        assert fleet.link.report().moved_requests == 2

    run(scenario, "a")


def test_late_outputs_of_a_lost_replica_are_about_nobody() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.settle("a", "r1", 7)
        fleet["a"].break_connection()
        await passed(BACK_S)
        assert fleet.settle("a", "r1", 8, is_finished=True) is None  # it had been in the queue
        assert fleet.settle("a", "r1~1", 8) == "r1"
        fleet["a"].break_connection()
        await passed(BACK_S)
        assert fleet.settle("a", "r1~1", 9) is None
        assert fleet["a"].batches == [batch("r1"), batch("r1~1 7"), batch("r1~2 7 8")]

    run(scenario, "a")


def test_without_another_replica_requests_wait_for_the_lost_one() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("batch", priority=1))
        fleet.link.submit(request("chat"))
        fleet["a"].die()
        await settled()
        assert fleet.link.ready == ()
        assert fleet.link.report().held_requests == 2
        with pytest.raises(NoReplicaReadyError):
            fleet.link.submit(request("new"))
        await passed(HOLD_S / 2)
        fleet["a"].come_back()
        await passed(BACK_S)
        assert fleet["a"].batches == [batch("batch", "chat"), batch("chat~1", "batch~1")]
        assert fleet.link.report().held_requests == 0

    run(scenario, "a", hold_s=HOLD_S)


def test_a_request_that_no_replica_takes_in_time_is_given_up() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet["a"].die()
        await passed(HOLD_S - RENEW_S)
        assert fleet.link.report().held_requests == 1
        await passed(3 * RENEW_S)
        assert await fleet.link.next_event() == Failed("r1", "no replica could take it within 30 s")
        fleet.assert_nothing_is_left()

    run(scenario, "a", hold_s=HOLD_S)


def test_of_a_model_that_is_removed_nothing_waits_for_a_replica() -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("r1", "r2"):
            fleet.link.submit(request(name))
        fleet["a"].die()
        await settled()
        fleet.update(is_closing=True, is_going=True, planned_replicas=0)
        await passed(2 * RENEW_S)
        for name in ("r1", "r2"):
            assert await fleet.link.next_event() == Failed(name, "the model is being removed")
        fleet.assert_nothing_is_left()

    run(scenario, "a", hold_s=HOLD_S)


def test_what_runs_on_a_replica_of_a_model_that_is_removed_may_finish() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.change("a", accepts=False)
        fleet.update(is_closing=True, is_going=True, planned_replicas=0)
        await passed(HOLD_S)
        assert fleet.settle("a", "r1", 7, is_finished=True) == "r1"
        fleet.assert_nothing_is_left()

    run(scenario, "a", hold_s=HOLD_S)


def test_a_replica_that_falls_silent_is_given_up_when_the_lease_has_passed() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet["a"].is_silent = True
        await passed(LEASE_S - 2 * RENEW_S)
        assert fleet.link.ready == ("a",)
        fleet.add(member("b"))
        await passed(3 * RENEW_S + RECONNECT_S / 2)
        assert fleet.link.ready == ("b",)
        assert fleet["b"].batches == [batch("r1~1")]
        assert len(fleet["a"].dialled) == 1
        await passed(RECONNECT_S)
        assert len(fleet["a"].dialled) == 2

    run(scenario, "a")


def test_an_ingress_that_was_stopped_does_not_blame_its_replicas() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        await settled()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockLoop)
        loop.stall(3 * LEASE_S)
        await passed(2 * RENEW_S)
        assert len(fleet["a"].dialled) == 1
        assert fleet["a"].batches == [batch("r1")]

    run(scenario, "a")


def test_a_replica_that_never_says_a_word_is_dialled_again() -> None:
    async def scenario(fleet: Fleet) -> None:
        await passed(LEASE_S + 2 * RENEW_S)
        assert len(fleet["a"].dialled) == 2
        assert fleet["a"].connections == 1

    run(scenario, "a", ready=False)


def test_mail_that_was_not_sent_is_not_sent_after_a_loss() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        await settled()
        fleet["a"].die()
        await settled()
        fleet.link.abort(["r1"])
        fleet["a"].come_back()
        await passed(BACK_S)
        assert fleet["a"].batches == [batch("r1")]

    run(scenario, "a")


@pytest.mark.parametrize("turns", range(8))
def test_a_request_that_comes_while_a_connection_is_breaking_is_not_forgotten(turns: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet["a"].break_connection()
        for _ in range(turns):
            await asyncio.sleep(0)
        if fleet.link.ready:
            fleet.link.submit(request("r1"))
            await passed(BACK_S)
            assert fleet.link.report().held_requests == 0
            assert fleet["a"].requests[-1] == fleet.where("r1")[1]
            assert len(fleet["a"].requests) == len(set(fleet["a"].requests))
            assert fleet.settle("a", fleet["a"].requests[-1], 1, is_finished=True) == "r1"

    run(scenario, "a")


def test_a_request_that_cannot_move_ends_with_its_replica_and_says_why() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1", unmovable="its prompt is made of embeddings"))
        fleet["a"].break_connection()
        expected = Failed("r1", "replica a has gone, and its prompt is made of embeddings")
        assert await fleet.link.next_event() == expected
        await passed(BACK_S)
        assert fleet["a"].batches == [batch("r1")]
        fleet.assert_nothing_is_left()

    run(scenario, "a")


def test_what_kills_every_replica_is_given_up_and_its_neighbours_finish() -> None:
    names = [f"r{index}" for index in range(9)]

    async def scenario(fleet: Fleet) -> None:
        for name in [*names, "killer"]:
            fleet.link.submit(request(name))
        for deaths in range(SUSPECT_AFTER + 1):
            assert fleet.link.asked.lost["quarantined"] == 0, f"after {deaths} deaths"
            await settled()
            killed, _ = fleet.where("killer")
            fleet[killed].break_connection()
            await passed(BACK_S)
        assert fleet.link.asked.lost["quarantined"] == 1
        assert fleet.link.report().quarantined == ("killer",)
        assert await fleet.link.next_event() == Failed(
            "killer", "3 replicas have died with it aboard; it is not tried again"
        )
        for name in names:
            replica, wire_id = fleet.where(name)
            assert fleet.settle(replica, wire_id, 1, is_finished=True) == name
        fleet.assert_nothing_is_left()

    run(scenario, "a", "b", "c")


def test_of_many_suspects_the_newest_is_tried_first_and_all_go_on_when_it_was_the_one() -> None:
    """Else each would have a replica for itself for a while, and wait for those before it."""
    names = [f"r{index}" for index in range(100)]

    async def scenario(fleet: Fleet) -> None:
        for name in names:
            fleet.link.submit(request(name))
        await passed(1.0)
        fleet.link.submit(request("killer"))
        for _ in range(SUSPECT_AFTER + 1):
            await settled()
            fleet["a"].break_connection()
            await passed(BACK_S)
        report = fleet.link.report()
        assert (report.quarantined, report.unfinished_requests, report.held_requests) == (("killer",), 100, 0)

    run(scenario, "a")


def test_replicas_that_die_together_are_one_death_for_what_was_on_the_first() -> None:
    """The connections of a lost node end one after the other: each replica seems to live when the one before goes."""
    names = [f"r{index}" for index in range(20)]

    async def scenario(fleet: Fleet) -> None:
        for name in names:
            fleet.link.submit(request(name))
        for _ in range(SUSPECT_AFTER - 1):
            await settled()
            for replica in fleet.replicas.values():
                replica.break_connection()
            await passed(BACK_S)
        report = fleet.link.report()
        assert (report.unfinished_requests, report.held_requests) == (20, 0)
        assert not fleet.link.asked.lost
        for name in names:
            replica_name, wire_id = fleet.where(name)
            assert fleet.settle(replica_name, wire_id, 1, is_finished=True) == name

    run(scenario, "a", "b", "c", "d")


def test_suspects_never_share_a_replica() -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("r1", "r2"):
            fleet.link.submit(request(name))
        for _ in range(SUSPECT_AFTER):
            await settled()
            fleet["a"].break_connection()
            await passed(BACK_S)
        assert fleet["a"].requests[-1] == "r1~2"
        assert fleet.link.report().held_requests == 1
        fleet.link.submit(request("innocent"))
        fleet.add(member("b"))
        await settled()
        assert fleet["a"].requests[-1] == "innocent"
        assert fleet["b"].requests == ["r2~2"]

    run(scenario, "a")


@pytest.mark.parametrize("end", ["finished", "aborted", "acquitted"])
def test_a_suspect_makes_place_for_the_next_however_it_ends(end: str) -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("r1", "r2"):
            fleet.link.submit(request(name))
        for _ in range(SUSPECT_AFTER):
            await settled()
            fleet["a"].break_connection()
            await passed(BACK_S)
        if end == "finished":
            fleet.settle("a", "r1~2", 1, is_finished=True)
        elif end == "acquitted":
            fleet.settle("a", "r1~2", *range(ACQUITTED_AFTER_TOKENS - 1))
            assert fleet.link.report().held_requests == 1
            fleet.settle("a", "r1~2", 1)
        else:
            fleet.link.abort(["r1"])
        await settled()
        assert fleet["a"].requests[-1] == "r2~2"
        assert fleet.link.report().held_requests == 0

    run(scenario, "a")


def test_the_loss_of_one_replica_leaves_the_requests_of_another_alone() -> None:
    async def scenario(fleet: Fleet) -> None:
        for index in range(6):
            fleet.link.submit(request(f"r{index}"))
        await settled()
        on_b = list(fleet["b"].requests)
        assert on_b
        assert fleet["a"].requests
        fleet["a"].break_connection()
        await passed(BACK_S)
        assert fleet["b"].aborts == []
        for wire_id in on_b:
            assert fleet.settle("b", wire_id, 1) == wire_id

    run(scenario, "a", "b")


@pytest.mark.parametrize("turns", range(6))
def test_a_replica_that_leaves_as_its_connection_breaks_is_not_dialled_again(turns: int) -> None:
    """To cancel a task group that is ending with an error has no effect (asyncio/taskgroups.py, __aexit__)."""

    async def scenario(fleet: Fleet) -> None:
        fleet["a"].break_connection()
        for _ in range(turns):
            await asyncio.sleep(0)
        fleet.remove("a")
        await passed(10 * BACK_S)
        assert len(fleet["a"].dialled) == 1

    run(scenario, "a", "b")
