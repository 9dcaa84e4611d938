"""Nodes go, with notice or without, while clients stream; the fleet makes the best of what is left."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import live_streams
import moving_streams
import psutil
import pytest
from running_system import Deployed, until
from simulated_fleet import (
    HEAD,
    System,
    is_alive,
    names_of,
    ray_node,
    reach,
    seen,
    settled,
    shapes_of,
    when,
    when_busy,
)

from deployments.control.wire import FleetView, PoolsTarget
from deployments.peer import LEASE_S

pytestmark = pytest.mark.engine

Undisturbed = Callable[[Deployed], Any]
NOTICED_S = 5.0  # beyond the lease, on a machine that is busy


def nodes_of(view: FleetView) -> set[str]:
    return {seat.node for replica in view.replicas for seat in replica.seats}


def victim_of(deployed: Deployed) -> str:
    """A node that has GPUs of the fleet, and is not the head."""
    return max(nodes_of(deployed.view()) - {HEAD})


def lose(system: System, node: str) -> None:
    system.raylet(node).kill()
    until(lambda: not is_alive(node), f"Ray has noticed that {node} is gone")


def test_a_replica_of_a_lost_node_is_replaced_on_another(system: System, undisturbed: Undisturbed) -> None:
    deployed = system.deploy({"tp2": 2})
    expected = undisturbed(deployed)
    lost = victim_of(deployed)

    def lose_node() -> None:
        when_busy(deployed)
        lose(system, lost)
        when(deployed, lambda view: view.phase == "steady" and lost not in nodes_of(view), "it is replaced")

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), lose_node)
    live_streams.assert_unnoticed(found, expected)
    assert shapes_of(deployed.view()) == ["tp2", "tp2"]
    system.assert_tidy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "what_is_left"),
    [
        pytest.param({"tp2": 3}, {"tp2": 2}, id="fewer-replicas"),
        pytest.param({"tp2pp3": 1}, {"tp2pp2": 1}, id="a-smaller-shape"),
    ],
)
def test_what_is_left_serves_until_the_node_is_back(
    wanted: dict[str, int], what_is_left: dict[str, int], system: System, undisturbed: Undisturbed
) -> None:
    deployed = system.deploy({"tp2": 1})
    expected = undisturbed(deployed)
    reach(deployed, wanted)
    lost = victim_of(deployed)

    def lose_node_and_start_it_again() -> None:
        when_busy(deployed)
        lose(system, lost)
        view = when(deployed, lambda view: runs(view, what_is_left), f"{what_is_left} is what runs")
        assert view.phase == "degraded"
        assert view.desired_pools == wanted
        assert view.shortfall is not None
        (shape,) = wanted
        assert f"not {wanted[shape]} x {shape}" in view.shortfall
        system.mend_nodes()
        until(lambda: settled(deployed), f"{wanted} serves again", timeout_s=240)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), lose_node_and_start_it_again)
    live_streams.assert_unnoticed(found, expected)
    view = deployed.view()
    assert (view.effective_pools, view.shortfall) == (wanted, None)
    assert lost in nodes_of(view)
    system.assert_tidy()


def runs(view: FleetView, pools: dict[str, int]) -> bool:
    """Whether this is the whole fleet, and all of it serves."""
    serving = [replica.shape for replica in view.replicas if replica.phase == "serving"]
    return view.effective_pools == pools and sorted(serving) == shapes_of(view) and len(serving) == sum(pools.values())


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["draining", "stopping", "starting"])
def test_a_node_that_dies_in_a_repartition_is_done_without(
    phase: str, system: System, undisturbed: Undisturbed
) -> None:
    """Replica by replica: two islands serve, and the third is not enough for both new ones."""
    deployed = system.deploy({"tp2": 2})
    expected = undisturbed(deployed)

    def repartition() -> None:
        when_busy(deployed)
        accepted = deployed.control.set_pools(deployed.model, PoolsTarget(pools={"pp2": 2}, reason="test"))
        when(deployed, lambda view: any(one.phase == phase for one in view.replicas), f"one is {phase}")
        lose(system, victim_of(deployed))
        until(lambda: settled(deployed, accepted.version), "both new ones serve", timeout_s=240)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), repartition)
    live_streams.assert_unnoticed(found, expected)
    assert shapes_of(deployed.view()) == ["pp2", "pp2"]
    system.assert_tidy()


@pytest.mark.slow
def test_requests_leave_a_replica_that_hangs(system: System, undisturbed: Undisturbed) -> None:
    """Its process is stopped and no connection breaks: the ingress gives it up when it was silent for its lease."""
    deployed = system.deploy({"tp2": 2})
    expected = undisturbed(deployed)
    hung: list[psutil.Process] = []

    def hang() -> None:
        when_busy(deployed)
        name = deployed.view().replicas[0].name
        hung.append(system.processes(f"ServeReplica:{name}:replica")[0])
        hung[0].suspend()

    found = moving_streams.run(deployed.url, live_streams.requests(deployed.model), hang)
    try:
        assert [answer.said() for answer in found] == [answer.said() for answer in expected]
        assert LEASE_S - 1 < max(answer.longest_gap_s for answer in found) < LEASE_S + NOTICED_S
    finally:
        hung[0].resume()
    until(lambda: not sum(one.unfinished_requests for one in deployed.view().replicas), "it has dropped what it had")
    system.assert_tidy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "rank"),
    [
        pytest.param("tp2pp2", -1, id="a-shard"),  # the second stage: neither the replica's actor nor its first rank
        pytest.param("tp2pp2", 0, id="its-actor"),
        pytest.param("pp2", 0, id="all-of-it"),  # while other nodes have room
    ],
)
def test_requests_leave_a_node_that_has_been_given_notice(
    wanted: str, rank: int, system: System, undisturbed: Undisturbed
) -> None:
    """Serve looks only at the node of the actor: there it has a second replica of the application wait for a place."""
    for model in set(system.served):  # what serves first then sits on the head
        system.remove(model)
    deployed = system.deploy({"tp2": 1})
    expected = undisturbed(deployed)
    (replica,) = reach(deployed, {wanted: 1}).replicas
    noticed = replica.seats[rank].node
    assert noticed != HEAD
    assert (noticed == replica.seats[0].node) == (rank == 0)
    newest = deployed.control.events().newest

    def give_notice() -> None:
        when_busy(deployed)
        drain(system, noticed)
        when(deployed, lambda view: noticed not in nodes_of(view), f"nothing is on {noticed} any more")
        until(lambda: settled(deployed), "it serves from other nodes", timeout_s=240)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), give_notice)
    live_streams.assert_unnoticed(found, expected)
    told = [event.text for event in deployed.control.events(newest).events if event.replica == replica.name]
    (left, *_) = [number for number, text in enumerate(told) if f"lost or leaving: {noticed}" in text]
    (stopped,) = [number for number, text in enumerate(told) if text.startswith("Stop.")]
    assert "no requests left" in told[stopped], "they had left before it was stopped"
    assert left < stopped
    until(lambda: not is_alive(noticed), "the node goes when its time is over", timeout_s=90)
    view = seen(deployed)
    assert view is not None
    assert shapes_of(view) == [wanted]
    assert replica.name not in names_of(view), "another one serves, not the same one started again"
    system.assert_tidy()


def drain(system: System, node: str) -> None:
    """Have Ray give a node notice, as a cloud does for a spot machine."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", system.cluster.address]
    command += ["--node-id", ray_node(node)["NodeID"], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot notice", "--deadline-remaining-seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
