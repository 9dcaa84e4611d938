"""CPU slots that Ray and vLLM treat as GPUs, so that a sharded model really runs on a machine without one.

A vLLM platform plugin (entry point group ``vllm.platform_plugins``). It is dormant unless the raylets of a simulated
cluster export ``ARCHIPELAGO_SIMULATED_GPUS=1`` (local_cluster.py does), so nothing here sits on the path of real GPUs.
What it adds to vLLM 0.32's CPU backend, and why:

* platform.py      Ray may schedule workers ("GPU" is only a scheduling token here); picks the classes below;
                   a single rank runs in EngineCore, as it does with a GPU.
* executor.py      EngineCore joins the raylet of its own simulated node, not the head's.
* waiting.py       whoever waits for a message leaves the core to those who compute.
* worker.py        pipeline stages after the first get their input buffers; expert parallelism respects its map.
* communicator.py  shared memory only inside a simulated node, TCP between nodes; the collectives that
                   data-parallel attention needs.
"""

import os

SIMULATED_GPUS_ENV = "ARCHIPELAGO_SIMULATED_GPUS"


def register() -> str | None:
    """Name the platform class when this process belongs to a simulated cluster (called by vLLM in every process)."""
    if os.environ.get(SIMULATED_GPUS_ENV) != "1":
        return None
    return "deployments.simulated_gpus.platform.SimulatedGpuPlatform"
