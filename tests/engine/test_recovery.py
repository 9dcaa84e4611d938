"""What goes wrong in a running system: clients that leave, processes that die. No stream may show it."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import moving_streams
import psutil
import pytest
from ray._private.state import actors
from repartition_losses import has_ended
from running_system import LONG_TOKENS, Deployed, prompts, stream, until

from deployments import fleet
from deployments.control.client import ControlError

pytestmark = pytest.mark.engine

STREAMS = 16
TOKENS = 600  # seconds of generation, in which something can happen
NOTICED_S = 10.0  # beyond a timeout, on a machine that is busy
MOST_STARTS = 2.0  # that a restart takes, with the end of what was there
ENDED_S = 30.0  # Ray gives what is alive some seconds before it kills


def tokens_generated(deployed: Deployed) -> float:
    lines = httpx.get(f"{deployed.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total{"))


def process(title: str) -> psutil.Process:
    """The first process of this cluster whose title has this in it: an actor's, or one that an actor has started."""
    for actor in actors().values():
        if actor["State"] == "ALIVE":
            with contextlib.suppress(psutil.NoSuchProcess):
                mine = psutil.Process(actor["Pid"])
                for one in (mine, *mine.children(recursive=True)):
                    if title in " ".join(one.cmdline()):
                        return one
    raise AssertionError(f"no process {title}")


def test_a_client_that_disconnects_has_its_generation_aborted(deploy: Callable[..., Any]) -> None:
    deployed = deploy("tiny-llama", {"tp2pp2": 1})
    before = tokens_generated(deployed)
    with httpx.Client() as client, stream(deployed, client) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert deployed.report().unfinished_requests == 1
    until(lambda: deployed.report().unfinished_requests == 0, "the replica has dropped the request", timeout_s=5)
    assert 0 < tokens_generated(deployed) - before < LONG_TOKENS


@pytest.mark.slow
def test_streams_outlive_the_only_replica(
    deploy: Callable[..., Any], expected_tokens: Callable[[str], list[dict[str, Any]]]
) -> None:
    """They wait until it has been started again; what is new meanwhile is refused."""
    deployed = deploy("tiny-llama", {"tp2pp2": 1})
    before = deployed.report()
    requests = moving_streams.bodies(deployed.model, STREAMS, 200)
    expected = moving_streams.run(deployed.url, requests)
    refusals: list[httpx.Response] = []

    def kill() -> None:
        os.kill(before.found.workers[3].pid, signal.SIGKILL)  # the second stage, on the other node
        until(lambda: httpx.get(f"{deployed.url}/health").status_code == 503, "the loss is noticed", timeout_s=10)
        refusals.append(httpx.get(f"{deployed.url}/v1/models"))

    found = moving_streams.run(deployed.url, requests, kill)
    moving_streams.assert_same(found, expected)
    assert (refusals[0].status_code, refusals[0].headers["retry-after"]) == (503, "5")
    assert "0 of 1 replicas are up" in refusals[0].json()["error"]["message"]
    assert deployed.complete(prompts()[0])["token_ids"] == expected_tokens("tiny-llama")[0]["token_ids"]
    after = deployed.report()
    assert {worker.pid for worker in after.found.workers}.isdisjoint(worker.pid for worker in before.found.workers)


def replica_process(deployed: Deployed) -> psutil.Process:
    """The actor of the first replica."""
    return process(f"ServeReplica:{next(iter(deployed.reports()))}:replica")


def kill_replica(deployed: Deployed) -> None:
    replica_process(deployed).kill()


def kill_worker(deployed: Deployed) -> None:
    report = next(iter(deployed.reports().values()))
    os.kill(report.found.workers[0].pid, signal.SIGKILL)


def kill_engine_core(deployed: Deployed) -> None:
    process("VLLM::EngineCore").kill()


def kill_controller(deployed: Deployed) -> None:
    process("ray::FleetController").kill()
    until(lambda: _is_seen(deployed), "the controller is back")


def kill_serve_controller(deployed: Deployed) -> None:
    process("ray::ServeController").kill()


FAULTS = [
    pytest.param(kill_replica, id="replica", marks=pytest.mark.slow),
    pytest.param(kill_controller, id="controller"),
    pytest.param(kill_worker, id="worker", marks=pytest.mark.slow),
    pytest.param(kill_engine_core, id="engine-core", marks=pytest.mark.slow),
    pytest.param(kill_serve_controller, id="serve-controller", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_stream_shows_that_a_process_was_lost(fault: Callable[[Deployed], None], deploy: Callable[..., Any]) -> None:
    deployed = deploy("tiny-llama", {"tp1": 2})
    requests = moving_streams.bodies(deployed.model, STREAMS, TOKENS)
    expected = moving_streams.run(deployed.url, requests)
    found = moving_streams.run(deployed.url, requests, lambda: fault(deployed))
    moving_streams.assert_same(found, expected)
    until(lambda: deployed.view().phase == "steady", "all replicas are back", timeout_s=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pools", "rank"),
    [
        pytest.param({"tp1": 2}, 0, id="beside-another-replica"),
        pytest.param({"tp2pp2": 1}, 3, id="of-the-only-replica"),  # and not on the node of its actor
    ],
)
def test_a_worker_that_hangs_is_noticed_when_the_step_timeout_is_over(
    pools: dict[str, int], rank: int, deploy: Callable[..., Any], plan_of: Callable[..., fleet.FleetPlan]
) -> None:
    """Nothing has died, and no step comes; vLLM itself would wait for 300 s."""
    deployed = deploy("tiny-llama", pools)
    requests = moving_streams.bodies(deployed.model, STREAMS, TOKENS)
    expected = moving_streams.run(deployed.url, requests)
    report = next(iter(deployed.reports().values()))
    hung = psutil.Process(report.found.workers[rank].pid)
    found = moving_streams.run(deployed.url, requests, hung.suspend)
    moving_streams.assert_same(found, expected)
    until(lambda: deployed.view().phase == "steady", "all replicas are back", timeout_s=300)
    ((shape, replicas),) = pools.items()
    step_timeout_s = plan_of(deployed.model).step_timeout_s
    restart_s = 0.0 if replicas > 1 else MOST_STARTS * deployed.view().start_s[shape]
    longest_s = max(answer.longest_gap_s for answer in found)
    assert step_timeout_s - 1 < longest_s < step_timeout_s + NOTICED_S + restart_s
    until(lambda: has_ended(hung), "it has not been left behind", timeout_s=2 * ENDED_S)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tp1", "tp2"])
def test_no_process_of_an_engine_outlives_its_replica(shape: str, deploy: Callable[..., Any]) -> None:
    """It would keep its GPU's memory, so that no other engine starts there.

    vLLM's EngineCore does not notice that its parent has gone (vllm/v1/engine/core.py). Ray ends it: an actor has a
    process group of its own, which the raylet kills when the actor has died (RAY_process_group_cleanup_enabled).
    """
    deployed = deploy("tiny-llama", {shape: 1})
    replica = replica_process(deployed)
    children = replica.children(recursive=True)
    assert any("EngineCore" in " ".join(child.cmdline()) for child in children)
    engine = {*children, *(psutil.Process(worker.pid) for worker in deployed.report().found.workers)}
    replica.kill()
    until(lambda: all(map(has_ended, engine)), "the engine has ended with its replica", timeout_s=ENDED_S)
    until(lambda: deployed.view().phase == "steady", "the replica is back", timeout_s=300)


@pytest.mark.parametrize("lose", [kill_controller, kill_serve_controller])
def test_replicas_outlive_who_steers_them(lose: Callable[[Deployed], None], deploy: Callable[..., Any]) -> None:
    deployed = deploy("tiny-llama", {"tp1": 2})
    before = workers(deployed)
    lose(deployed)
    until(lambda: fleet.applications(), "Serve answers")
    until(lambda: all(map(fleet.is_running, fleet.applications().values())), "it has looked at every replica")
    assert workers(deployed) == before


def workers(deployed: Deployed) -> dict[str, list[int]]:
    """The process of every rank of every replica."""
    return {name: [one.pid for one in report.found.workers] for name, report in deployed.reports().items()}


def test_an_ingress_that_dies_breaks_its_connections_and_comes_back(deploy: Callable[..., Any]) -> None:
    """Without it the replicas go on, and drop its requests."""
    deployed = deploy("tiny-llama", {"tp1": 2})
    before = workers(deployed)
    requests = moving_streams.bodies(deployed.model, 2, LONG_TOKENS)
    found = moving_streams.run(deployed.url, requests, lambda: process("--ingress--").kill())
    assert all("Error" in answer.error for answer in found), [(each.error, each.finish_reasons) for each in found]
    until(lambda: _answers(deployed.url), "it answers again", timeout_s=120)
    assert workers(deployed) == before
    assert not any(report.unfinished_requests for report in deployed.reports().values())


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _is_seen(deployed: Deployed) -> bool:
    """Whether the control API tells of the fleet."""
    try:
        return bool(deployed.view())
    except ControlError:
        return False
