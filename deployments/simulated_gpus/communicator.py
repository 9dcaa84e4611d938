"""Collectives between simulated GPUs: shared memory inside a node, TCP (gloo) between nodes."""

from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator, _CPUSHMDistributed


class SimulatedGpuCommunicator(CpuCommunicator):
    """CpuCommunicator that knows simulated node boundaries and variable-size collectives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.dist_module, _CPUSHMDistributed):
            # Every rank has mapped the segments by now. Workers end by SIGKILL, so nobody would unlink them later.
            Path(f"/dev/shm/{self.dist_module.group_name}_{self.rank_in_group}").unlink(missing_ok=True)

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        # The stock check compares names that are equal on all nodes, so it would use shared memory across nodes.
        node_id = ray.get_runtime_context().get_node_id()
        node_ids: list[str] = [""] * self.world_size
        dist.all_gather_object(node_ids, node_id, group=self.device_group)
        return len(set(node_ids)) == 1

    def all_gatherv(
        self, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Concatenate the ranks' tensors along dim 0; rank i contributes ``sizes[i]`` rows."""
        if isinstance(input_, list):
            return [self._all_gather_rows(tensor, sizes) for tensor in input_]
        return self._all_gather_rows(input_, sizes)

    def _all_gather_rows(self, rows: torch.Tensor, sizes: list[int] | None) -> torch.Tensor:
        sizes = sizes or [rows.shape[0]] * self.world_size
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded, group=self.device_group)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    def reduce_scatterv(self, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
        """Sum the ranks' tensors and keep this rank's ``sizes[rank]`` rows of dim 0 (gloo has no reduce-scatter)."""
        sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
        total = input_.contiguous().clone()
        dist.all_reduce(total, group=self.device_group)
        first = sum(sizes[: self.rank_in_group])
        return total[first : first + sizes[self.rank_in_group]].clone()
