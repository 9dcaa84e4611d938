"""Who used the processor while something was measured: the server, its load, or a stranger that disturbed both."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReading:
    """Counters at one moment, in seconds of processor time; those of the server by process."""

    at_s: float
    machine_s: float
    load_s: float
    server_s: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUse:
    """Cores in use on average between two readings; ``others`` is what neither the server nor its load used."""

    server: float
    load: float
    others: float


def read_cpu(server: Iterable[psutil.Process]) -> CpuReading:
    """Read the counters of the machine, of the server's processes and of this process, which makes the load."""
    by_process: dict[int, float] = {}
    for process in server:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            by_process[process.pid] = times.user + times.system
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return CpuReading(
        at_s=time.perf_counter(),
        machine_s=sum(machine) - machine.idle - machine.iowait,
        load_s=own.user + own.system,
        server_s=by_process,
    )


def cpu_use(before: CpuReading, after: CpuReading) -> CpuUse:
    """Cores in use between two readings. A process that was not there at both times counts as a stranger."""
    wall_s = after.at_s - before.at_s
    both = before.server_s.keys() & after.server_s.keys()
    server = sum(after.server_s[pid] - before.server_s[pid] for pid in both) / wall_s
    load = (after.load_s - before.load_s) / wall_s
    machine = (after.machine_s - before.machine_s) / wall_s
    # The kernel counts the machine and a process in different steps, so a little less than nothing can be left.
    return CpuUse(server=server, load=load, others=max(0.0, machine - server - load))
