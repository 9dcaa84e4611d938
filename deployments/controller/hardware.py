"""The nodes with GPUs that Ray has now, and which of them are about to go."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import ray
from ray._private.state import state as ray_state

from deployments.gpu_memory import GpuMemoryUnknownError, gpu_memory_bytes
from deployments.islands import Inventory, NoGpusError, inventory
from deployments.reconcile import Leaving
from placement import Cluster

NOTHING = Inventory(cluster=Cluster(nodes=()), selectors={}, ray_node_ids={})
ASK_AGAIN_S = 60.0  # a driver that did not answer
TOO_FEW_BYTES = 1  # for a rank of any model

log = logging.getLogger(__name__)


class Hardware:
    """Looks at the cluster. Keeps how much memory the GPUs of each node have, which cannot change.

    ``given_bytes`` is that memory; None to ask the driver of each node. A node whose driver has not answered counts
    with next to no memory: what serves there goes on, but what needs memory is not started there. One node with a
    broken driver must not keep the controller from looking after the others.
    """

    def __init__(self, given_bytes: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self._given_bytes = given_bytes
        self._now = now
        self._memory_bytes: dict[str, int] = {}
        self._asked: dict[str, Future[dict[str, int]]] = {}
        self._ask_again_s: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(thread_name_prefix="gpu-memory")

    def look(self) -> tuple[Inventory, Leaving]:
        """What is there, and which nodes Ray is draining until when."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
        self._measure(node for node in alive if node["NodeID"] not in self._memory_bytes)
        try:
            where = inventory(nodes, defaultdict(lambda: TOO_FEW_BYTES, self._memory_bytes))
        except NoGpusError:
            return NOTHING, {}
        # "Timestamp in ms when the node to be drained will be force killed. 0 if there is no deadline."
        # (ray/src/ray/protobuf/autoscaler.proto, DrainNodeRequest.) Without one it goes when it is idle.
        until_ms = ray_state.get_draining_nodes()
        drained = {name: until_ms[node_id] for name, node_id in where.ray_node_ids.items() if node_id in until_ms}
        return where, {name: at_ms / 1000 if at_ms else math.inf for name, at_ms in drained.items()}

    def _measure(self, unknown: Iterable[Mapping[str, Any]]) -> None:
        for node in unknown:
            node_id: str = node["NodeID"]
            if self._given_bytes is not None:
                self._memory_bytes[node_id] = self._given_bytes
            elif node_id not in self._asked and self._now() >= self._ask_again_s.get(node_id, 0.0):
                self._asked[node_id] = self._pool.submit(gpu_memory_bytes, [node])
        if not self._memory_bytes:  # the first look: without any memory nothing would fit anywhere
            wait(self._asked.values())
        for node_id, answer in list(self._asked.items()):
            if answer.done():
                del self._asked[node_id]
                self._take(node_id, answer)

    def _take(self, node_id: str, answer: Future[dict[str, int]]) -> None:
        try:
            self._memory_bytes |= answer.result()
        except GpuMemoryUnknownError as error:
            log.warning("%s; asked again in %g s", error, ASK_AGAIN_S)
            self._ask_again_s[node_id] = self._now() + ASK_AGAIN_S
