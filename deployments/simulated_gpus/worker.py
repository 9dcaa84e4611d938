"""CPU worker that can be a later pipeline stage and hold a subset of the experts."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip  (patches torch: must be the first vllm import)

import torch
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

from deployments.simulated_gpus.waiting import leave_the_core

_stock_apply = CPUUnquantizedExperts.apply


class SimulatedGpuWorker(CPUWorker):
    """CPUWorker plus what tensor, pipeline and expert parallelism need on CPU in vLLM 0.32."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load this rank's shard, then allocate the buffers a later pipeline stage receives into.

        GPUModelRunner allocates them in its profiling run, which CPUWorker skips for eager mode with an explicit KV
        size (vllm/v1/worker/cpu_worker.py, _should_warm_up_model).
        """
        leave_the_core()
        CPUUnquantizedExperts.apply = apply_local_experts  # type: ignore[method-assign, assignment]
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        if not get_pp_group().is_first_rank and getattr(runner, "intermediate_tensors", None) is None:
            model: Any = runner.model
            runner.intermediate_tensors = model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )


def apply_local_experts(self: CPUUnquantizedExperts, **kwargs: Any) -> None:
    """Run only the experts this rank holds.

    The stock method receives ``expert_map`` (global expert id -> local id, -1 when elsewhere), ignores it, and indexes
    local weights with global ids: a segmentation fault in csrc/cpu/cpu_fused_moe.cpp. Tokens routed elsewhere go to
    expert 0 here with weight 0; the sum over ranks adds what the others computed.
    """
    expert_map = kwargs["expert_map"]
    if expert_map is not None:
        local_ids = expert_map[kwargs["topk_ids"].long()]
        is_here = local_ids >= 0
        kwargs["topk_ids"] = torch.where(is_here, local_ids, 0).to(kwargs["topk_ids"].dtype)
        kwargs["topk_weights"] = torch.where(is_here, kwargs["topk_weights"], 0.0).to(kwargs["topk_weights"].dtype)
        kwargs["expert_map"] = None
    _stock_apply(self, **kwargs)
