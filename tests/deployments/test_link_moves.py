from typing import Any

import pytest
from link_builders import BACK_S, Fleet, batch, member, passed, request, run, settled

from deployments.link import Failed, NoReplicaReadyError
from deployments.peer import LEASE_S


def test_a_replica_that_leaves_gives_up_its_requests_and_they_go_on_elsewhere() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.link.submit(request("r2"))
        fleet.settle("a", "r1", 7, 8)
        fleet.add(member("b"))
        await settled()
        fleet.change("a", accepts=False, leaves=True)
        await settled()
        assert fleet["a"].batches == [batch("r1", "r2"), batch(aborts=("r1", "r2"))]
        assert fleet["b"].batches == [batch("r1~1 7 8", "r2~1")]
        assert fleet.settle("a", "r1", 9) is None
        assert fleet.link.report().moved_requests == 2

    run(scenario, "a")


def test_to_be_moved_makes_nobody_a_suspect() -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("r1", "r2"):
            fleet.link.submit(request(name))
        for there, back in [("a", "b"), ("b", "a")] * 3:
            fleet.change(back, accepts=True, leaves=False)
            fleet.change(there, accepts=False, leaves=True)
            await settled()
            assert {fleet.where(name)[0] for name in ("r1", "r2")} == {back}
        assert not fleet.link.asked.lost

    run(scenario, "a", "b")


@pytest.mark.parametrize("accepts", [True, False])
def test_a_replica_that_leaves_gets_nothing_new(accepts: bool) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.change("a", accepts=accepts, leaves=True)
        await settled()
        assert fleet.link.ready == ()
        with pytest.raises(NoReplicaReadyError):
            fleet.link.submit(request("new"))
        assert fleet["a"].batches == [batch("r1", aborts=("r1",))]
        assert fleet.link.report().held_requests == 1

    run(scenario, "a")


def test_a_request_that_cannot_move_stays_where_it_is() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1", unmovable="why"))
        fleet.add(member("b"))
        await settled()
        fleet.change("a", accepts=False, leaves=True)
        await settled()
        assert fleet["a"].batches == [batch("r1")]
        assert fleet.settle("a", "r1", 1, is_finished=True) == "r1"
        fleet.assert_nothing_is_left()

    run(scenario, "a")


def test_a_replica_that_drains_keeps_what_it_has() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.add(member("b"))
        await settled()
        fleet.change("a", accepts=False)
        for index in range(4):
            fleet.link.submit(request(f"new-{index}"))
        await passed(3 * LEASE_S)
        assert fleet["a"].batches == [batch("r1")]
        assert len(fleet["b"].requests) == 4
        assert fleet.settle("a", "r1", 1, is_finished=True) == "r1"

    run(scenario, "a")


def test_a_replica_that_drains_takes_requests_while_no_other_can() -> None:
    """From the moment in which the connection of the other breaks, and not only when the controller knows of it."""

    async def scenario(fleet: Fleet) -> None:
        fleet.change("old", accepts=False)
        fleet.link.submit(request("r1"))
        fleet.add(member("new"))
        await settled()
        fleet.link.submit(request("r2"))
        fleet["new"].die()
        await settled()
        fleet.link.submit(request("r3"))
        await settled()
        assert [fleet.where(name)[0] for name in ("r1", "r2", "r3")] == ["old"] * 3
        fleet["new"].come_back()
        await passed(BACK_S)
        fleet.link.submit(request("r4"))
        await settled()
        assert fleet.where("r4")[0] == "new"

    run(scenario, "old")


def test_a_replica_that_is_removed_is_left_and_its_requests_go_on() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.link.submit(request("stays", unmovable="why"))
        fleet.settle("a", "r1", 7)
        fleet.add(member("b"))
        await settled()
        fleet.remove("a")
        await passed(3 * LEASE_S)
        assert fleet.link.replicas == fleet.link.ready == ("b",)
        assert (fleet["a"].connections, len(fleet["a"].dialled)) == (0, 1)
        assert fleet["b"].batches == [batch("r1~1 7")]
        assert await fleet.link.next_event() == Failed("stays", "replica a has gone, and why")
        assert fleet.link.report().decode_tokens_per_s.keys() == {"b"}

    run(scenario, "a")


def test_a_restarted_replica_is_dialled_where_it_listens_now() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        fleet.settle("a", "r1", 7)
        await settled()
        fleet.change("a", port=2)  # though nothing is known yet of the end of the old connection
        await settled()
        assert [one.port for one in fleet["a"].dialled] == [1, 2]
        assert fleet["a"].connections == 1
        assert fleet["a"].batches == [batch("r1"), batch("r1~1 7")]
        assert fleet.settle("a", "r1", 8) is None

    run(scenario, "a")


@pytest.mark.parametrize(
    "change",
    [{"port": 2}, {"accepts": False, "leaves": True}],
    ids=["restarted", "left"],
)
def test_requests_do_not_go_to_a_replica_that_the_same_message_takes_away(change: dict[str, Any]) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("r1"))
        await settled()
        first, _ = fleet.where("r1")
        (other,) = {"a", "b"} - {first}
        fleet.update(members=(member(other, **change),))
        assert fleet.link.report().held_requests == 1
        await settled()
        assert fleet[other].requests == (["r1~1"] if "port" in change else [])

    run(scenario, "a", "b")


def test_a_fleet_that_is_restarted_at_once_is_one_death_for_each_request() -> None:
    names = ("a", "b", "c", "d")

    async def scenario(fleet: Fleet) -> None:
        for index in range(8):
            fleet.link.submit(request(f"r{index}"))
        await settled()
        fleet.update(members=tuple(member(name, port=2) for name in names))
        await settled()
        assert {fleet.where(f"r{index}")[1] for index in range(8)} == {f"r{index}~1" for index in range(8)}
        report = fleet.link.report()
        assert report.held_requests == 0
        assert not fleet.link.asked.lost

    run(scenario, *names)


def test_a_changed_prediction_reaches_the_router_without_a_new_connection() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.change("a", max_running=1, kv_tokens=1000)
        await passed(LEASE_S)
        assert len(fleet["a"].dialled) == 1
        assert fleet.link.ready == ("a",)

    run(scenario, "a")


def test_what_is_held_during_a_swap_goes_to_the_new_replica() -> None:
    """No spare GPU: the old replica leaves before the new one is there."""

    async def scenario(fleet: Fleet) -> None:
        fleet.link.submit(request("running"))
        fleet.settle("old", "running", 1, 2, 3)
        fleet.update(holds_new=True)
        fleet.change("old", accepts=False, leaves=True)
        fleet.link.submit(request("new"))
        await passed(60)
        fleet.remove("old")
        await passed(30)
        fleet.add(member("tp4"))
        await settled()
        assert fleet["old"].batches == [batch("running", aborts=("running",))]
        assert fleet["tp4"].batches == [batch("running~1 1 2 3", "new")]

    run(scenario, "old", hold_s=120)
