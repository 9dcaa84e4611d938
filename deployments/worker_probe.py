"""What a replica asks of its vLLM workers: where they are, to leave nothing behind, to take up moved requests."""

import json
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray

from deployments.verification import Whereabouts

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


PARENT_ENV = "ARCHIPELAGO_REPLICA_ACTOR"


def tell_child_where_it_is(environ: MutableMapping[str, str]) -> None:
    """For a worker that runs in a child of this actor, which Ray knows nothing of: it is where its parent is."""
    environ[PARENT_ENV] = json.dumps(_where_ray_put_us())


def _where_ray_put_us() -> dict[str, Any]:
    context = ray.get_runtime_context()
    return {
        "ray_node_id": context.get_node_id(),
        "ray_actor_id": context.get_actor_id() or "",
        "gpu_ids": tuple(map(str, context.get_accelerator_ids()["GPU"])),
    }


class WorkerProbe:
    """Mixed into the worker class by vLLM (``worker_extension_cls``), on GPUs as on simulated ones."""

    vllm_config: "VllmConfig"
    model_runner: "GPUModelRunner"

    def whereabouts(self) -> Whereabouts:
        """Answer from inside the worker process: its ranks as torch.distributed sees them, its node as Ray sees it."""
        from vllm.distributed import get_pp_group, get_tp_group

        where = _where_ray_put_us() if ray.is_initialized() else json.loads(os.environ[PARENT_ENV])
        return Whereabouts(
            dp_rank=self.vllm_config.parallel_config.data_parallel_index,
            pp_rank=get_pp_group().rank_in_group,
            tp_rank=get_tp_group().rank_in_group,
            **where,
            pid=os.getpid(),
            memory_bytes=psutil.Process().memory_info().rss,
        )

    def unlink_shared_memory(self) -> None:
        """Remove the names of vLLM's message queues from /dev/shm; whoever uses them keeps them mapped.

        Called once every process of the engine has attached. Ray ends workers by SIGKILL, and then nobody would remove
        what they created: each restart of a replica would leave hundreds of MiB behind.
        """
        for mapping in psutil.Process().memory_maps():
            if mapping.path.startswith("/dev/shm/psm_"):
                Path(mapping.path).unlink(missing_ok=True)

    def take_up_resumed_requests(self) -> None:
        """Let requests continue here that began on another engine (see ``resuming``). Called before the first one."""
        from deployments.resuming import resume_in_runner

        if not self.vllm_config.use_v2_model_runner:
            resume_in_runner(self.model_runner)
