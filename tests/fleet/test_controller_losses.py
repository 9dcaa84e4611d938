"""Who steers the fleet dies while it is cut anew; another one ends what was begun, and begins nothing twice."""

from collections.abc import Callable
from typing import Any

import live_streams
import pytest
from running_system import Deployed
from simulated_fleet import (
    FLEET_CONTROLLER,
    SERVE_CONTROLLER,
    System,
    names_of,
    reach,
    settled,
    shapes_of,
    until,
    when,
    when_busy,
)

from deployments.control.wire import FleetView, Limits, PoolsTarget

pytestmark = pytest.mark.engine

Undisturbed = Callable[[Deployed], Any]


def any_is(phase: str) -> Callable[[FleetView], bool]:
    return lambda view: any(replica.phase == phase for replica in view.replicas)


def moves(view: FleetView) -> bool:
    """Its requests are on their way to another replica, or wait for one."""
    return view.repartition is not None and " is moving" in view.repartition.doing


SHORT_DRAIN = {"limits": Limits(drain_timeout_s=0.5)}
SWAP = {"way": "swap"}
MOMENTS = [
    pytest.param(any_is("starting"), {}, id="starting", marks=pytest.mark.slow),
    pytest.param(any_is("draining"), {}, id="draining", marks=pytest.mark.slow),
    pytest.param(moves, SHORT_DRAIN, id="moving", marks=pytest.mark.slow),
    pytest.param(any_is("stopping"), {}, id="stopping", marks=pytest.mark.slow),
    pytest.param(moves, SWAP, id="moving-into-the-ingress", marks=pytest.mark.slow),
    pytest.param(any_is("stopping"), SWAP, id="stopping-while-held", marks=pytest.mark.slow),
    pytest.param(any_is("starting"), SWAP, id="starting-while-held", marks=pytest.mark.slow),
]


def ends_as_wanted(
    system: System,
    undisturbed: Undisturbed,
    killed: str,
    moment: Callable[[FleetView], bool],
    target: dict[str, Any],
) -> None:
    """From tp2 to pp2, or back; ``killed`` dies at the moment."""
    known = system.served.get("usual")
    is_other = known is not None and settled(known) and shapes_of(known.view()) == ["pp2"]
    deployed = system.deploy({"pp2" if is_other else "tp2": 1})
    expected = undisturbed(deployed)
    before = deployed.view()
    wanted = "tp2" if is_other else "pp2"

    begun: set[str] = set()

    def repartition() -> None:
        when_busy(deployed)
        asked = PoolsTarget(pools={wanted: 1}, reason="test", **target)
        accepted = deployed.control.set_pools(deployed.model, asked)
        begun.update(names_of(when(deployed, moment, "the moment")) - names_of(before))
        dead = system.kill(killed)
        until(lambda: not dead.is_running(), f"{killed} is dead")
        until(lambda: settled(deployed, accepted.version), f"{wanted} serves", timeout_s=240)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), repartition)
    live_streams.assert_unnoticed(found, expected)
    after = deployed.view()
    assert shapes_of(after) == [wanted]
    assert begun <= names_of(after), "what was begun is what serves, not another one"
    system.assert_tidy()


@pytest.mark.parametrize(("moment", "target"), MOMENTS)
def test_a_new_controller_ends_what_the_dead_one_began(
    moment: Callable[[FleetView], bool], target: dict[str, Any], system: System, undisturbed: Undisturbed
) -> None:
    ends_as_wanted(system, undisturbed, FLEET_CONTROLLER, moment, target)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["starting", "draining"])
def test_serve_may_lose_its_controller_in_a_repartition(phase: str, system: System, undisturbed: Undisturbed) -> None:
    ends_as_wanted(system, undisturbed, SERVE_CONTROLLER, any_is(phase), {})


@pytest.mark.slow
def test_a_replica_that_dies_while_it_drains_loses_nothing(system: System, undisturbed: Undisturbed) -> None:
    deployed = system.deploy({"tp2": 2})
    expected = undisturbed(deployed)

    def scale_down() -> None:
        when_busy(deployed)
        accepted = deployed.control.set_pools(deployed.model, PoolsTarget(pools={"tp2": 1}, reason="test"))
        view = when(deployed, any_is("draining"), "one drains")
        (leaving,) = [replica.name for replica in view.replicas if replica.phase == "draining"]
        system.kill(f"ServeReplica:{leaving}:replica")
        until(lambda: settled(deployed, accepted.version), "one serves")

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), scale_down)
    live_streams.assert_unnoticed(found, expected)
    assert len(reach(deployed, {"tp2": 1}).replicas) == 1
    system.assert_tidy()
