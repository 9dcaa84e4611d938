"""Fleets of simulated engines on a real Ray cluster: how tests start them, disturb them, and see that they are well."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import psutil
import ray
from ray.util import placement_group_table
from running_system import Deployed, until

from deployments import fleet, launch, local_cluster, reconcile
from deployments.config import SimulatedEngineConfig
from deployments.control.client import ControlClient, ControlError
from deployments.control.wire import FleetView, PoolsTarget
from deployments.controller.records import ModelRecord
from deployments.fleet import FleetPlan
from deployments.local_cluster import LocalCluster
from deployments.reconcile import Desired, Pool
from deployments.routing import Limits
from deployments.tiny_models import VOCAB_SIZE, cache_root, make_model
from placement import ModelSpec, Shape
from placement.models import catalogue

ISLANDS = 3
GPUS_PER_ISLAND = 2
HEAD = "node-0"  # has the ingresses and the controllers: with it the whole cluster goes
GPU = "h200_sxm"
GPU_BYTES = 141 * 10**9
# Needs two of these GPUs, so tp1 is a shape whose start fails.
SIZES = "meta-llama/Llama-3.1-70B"
SHAPES = ("tp1", "tp2", "pp2", "tp2pp2", "tp2pp3")
# A token takes tp2 about 50 ms then: slow enough for this machine to follow every stream while replicas start.
TIME_SCALE = 0.5
LIVE_STREAMS = 50
SETTLE_TIMEOUT_S = 240
LOOK_EVERY_S = 0.05
TOKEN = "token-of-a-test"
FLEET_CONTROLLER = "ray::FleetController"
SERVE_CONTROLLER = "ray::ServeController"


def plan_of(model: str, engine_args: dict[str, Any] | None = None, **changes: Any) -> FleetPlan:
    """How a model is served: the tokenizer of a tiny one, the speed of a large one."""
    config = catalogue.config(SIZES)
    assert config is not None
    plan = FleetPlan(
        model=model,
        source=str(make_model("tiny-llama", cache_root(os.environ))),
        engine_args={
            "max_model_len": 2048,
            "max_num_seqs": 64,
            "served_model_name": model,
            "scheduling_policy": "priority",
            **(engine_args or {}),
        },
        frontend_args={"tool_call_parser": None, "enable_auto_tool_choice": False, "chat_template": None},
        host="127.0.0.1",
        port=local_cluster.free_port(),
        ingresses=1,
        drain_timeout_s=5,
        step_timeout_s=20,
        hold_s=SETTLE_TIMEOUT_S,
        admission=Limits(max_ttft_s=600),
        simulated=SimulatedEngineConfig(gpu=GPU, time_scale=TIME_SCALE),
        spec=replace(ModelSpec.from_hf_config(config, name=SIZES), vocab_size=VOCAB_SIZE),
    )
    return replace(plan, **changes)


def record_of(plan: FleetPlan, pools: dict[str, int]) -> ModelRecord:
    """What the controller is asked for at first."""
    wanted = tuple(Pool(shape=Shape.parse(shape), replicas=replicas) for shape, replicas in pools.items())
    limits = reconcile.Limits(start_timeout_s=SETTLE_TIMEOUT_S, drain_timeout_s=plan.drain_timeout_s)
    desired = Desired(model=plan.model, pools=wanted, reason="test")
    shapes = {Shape.parse(shape): 0 for shape in SHAPES}
    return ModelRecord(plan=plan, desired=desired, configured_limits=limits, configured=wanted, shapes=shapes)


@dataclass
class System:
    """A cluster, its fleet controller, and the models that it serves."""

    cluster: LocalCluster
    controller: Any
    control: ControlClient
    served: dict[str, Deployed] = field(default_factory=dict)

    # --- models ---

    def serve(self, plan: FleetPlan, pools: dict[str, int]) -> Deployed:
        """Serve a model, or serve it with other settings; returns when it answers."""
        deployed = Deployed(model=plan.model, url=launch.url_of(plan), controller=self.controller, control=self.control)
        self.served[plan.model] = deployed
        ray.get(self.controller.serve.remote(record_of(plan, pools)))
        until(lambda: settled(deployed), f"{plan.model} serves {pools}", timeout_s=SETTLE_TIMEOUT_S)
        until(lambda: answers(deployed.url), f"{plan.model} answers")
        return deployed

    def deploy(self, pools: dict[str, int]) -> Deployed:
        """Serve the model that most tests use, alone and with these pools."""
        for model in set(self.served) - {"usual"}:
            self.remove(model)
        if "usual" not in self.served:
            return self.serve(plan_of("usual"), pools)
        deployed = self.served["usual"]
        reach(deployed, pools)
        return deployed

    def remove(self, model: str) -> None:
        """Serve a model no longer."""
        ray.get(self.controller.remove.remote(model))
        until(lambda: model not in ray.get(self.controller.models.remote()), f"{model} has gone")
        del self.served[model]

    # --- processes and nodes ---

    def processes(self, title: str) -> list[psutil.Process]:
        """The processes of this cluster that have this in their command line."""
        found = []
        for process in local_cluster.processes(self.cluster):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self, title: str) -> psutil.Process:
        """SIGKILL the first process with this in its command line."""
        victim = self.processes(title)[0]
        victim.kill()
        return victim

    def raylet(self, node: str) -> psutil.Process:
        """The raylet of a node, which its workers do not outlive."""
        every = self.processes(f"--node_ip_address={ray_node(node)['NodeManagerAddress']}")
        (found,) = [one for one in every if one.name() == "raylet"]
        return found

    def mend_nodes(self) -> None:
        """Start the nodes again that are gone."""
        for index in range(ISLANDS):
            if not is_alive(f"node-{index}"):
                local_cluster.start_node_again(self.cluster, index, ISLANDS, GPUS_PER_ISLAND, os.environ)
                until(lambda index=index: is_alive(f"node-{index}"), f"node-{index} is back")

    # --- what must hold after every disturbance ---

    def assert_tidy(self) -> None:
        """Every application and placement group belongs to a replica on record, or to an ingress; none is twice."""
        with contextlib.suppress(AssertionError):
            until(lambda: self._found() == self._recorded(), "nothing is left over", timeout_s=30)
        found, recorded = self._found(), self._recorded()
        assert found == recorded, f"{found} instead of {recorded}"

    def _found(self) -> tuple[Counter[str], Counter[str]]:
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        seated = (group["name"].removeprefix(fleet.REPLICA_ID_PREFIX).partition("#")[0] for group in groups)
        return Counter(list(fleet.applications())), Counter(seated)

    def _recorded(self) -> tuple[Counter[str], Counter[str]]:
        fleets = self.control.overview().fleets
        replicas = [replica.name for one in fleets for replica in one.replicas]
        return Counter([*replicas, *(one.ingress for one in fleets)]), Counter(replicas)


def ray_node(name: str) -> dict[str, Any]:
    """What Ray says of the node that we call so; the last one, where it was started again."""
    mine: Iterator[dict[str, Any]] = (
        node for node in ray.nodes() if node["Labels"].get(local_cluster.NODE_LABEL) == name
    )
    return max(mine, key=lambda node: node["Alive"])


def is_alive(name: str) -> bool:
    """Whether the node is part of the cluster now."""
    return bool(ray_node(name)["Alive"])


def answers(url: str) -> bool:
    """Whether new requests are taken."""
    try:
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def seen(deployed: Deployed) -> FleetView | None:
    """The fleet as it is; None while the controller is away."""
    try:
        return deployed.view()
    except ControlError as error:
        if not error.may_pass:
            raise
        return None


def settled(deployed: Deployed, version: int | None = None) -> FleetView | None:
    """The fleet once it is as wanted."""
    view = seen(deployed)
    if view is None or view.next_ingress is not None:
        return None
    return view if view.phase == "steady" and version in (None, view.version) else None


def reach(deployed: Deployed, pools: dict[str, int], **target: Any) -> FleetView:
    """Ask for pools and wait until they serve."""
    accepted = deployed.control.set_pools(deployed.model, PoolsTarget(pools=pools, reason="test", **target))
    view: FleetView = until(lambda: settled(deployed, accepted.version), f"{pools} serves", timeout_s=SETTLE_TIMEOUT_S)
    return view


def shapes_of(view: FleetView) -> list[str]:
    """The shapes of all replicas."""
    return sorted(replica.shape for replica in view.replicas)


def names_of(view: FleetView) -> set[str]:
    """The names of all replicas."""
    return {replica.name for replica in view.replicas}


def when(deployed: Deployed, is_time: Callable[[FleetView], bool], what: str) -> FleetView:
    """Wait for a moment that may be short."""

    def look() -> FleetView | None:
        view = seen(deployed)
        return view if view is not None and is_time(view) else None

    view: FleetView = until(look, what, SETTLE_TIMEOUT_S, LOOK_EVERY_S)
    return view


def when_busy(deployed: Deployed) -> None:
    """Wait until the streams run."""
    when(
        deployed,
        lambda view: sum(replica.unfinished_requests for replica in view.replicas) >= LIVE_STREAMS,
        f"{LIVE_STREAMS} requests run",
    )
