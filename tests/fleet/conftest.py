"""Three simulated nodes of two GPUs and a fleet of simulated engines; started once for all tests here."""

import os
from collections.abc import Callable, Iterator

import live_streams
import moving_streams
import pytest
import ray
from ray.serve.context import _set_global_client
from running_system import Deployed, until
from simulated_fleet import GPU_BYTES, GPUS_PER_ISLAND, ISLANDS, TOKEN, System

from deployments import launch, local_cluster
from deployments.control.client import ControlClient
from deployments.control.gate import Caller
from deployments.controller.records import Settings

Undisturbed = Callable[[Deployed], list[moving_streams.Answer]]


@pytest.fixture(scope="session")
def whole_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    # Other tests of this run may have left this process in a cluster of theirs, and Serve with a handle of it.
    ray.shutdown()
    _set_global_client(None)
    cluster = local_cluster.start_simulated(ISLANDS, GPUS_PER_ISLAND, os.environ)
    try:
        local_cluster.present_token(cluster)
        ray.init(address=cluster.address, log_to_driver=False)
        settings = Settings(
            secret="secret",
            tokens={TOKEN: Caller(name="tester", role="operate")},
            host="127.0.0.1",
            port=local_cluster.free_port(),
            gpu_memory_bytes=GPU_BYTES,
            state_dir=str(tmp_path_factory.mktemp("state")),
        )
        controller = launch.start_controller(settings)
        ray.get(controller.settings.remote())
        with ControlClient(f"http://{settings.host}:{settings.port}", TOKEN) as control:
            yield System(cluster=cluster, controller=controller, control=control)
        ray.shutdown()
    finally:
        local_cluster.stop(cluster)


@pytest.fixture
def system(whole_system: System) -> Iterator[System]:
    """The system with all its nodes; what a test did to them is mended after it."""
    until(lambda: whole_system.control.overview().cluster.gpus == ISLANDS * GPUS_PER_ISLAND, "all nodes are there")
    yield whole_system
    whole_system.mend_nodes()


@pytest.fixture(scope="session")
def undisturbed() -> Undisturbed:
    """What the clients of `live_streams` are told when nothing happens; asked once, of any fleet of `plan_of`."""
    kept: list[moving_streams.Answer] = []

    def ask(deployed: Deployed) -> list[moving_streams.Answer]:
        if not kept:
            kept.extend(moving_streams.run(deployed.url, live_streams.requests(deployed.model)))
        return kept

    return ask
