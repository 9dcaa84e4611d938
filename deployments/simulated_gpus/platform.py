"""The CPU platform of vLLM, schedulable by Ray as if each CPU slot were a GPU."""

from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class SimulatedGpuPlatform(CpuPlatform):
    """Stays ``PlatformEnum.CPU``, so every ``is_cpu()`` branch of vLLM still holds.

    ``ray_device_key`` is empty on the stock CPU platform, which is all that keeps its workers off the Ray executor
    (vllm/v1/executor/ray_utils.py, initialize_ray_cluster).
    """

    ray_device_key: str = "GPU"
    # Functions with a @torch.compile of their own, which enforce_eager does not reach, would compile C++ for seconds
    # inside the first step of every worker.
    simple_compile_backend: str = "eager"
    ray_noset_device_env_vars: list[str] = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]  # noqa: RUF012  (as declared)

    @classmethod
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        """Choose our worker and executor before the CPU platform fills in its own."""
        parallel_config = vllm_config.parallel_config
        if parallel_config.worker_cls == "auto":
            parallel_config.worker_cls = "deployments.simulated_gpus.worker.SimulatedGpuWorker"
        if parallel_config.distributed_executor_backend == "ray":
            from deployments.simulated_gpus.executor import SimulatedNodeExecutor

            parallel_config.distributed_executor_backend = SimulatedNodeExecutor
        backend = parallel_config.distributed_executor_backend
        super().check_and_update_config(vllm_config)
        if backend == "uni":
            # The stock platform gives a single rank a process of its own, to set its OpenMP environment
            # (vllm/platforms/cpu.py:335). Here that comes with the raylet (local_cluster.py), and EngineCore need not
            # spend a core on waiting.
            parallel_config.distributed_executor_backend = backend

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Name the communicator that keeps shared memory inside a simulated node."""
        return "deployments.simulated_gpus.communicator.SimulatedGpuCommunicator"
