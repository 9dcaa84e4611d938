"""How processes wait for each other's messages when they have no core of their own."""

import time

from vllm.distributed.device_communicators import shm_broadcast

POLL_S = 100e-6  # a step takes milliseconds


def leave_the_core() -> None:
    """Have this process sleep between two looks at vLLM's message queue.

    The stock loop calls sched_yield (shm_broadcast.py:208): right where each worker has a GPU and a core. Here workers
    compute on the cores that those who wait would take from them, and from the ingress, for seconds at a time.
    """
    shm_broadcast.sched_yield = _sleep  # type: ignore[attr-defined]


def _sleep() -> None:
    time.sleep(POLL_S)
