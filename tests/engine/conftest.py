"""Real engines on one simulated cluster of two islands, two GPUs each; started once for all tests here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from running_system import ENGINE_ARGS, GPU_BYTES, MAX_TOKENS, Deployed, prompts, until

from deployments import fleet, local_cluster
from deployments.islands import Inventory, inventory
from deployments.tiny_models import cache_root, make_model
from placement import Layout, Shape, place


@pytest.fixture(scope="session")
def cluster() -> Iterator[Inventory]:
    started = local_cluster.start_simulated(2, 2, os.environ)
    try:
        ray.init(address=started.address, log_to_driver=False)
        nodes = ray.nodes()
        yield inventory(nodes, dict.fromkeys((node["NodeID"] for node in nodes), GPU_BYTES))
        ray.shutdown()
    finally:
        local_cluster.stop(started)


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    return lambda name: make_model(name, cache_root(os.environ))


@pytest.fixture(scope="session")
def expected_tokens(
    model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[dict[str, Any]]]:
    """Greedy tokens and log probabilities of each prompt from a single process, made once for each model."""
    made: dict[str, list[dict[str, Any]]] = {}

    def expected(model: str) -> list[dict[str, Any]]:
        if model not in made:
            request = {"model": str(model_path(model)), "engine_args": ENGINE_ARGS, "prompts": prompts()}
            request["max_tokens"] = MAX_TOKENS
            env = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            answers = tmp_path_factory.mktemp("reference") / f"{model}.json"
            command = [sys.executable, Path(__file__).with_name("reference_tokens.py"), answers]
            done = subprocess.run(
                command, input=json.dumps(request), env=env, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-3000:]
            made[model] = json.loads(answers.read_text())
        return made[model]

    return expected


@pytest.fixture(scope="session")
def plan_of(cluster: Inventory, model_path: Callable[[str], Path]) -> Callable[..., fleet.FleetPlan]:
    """A plan for a shape on the cluster; keyword arguments replace fields."""
    port = local_cluster.free_port()

    def plan(model: str, shape: str, replicas: int = 1, **changes: Any) -> fleet.FleetPlan:
        layouts: list[Layout] = []
        for _ in range(replicas):
            taken = frozenset(seat for layout in layouts for seat in layout.places)
            layout = place(Shape.parse(shape), cluster.cluster, taken)
            assert isinstance(layout, Layout), str(layout)
            layouts.append(layout)
        fields: dict[str, Any] = {
            "model": model,
            "source": str(model_path(model)),
            "layouts": tuple(layouts),
            "engine_args": ENGINE_ARGS | {"served_model_name": model},
            "frontend_args": {"tool_call_parser": "hermes", "enable_auto_tool_choice": True, "chat_template": None},
            "host": "127.0.0.1",
            "port": port,
            "ingresses": 1,
            "start_timeout_s": 300,
            "drain_timeout_s": 5,
            "step_timeout_s": 60,
        }
        return fleet.FleetPlan(**fields | changes)

    return plan


@pytest.fixture(scope="session")
def served() -> list[Deployed]:
    """What is served now: nothing, or one fleet."""
    return []


@pytest.fixture(scope="session")
def clear(cluster: Inventory, served: list[Deployed]) -> Iterator[Callable[[], None]]:
    """Delete what is served."""

    def delete() -> None:
        for old in served:
            fleet.delete((old.plan.ingress_name, *old.plan.replica_names), drain_timeout_s=0)
        served.clear()

    yield delete
    delete()


@pytest.fixture(scope="session")
def deploy(
    cluster: Inventory, served: list[Deployed], clear: Callable[[], None]
) -> Callable[[fleet.FleetPlan], Deployed]:
    """Serve a plan; what was served before is deleted first. Asking again for what is served costs nothing."""

    def serve(plan: fleet.FleetPlan) -> Deployed:
        if served and served[0].plan == plan:
            return served[0]
        clear()
        deployed = Deployed(plan, cluster)
        served.append(deployed)
        fleet.deploy(plan, cluster)
        fleet.wait_until_running(plan, lambda name, state: None)
        until(lambda: httpx.get(f"{deployed.url}/health").status_code == 200, "healthy")
        return deployed

    return serve
