from collections.abc import Sequence
from dataclasses import replace

import pytest
from link_builders import BACK_S, Fleet, batch, passed, request, run, settled

from deployments import link as link_module
from deployments.link import NoReplicaReadyError
from deployments.peer import Frames


def test_a_fleet_that_closes_refuses_new_requests_and_finishes_the_running_ones() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("running"))
        fleet.update(is_closing=True, holds_new=True)
        assert not fleet.link.is_open
        with pytest.raises(NoReplicaReadyError):
            fleet.link.submit(request("new"))
        fleet["a"].break_connection()  # even so: what has begun goes on
        await passed(BACK_S)
        assert fleet["a"].requests == ["running", "running~1"]
        assert fleet.settle("a", "running~1", 1, is_finished=True) == "running"
        fleet.assert_nothing_is_left()

    run(scenario, "a")


def test_new_requests_are_held_only_while_a_stall_is_announced() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.change("a", leaves=True)
        with pytest.raises(NoReplicaReadyError):
            fleet.link.submit(request("early"))
        fleet.update(holds_new=True)
        assert fleet.link.is_open
        fleet.link.submit(request("held"))
        assert fleet.link.report().held_requests == 1
        fleet.update(holds_new=False)
        with pytest.raises(NoReplicaReadyError):
            fleet.link.submit(request("late"))
        fleet.change("a", leaves=False)
        await settled()
        assert fleet["a"].batches == [batch("held")]

    run(scenario, "a")


def test_held_requests_are_sent_in_the_order_of_their_priority_then_of_their_arrival() -> None:
    async def scenario(fleet: Fleet) -> None:
        for name, priority in [("batch-1", 5), ("chat-1", 0), ("urgent", -1), ("batch-2", 5), ("chat-2", 0)]:
            fleet.link.submit(request(name, priority=priority))
        await settled()
        assert fleet["a"].batches == []
        fleet["a"].greet()
        await settled()
        assert fleet["a"].requests == ["urgent", "chat-1", "chat-2", "batch-1", "batch-2"]
        assert fleet.link.report().held_requests == 0

    run(scenario, "a", ready=False, holds_new=True)


def test_no_more_requests_are_held_than_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_HELD", 3)

    async def scenario(fleet: Fleet) -> None:
        for index in range(3):
            fleet.link.submit(request(f"r{index}"))
        with pytest.raises(NoReplicaReadyError):
            fleet.link.submit(request("r3"))
        fleet.link.abort(["r1"])
        fleet.link.submit(request("r4"))
        fleet["a"].greet()
        await settled()
        assert fleet["a"].batches == [batch("r0", "r2", "r4")]

    run(scenario, "a", ready=False, holds_new=True)


def test_a_held_request_that_is_aborted_is_never_sent() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.link.abort(["r1"])
        fleet.assert_nothing_is_left()
        fleet["a"].greet()
        await settled()
        assert fleet["a"].batches == []

    run(scenario, "a", ready=False, holds_new=True)


def test_what_cannot_be_sent_is_refused_rather_than_held() -> None:
    """Held, it would raise in whatever sends the others: every replica that connects would be lost again."""

    def encode(wire_id: str, token_ids: Sequence[int]) -> Frames:
        raise OverflowError("can't serialize ints >= 2**64")

    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("held"))
        with pytest.raises(OverflowError):
            fleet.link.submit(replace(request("unsendable"), encode=encode))
        fleet["a"].greet()
        await settled()
        assert fleet["a"].batches == [batch("held")]
        assert fleet.link.report().unfinished_requests == 1

    run(scenario, "a", ready=False, holds_new=True)


def test_a_stall_that_is_announced_after_a_loss_counts_for_those_that_wait_already() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet["a"].die()
        await settled()
        fleet.update(holds_new=True, hold_s=200.0)
        await passed(150.0)
        assert fleet.link.report().held_requests == 1
        await passed(60.0)
        assert fleet.link.asked.lost["held-too-long"] == 1
        fleet.assert_nothing_is_left()

    run(scenario, "a", hold_s=30.0)
