"""Probes of the link between the islands: plain transfers and all-reduces over gloo, without any model.

gloo is what the simulated GPUs talk through, as nccl-tests measures what real ones do. Two Ray actors, one on each
island, run the same list of sizes; the times are those of the first.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist

from deployments.crossover.namespaces import ADDRESSES, Speed
from deployments.crossover.record import LinkProbe

SIZES_BYTES = (64, 4 * 2**10, 32 * 2**10, 256 * 2**10, 2**20)
REPEATS = 25
MIN_REPEATS = 3
BUDGET_S = 1.0  # of each size; a slow link is steady enough for fewer repeats
PORT = 29_500
TIMEOUT_S = 120
_WARM_UPS = 3


class Prober:
    """One end of the link, as a Ray actor."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        torch.set_num_threads(1)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        os.environ.update(MASTER_ADDR=ADDRESSES[0], MASTER_PORT=str(PORT))
        dist.init_process_group("gloo", rank=rank, world_size=len(ADDRESSES))

    def measure(self) -> tuple[dict[int, float], dict[int, float]]:
        """Median seconds of one transfer and of one all-reduce, by size in bytes."""
        send_recv_s = {size: self._median_s(size, self._there_and_back) / 2 for size in SIZES_BYTES}
        all_reduce_s = {size: self._median_s(size, dist.all_reduce) for size in SIZES_BYTES}
        return send_recv_s, all_reduce_s

    def _there_and_back(self, tensor: torch.Tensor) -> None:
        for sender in range(len(ADDRESSES)):
            if sender == self._rank:
                dist.send(tensor, dst=1 - sender)
            else:
                dist.recv(tensor, src=sender)

    def _median_s(self, size_bytes: int, exchange: Callable[[torch.Tensor], Any]) -> float:
        tensor = torch.zeros(size_bytes // 4)
        for _ in range(_WARM_UPS):
            exchange(tensor)
        # Both ends must agree on the number of repeats.
        repeats = torch.tensor([max(MIN_REPEATS, min(REPEATS, int(BUDGET_S / self._timed_s(tensor, exchange))))])
        dist.broadcast(repeats, src=0)
        return statistics.median(self._timed_s(tensor, exchange) for _ in range(int(repeats.item())))

    def _timed_s(self, tensor: torch.Tensor, exchange: Callable[[torch.Tensor], Any]) -> float:
        dist.barrier()
        start_s = time.perf_counter()
        exchange(tensor)
        return time.perf_counter() - start_s


def start_probers(selectors: Sequence[Mapping[str, str]]) -> list[Any]:
    """An actor on each node; `selectors` are the labels of the nodes, in the order of `ADDRESSES`."""
    actor_class = ray.remote(Prober)
    return [
        actor_class.options(num_cpus=1, label_selector=dict(selector)).remote(rank)
        for rank, selector in enumerate(selectors)
    ]


def probe(probers: list[Any], speed: Speed) -> LinkProbe:
    """Measure the link as it is now; `speed` is only its name in the answer."""
    (send_recv_s, all_reduce_s), _ = ray.get([prober.measure.remote() for prober in probers], timeout=TIMEOUT_S)
    return LinkProbe(speed=speed.name, send_recv_s=send_recv_s, all_reduce_s=all_reduce_s)
