"""Times what the ranks of a torch process group exchange: transfers between the first two, all-reduces among all.

nccl-tests measures links of GPUs in this way; the same with gloo measures those of simulated ones.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

SMALL_BYTES = (64, 4 * 2**10, 32 * 2**10, 256 * 2**10, 2**20)
_REPEATS = 25
_LEAST_REPEATS = 3
_BUDGET_S = 1.0  # of each size; a slow link is steady enough for fewer repeats
_WARM_UPS = 3
Times = dict[int, float]
Exchange = Callable[[torch.Tensor], object]


def exchange_times(sizes_bytes: Sequence[int], finish: Callable[[], None] | None = None) -> tuple[Times, Times]:
    """Median seconds of one transfer and of one all-reduce, by size in bytes; every rank of the default group calls it.

    `finish` waits for what an exchange has only queued, as NCCL does.
    """
    send_recv_s = {size: _median_s(size, _finished(_there_and_back, finish)) / 2 for size in sizes_bytes}
    return send_recv_s, {size: _median_s(size, _finished(dist.all_reduce, finish)) for size in sizes_bytes}


def _there_and_back(tensor: torch.Tensor) -> None:
    rank = dist.get_rank()
    if rank >= 2:
        return
    for sender in range(2):
        if sender == rank:
            dist.send(tensor, dst=1 - sender)
        else:
            dist.recv(tensor, src=sender)


def _finished(exchange: Exchange, finish: Callable[[], None] | None) -> Exchange:
    if finish is None:
        return exchange

    def whole(tensor: torch.Tensor) -> None:
        exchange(tensor)
        finish()

    return whole


def _median_s(size_bytes: int, exchange: Exchange) -> float:
    tensor = torch.zeros(size_bytes // 4)
    for _ in range(_WARM_UPS):
        exchange(tensor)
    # All ranks must agree on the number of repeats.
    wanted = min(_REPEATS, int(_BUDGET_S / _timed_s(tensor, exchange)))
    repeats = torch.tensor([max(_LEAST_REPEATS, wanted)])
    dist.broadcast(repeats, src=0)
    return statistics.median(_timed_s(tensor, exchange) for _ in range(int(repeats.item())))


def _timed_s(tensor: torch.Tensor, exchange: Exchange) -> float:
    dist.barrier()
    start_s = time.perf_counter()
    exchange(tensor)
    return time.perf_counter() - start_s
