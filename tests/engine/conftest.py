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
from running_system import ENGINE_ARGS, GPU_BYTES, MAX_TOKENS, START_TIMEOUT_S, Deployed, prompts, until

from deployments import fleet, launch, local_cluster, reconcile
from deployments.control.client import ControlClient
from deployments.control.gate import Caller
from deployments.controller.records import ModelRecord, Settings
from deployments.islands import Inventory, inventory
from deployments.reconcile import Desired, Pool
from deployments.routing import Limits
from deployments.tiny_models import cache_root, make_model
from placement import Shape

TOKEN = "token-of-a-test"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Inventory]:
    started = local_cluster.start_simulated(2, 2, os.environ)
    try:
        local_cluster.present_token(started)
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
def plan_of(model_path: Callable[[str], Path]) -> Callable[..., fleet.FleetPlan]:
    """How a model is served; each at a port of its own."""
    ports: dict[str, int] = {}

    def plan(model: str) -> fleet.FleetPlan:
        return fleet.FleetPlan(
            model=model,
            source=str(model_path(model)),
            engine_args=ENGINE_ARGS | {"served_model_name": model},
            frontend_args={"tool_call_parser": "hermes", "enable_auto_tool_choice": True, "chat_template": None},
            host="127.0.0.1",
            port=ports.setdefault(model, local_cluster.free_port()),
            ingresses=1,
            drain_timeout_s=5,
            step_timeout_s=20,
            hold_s=START_TIMEOUT_S,
            admission=Limits(max_ttft_s=120),
        )

    return plan


@pytest.fixture(scope="session")
def controller(cluster: Inventory, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The fleet controller, with a control API at a free port."""
    settings = Settings(
        secret="secret",
        tokens={TOKEN: Caller(name="tester", role="operate")},
        host="127.0.0.1",
        port=local_cluster.free_port(),
        gpu_memory_bytes=GPU_BYTES,
        state_dir=str(tmp_path_factory.mktemp("state")),
    )
    return launch.start_controller(settings)


@pytest.fixture(scope="session")
def control(controller: Any) -> Iterator[ControlClient]:
    settings = ray.get(controller.settings.remote())
    with ControlClient(f"http://{settings.host}:{settings.port}", TOKEN) as client:
        yield client


@pytest.fixture(scope="session")
def clear(controller: Any) -> Callable[[], None]:
    """Serve nothing."""

    def remove() -> None:
        for model in ray.get(controller.models.remote()):
            ray.get(controller.remove.remote(model))
        until(lambda: not ray.get(controller.models.remote()), "no model is served")

    return remove


@pytest.fixture(scope="session")
def deploy(
    controller: Any, control: ControlClient, plan_of: Callable[..., fleet.FleetPlan], clear: Callable[[], None]
) -> Callable[..., Deployed]:
    """Serve a model, one at a time, with these pools; asking again for what is served costs nothing."""

    def serve(model: str, pools: dict[str, int]) -> Deployed:
        plan = plan_of(model)
        deployed = Deployed(model=model, url=launch.url_of(plan), controller=controller, control=control)
        if ray.get(controller.models.remote()) != (model,):
            clear()
            ray.get(controller.serve.remote(record_of(plan, pools)))
            version = deployed.view().version  # goes on from model to model
            until(lambda: deployed.is_steady(version), f"{pools} serves", timeout_s=START_TIMEOUT_S)
        else:
            deployed.set_pools(pools)
        until(lambda: httpx.get(f"{deployed.url}/health").status_code == 200, "healthy")
        return deployed

    return serve


def record_of(plan: fleet.FleetPlan, pools: dict[str, int]) -> ModelRecord:
    """What the controller is asked for at first."""
    wanted = tuple(Pool(shape=Shape.parse(shape), replicas=replicas) for shape, replicas in pools.items())
    limits = reconcile.Limits(start_timeout_s=START_TIMEOUT_S, drain_timeout_s=plan.drain_timeout_s)
    desired = Desired(model=plan.model, pools=wanted, reason="test")
    return ModelRecord(plan=plan, desired=desired, configured_limits=limits, shapes={})
