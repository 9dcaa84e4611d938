"""Who steers the fleet dies while it is cut anew; another one ends what was begun, and begins nothing twice."""

from collections.abc import Callable
from typing import Any

import httpx
import live_streams
import psutil
import pytest
from repartition_losses import MOMENTS, SWAP, any_is, lose_amid, replica_process
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

from deployments import fleet
from deployments.control.wire import PoolsTarget

pytestmark = pytest.mark.engine

Undisturbed = Callable[[Deployed], Any]

OLD, NEW = "the replica that goes", "the replica that comes"
# What dies when. A replica that comes and dies while it starts is a start that fails (`test_targets`, and below).
CELLS = [
    *((FLEET_CONTROLLER, moment) for moment in MOMENTS),
    *((SERVE_CONTROLLER, moment) for moment in MOMENTS),
    *((OLD, moment) for moment in ("starting", "draining", "moving", "moving-into-the-ingress")),
    *((NEW, moment) for moment in ("draining", "moving", "stopping")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "moment"), CELLS, ids=[f"{killed}-{moment}" for killed, moment in CELLS])
def test_what_was_begun_is_ended_whoever_dies_in_it(
    killed: str, moment: str, system: System, undisturbed: Undisturbed
) -> None:
    """From tp2 to pp2, or back."""
    deployed, expected, wanted = other_shape(system, undisturbed)

    going = replica_process(system, names_of(deployed.view()))

    def victim(begun: set[str]) -> psutil.Process:
        if killed == OLD:
            return going
        return replica_process(system, begun) if killed == NEW else system.processes(killed)[0]

    found, begun = lose_amid(deployed, wanted, moment, victim, live_streams.requests(deployed.model))
    live_streams.assert_unnoticed(found, expected)
    after = deployed.view()
    assert shapes_of(after) == [wanted]
    assert begun <= names_of(after), "what was begun is what serves, not another one"
    system.assert_tidy()


def other_shape(system: System, undisturbed: Undisturbed) -> tuple[Deployed, Any, str]:
    """A fleet of one replica, what its clients are told when nothing happens, and the shape that it has not."""
    known = system.served.get("usual")
    is_other = known is not None and settled(known) and shapes_of(known.view()) == ["pp2"]
    deployed = system.deploy({"pp2" if is_other else "tp2": 1})
    return deployed, undisturbed(deployed), "tp2" if is_other else "pp2"


@pytest.mark.slow
def test_a_swap_whose_start_dies_goes_back_while_the_streams_wait(system: System, undisturbed: Undisturbed) -> None:
    deployed, expected, wanted = other_shape(system, undisturbed)
    (shape,) = shapes_of(deployed.view())
    newest = deployed.control.events().newest

    def swap() -> None:
        when_busy(deployed)
        before = names_of(deployed.view())
        deployed.control.set_pools(deployed.model, PoolsTarget(pools={wanted: 1}, reason="test", **SWAP))
        begun = names_of(when(deployed, any_is("starting"), "the new one starts")) - before
        (name,) = begun
        until(lambda: system.processes(f"ServeReplica:{name}:replica"), "it has a process")
        replica_process(system, begun).kill()
        until(lambda: "rolled-back" in kinds(deployed, newest), "it is rolled back", timeout_s=240)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), swap)
    live_streams.assert_unnoticed(found, expected)
    assert kinds(deployed, newest).count("stall") == 2, "held once, and released once"
    view = deployed.view()
    assert (shapes_of(view), view.phase) == ([shape], "degraded")
    system.assert_tidy()


def kinds(deployed: Deployed, after: int) -> list[str]:
    return [event.kind for event in deployed.control.events(after, model=deployed.model).events]


@pytest.mark.slow
def test_nobody_leaves_a_replica_because_serve_has_lost_its_controller(
    system: System, undisturbed: Undisturbed
) -> None:
    """It says of all that runs that it is being deployed, for a while: that is no reason to compute anything again."""
    deployed = system.deploy({"tp2": 2})
    expected = undisturbed(deployed)
    newest, before = deployed.control.events().newest, moved_requests(deployed)

    def lose_it() -> None:
        when_busy(deployed)
        dead = system.kill(SERVE_CONTROLLER)
        until(lambda: not dead.is_running(), "it is dead")
        until(lambda: fleet.applications(), "another one is there")
        until(lambda: all(map(fleet.is_running, fleet.applications().values())), "it has looked at all", every_s=0.05)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), lose_it)
    live_streams.assert_unnoticed(found, expected)
    assert kinds(deployed, newest) == []
    assert moved_requests(deployed) == before
    system.assert_tidy()


def moved_requests(deployed: Deployed) -> float:
    """Times that a request went on to another replica, as the ingress tells Prometheus."""
    lines = httpx.get(f"{deployed.url}/metrics", trust_env=False).text.splitlines()
    (count,) = [line.split()[-1] for line in lines if line.startswith("archipelago_moved_requests_total{")]
    return float(count)


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
