"""What is asked of the fleet while clients stream: starts that fail, short drains, models that come and go."""

from collections.abc import Callable
from typing import Any

import live_streams
import pytest
from running_system import Deployed, until
from simulated_fleet import System, plan_of, reach, seen, shapes_of, when, when_busy

from deployments.control.wire import Event, Limits, PoolsTarget

pytestmark = pytest.mark.engine

Undisturbed = Callable[[Deployed], Any]


def let_it_fail(system: System, deployed: Deployed) -> None:
    """Nothing to do: one GPU does not hold the model, and the engine says so."""


def kill_it(system: System, deployed: Deployed) -> None:
    view = when(deployed, lambda view: any(replica.phase == "starting" for replica in view.replicas), "one starts")
    (begun,) = [replica.name for replica in view.replicas if replica.phase == "starting"]
    until(lambda: system.processes(f"ServeReplica:{begun}:replica"), "it has a process")
    system.kill(f"ServeReplica:{begun}:replica")


@pytest.mark.parametrize(
    ("shape", "disturb", "cause"),
    [
        pytest.param("tp1", let_it_fail, "the KV cache has room for 0 tokens", id="refused-by-the-engine"),
        pytest.param("pp2", kill_it, "died", id="killed", marks=pytest.mark.slow),
    ],
)
def test_a_start_that_fails_is_taken_back(
    shape: str, disturb: Callable[[System, Deployed], None], cause: str, system: System, undisturbed: Undisturbed
) -> None:
    deployed = system.deploy({"tp2": 1})
    expected = undisturbed(deployed)
    before = deployed.view()
    newest = deployed.control.events().newest

    def ask_for_it() -> None:
        when_busy(deployed)
        deployed.control.set_pools(deployed.model, PoolsTarget(pools={shape: 1}, reason="test"))
        disturb(system, deployed)
        until(lambda: "rolled-back" in kinds(deployed, newest), "it is rolled back", timeout_s=240)

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), ask_for_it)
    live_streams.assert_unnoticed(found, expected)
    (why,) = [event.text for event in events(deployed, newest) if event.kind == "rollback"]
    assert why.startswith("Back to 1 x tp2: ")
    assert cause in why
    view = deployed.view()
    assert [replica.name for replica in view.replicas] == [replica.name for replica in before.replicas]
    assert (view.phase, view.desired_pools, view.effective_pools) == ("degraded", {shape: 1}, {"tp2": 1})
    assert view.shortfall is not None
    assert cause in view.shortfall
    system.assert_tidy()


def events(deployed: Deployed, after: int) -> tuple[Event, ...]:
    return deployed.control.events(after, model=deployed.model).events


def kinds(deployed: Deployed, after: int) -> list[str]:
    return [event.kind for event in events(deployed, after)]


@pytest.mark.slow
def test_a_drain_that_takes_too_long_moves_its_streams(system: System, undisturbed: Undisturbed) -> None:
    deployed = system.deploy({"tp2": 2})
    expected = undisturbed(deployed)
    newest = deployed.control.events().newest

    def scale_down() -> None:
        when_busy(deployed)
        reach(deployed, {"tp2": 1}, limits=Limits(drain_timeout_s=0.5))

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), scale_down)
    live_streams.assert_unnoticed(found, expected)
    assert any("drain_timeout_s = 0.5 is over" in event.text for event in events(deployed, newest))
    assert shapes_of(deployed.view()) == ["tp2"]
    system.assert_tidy()


@pytest.mark.slow
def test_another_model_comes_and_goes(system: System, undisturbed: Undisturbed) -> None:
    deployed = system.deploy({"tp2": 1})
    expected = undisturbed(deployed)
    before = deployed.view()

    def serve_another() -> None:
        when_busy(deployed)
        other = system.serve(plan_of("other"), {"tp2": 1})
        found = live_streams.during(other.url, live_streams.requests(other.model), lambda: when_busy(other))
        live_streams.assert_unnoticed(found, expected)
        system.remove("other")

    found = live_streams.during(deployed.url, live_streams.requests(deployed.model), serve_another)
    live_streams.assert_unnoticed(found, expected)
    after = seen(deployed)
    assert after is not None
    assert [replica.name for replica in after.replicas] == [replica.name for replica in before.replicas]
    system.assert_tidy()
