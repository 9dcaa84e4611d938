"""Measures links of this machine: transfers and all-reduces between processes, with NCCL on GPUs or gloo on the CPU.

Each rank is a process of its own on this machine, with one GPU, or none.
"""

import multiprocessing
import os
import queue
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from deployments.discovery.grouping import ALONE, Findings
from deployments.discovery.machine import DiscoveryError
from deployments.discovery.speed import pcie_kind
from deployments.exchange_times import SMALL_BYTES, Times, exchange_times
from placement import Link, Links
from placement.collectives import Group, send_recv
from placement.collectives.fitting import fit_lines

_LARGE_BYTES = (4 * 2**20, 16 * 2**20)
_LARGE_GPU_BYTES = (64 * 2**20, 256 * 2**20)  # NVLink is not filled by less
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to measure: `ranks` processes; `gpus` are the indexes of their GPUs, empty for the CPU."""

    level: str
    link_kind: str
    ranks: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Median seconds by size in bytes of one transfer between two ranks, and of one all-reduce among all."""

    task: Task
    send_recv_s: Mapping[int, float]
    all_reduce_s: Mapping[int, float]

    @property
    def latency_s(self) -> float:
        """Of a transfer of nothing."""
        return fit_lines(list(self.send_recv_s.items()))[0][0]

    @property
    def transfer_bytes_per_s(self) -> float:
        """Of large transfers in one direction."""
        return 1 / max(fit_lines(list(self.send_recv_s.items()))[-1][1], 1e-15)

    @property
    def bus_bytes_per_s(self) -> float:
        """Of the largest all-reduce, as nccl-tests counts it: what each rank sends in a ring."""
        size, time_s = max(self.all_reduce_s.items())
        return 2 * (self.task.ranks - 1) / self.task.ranks * size / time_s

    @property
    def link(self) -> Link:
        """The link for which the planner would predict these transfers: it takes a part of a line rate to be usable."""
        kind = self.task.link_kind
        rate = Link(kind=kind, bandwidth_bytes_per_s=1e9, latency_s=0.0, source="to find the usable part")
        pair, size_bytes = Group(ranks=2, links=Links(island=rate, network=rate)), 1e12
        usable = size_bytes / send_recv(size_bytes, pair).time_s / rate.bandwidth_bytes_per_s
        return Link(
            kind=kind,
            bandwidth_bytes_per_s=self.transfer_bytes_per_s / usable,
            latency_s=self.latency_s,
            source="measured",
        )

    def as_json(self) -> dict[str, Any]:
        """All that was measured, with its unit in each name."""
        return {
            "ranks": self.task.ranks,
            "gpu_indexes": list(self.task.gpus),
            "latency_s": self.latency_s,
            "transfer_bytes_per_s": self.transfer_bytes_per_s,
            "all_reduce_bus_bytes_per_s": self.bus_bytes_per_s,
            "send_recv_s": {str(size): time_s for size, time_s in self.send_recv_s.items()},
            "all_reduce_s": {str(size): time_s for size, time_s in self.all_reduce_s.items()},
        }


def tasks_of(findings: Findings) -> list[Task]:
    """The widest island of the machine, and one GPU from each of two islands where it has several."""
    islands = [island for island in findings.islands if island.medium != ALONE and len(island.parts[0].gpus) > 1]
    tasks = []
    if islands:
        widest = max(islands, key=lambda island: len(island.parts[0].gpus))
        gpus = tuple(gpu.index for gpu in widest.parts[0].gpus)
        kind = widest.link.kind if widest.link else pcie_kind(None)
        tasks.append(Task(level="island", link_kind=kind, ranks=len(gpus), gpus=gpus))
    if len(findings.parts) > 1:
        ends = tuple(part.gpus[0].index for part in findings.parts[:2])
        kind = pcie_kind(findings.parts[0].gpus[0].pcie_generation)
        tasks.append(Task(level="machine", link_kind=kind, ranks=2, gpus=ends))
    return tasks


def on_cpu(processes: int) -> Task:
    """The same between processes of this machine, without a GPU."""
    return Task(level="island", link_kind="shared-memory", ranks=processes)


def measure(task: Task, timeout_s: float = TIMEOUT_S) -> Measured:
    """Run it. Raises `DiscoveryError` when a process fails or nothing has come after `timeout_s`."""
    context = multiprocessing.get_context("spawn")
    answers: Queue[tuple[Times, Times] | str] = context.Queue()
    with tempfile.TemporaryDirectory(prefix="archipelago-") as folder:
        store = str(Path(folder) / "store")
        processes = [context.Process(target=_run, args=(task, rank, store, answers)) for rank in range(task.ranks)]
        for process in processes:
            process.start()
        try:
            answer = answers.get(timeout=timeout_s)
        except queue.Empty:
            answer = f"nothing after {timeout_s:.0f} s"
        finally:
            _end(processes)
    if isinstance(answer, str):
        raise DiscoveryError(f"measuring the link of the {task.level} failed: {answer}.")
    send_recv_s, all_reduce_s = answer
    return Measured(task=task, send_recv_s=send_recv_s, all_reduce_s=all_reduce_s)


def _end(processes: Sequence[SpawnProcess]) -> None:
    """Once there is an answer, no process has anything left to do."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _run(task: Task, rank: int, store: str, answers: "Queue[tuple[Times, Times] | str]") -> None:
    """One rank, in a process of its own; the first to fail, or rank 0 at the end, gives the answer."""
    try:
        times = _times(task, rank, store)
    except Exception as error:  # noqa: BLE001 - torch raises what it likes; the parent must hear of it
        answers.put(f"rank {rank}: {' '.join(str(error).split())[:300]}")
        return
    if rank == 0:
        answers.put(times)


def _times(task: Task, rank: int, store: str) -> tuple[Times, Times]:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
    if task.gpus:
        os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(task.gpus[rank])}
        torch.set_default_device("cuda:0")
    backend = "nccl" if task.gpus else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=task.ranks)
    if task.gpus:
        return exchange_times((*SMALL_BYTES, *_LARGE_BYTES, *_LARGE_GPU_BYTES), torch.cuda.synchronize)
    return exchange_times((*SMALL_BYTES, *_LARGE_BYTES))
