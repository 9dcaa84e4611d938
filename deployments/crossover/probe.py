"""Probes of the link between the islands: plain transfers and all-reduces over gloo, without any model.

gloo is what the simulated GPUs talk through, as nccl-tests measures what real ones do. Two Ray actors, one on each
island, run the same list of sizes; the times are those of the first.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist

from deployments.crossover.namespaces import ADDRESSES, Speed
from deployments.crossover.record import LinkProbe
from deployments.exchange_times import SMALL_BYTES, Times, exchange_times

PORT = 29_500
TIMEOUT_S = 120


class Prober:
    """One end of the link, as a Ray actor."""

    def __init__(self, rank: int) -> None:
        torch.set_num_threads(1)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        os.environ.update(MASTER_ADDR=ADDRESSES[0], MASTER_PORT=str(PORT))
        dist.init_process_group("gloo", rank=rank, world_size=len(ADDRESSES))

    def measure(self) -> tuple[Times, Times]:
        """Median seconds of one transfer and of one all-reduce, by size in bytes."""
        return exchange_times(SMALL_BYTES)


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
