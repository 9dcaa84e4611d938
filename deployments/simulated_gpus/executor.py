"""Ray executor of a simulated cluster, where one machine runs several raylets."""

import os
from pathlib import Path

import ray
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2

from deployments.simulated_gpus.waiting import leave_the_core


class SimulatedNodeExecutor(RayExecutorV2):
    """RayExecutorV2 whose driver sits on the simulated node of its replica."""

    def _init_executor(self) -> None:
        attach_to_own_raylet()
        leave_the_core()
        super()._init_executor()


def attach_to_own_raylet() -> None:
    """Join Ray through the raylet that started this process's replica actor.

    EngineCore is a child process of the actor and therefore a new Ray driver. Among several raylets of one machine Ray
    prefers the head's for a driver, and vLLM would then take the wrong node for its own. The raylet's command line
    holds the addresses by which ``ray.init`` tells them apart: each simulated node has a loopback address of its own.
    """
    pid = os.environ.get("RAY_RAYLET_PID")
    if ray.is_initialized() or not pid or not Path(f"/proc/{pid}/cmdline").exists():
        return
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    options = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
    ray.init(address=options["gcs-address"], _node_ip_address=options["node_ip_address"])
