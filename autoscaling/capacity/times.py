"""How long replicas take to start and to end: measured by the fleet where known, else estimated.

    start = process + communicators + weights of one GPU / loading bandwidth + compiled code and graphs + first requests

The estimates are for a warm host: weights in the page cache, compiled code in vLLM's cache on disk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaling.capacity.site import Site
from placement.models.memory import memory_use
from placement.shape import Shape

_PROCESS_S = 15.0  # Ray actor, imports, CUDA context, profiling run: vLLM is ready about 20 s after the weights of a
# small model (Run:ai streamer, Llama-3-8B on A10G: weights 4.9 s, ready 23 s)
_COMMUNICATORS_S = 4.0  # NCCL takes 1 to 4 s for 8 to 16 ranks
_PER_GROUP_S = 0.3  # each further group, 0.1 to 0.5 s
_LOAD_BYTES_PER_S = 2e9  # of one GPU from the page cache: safetensors 2 to 6 GB/s for one process, 0.9 GB/s for each of
# eight (vllm#19824: 70B in FP8, TP8, 10 s)
_COMPILED_S_PER_LAYER = 0.2  # cached torch.compile, 5 to 8 s for a model of 32 layers (vllm#20264)
_GRAPHS_S_PER_LAYER = 0.3  # capture, 17 to 37 s for 67 sizes of an 8B model (vllm#20264), fewer sizes today
_FIRST_REQUEST_S = 5.0  # 2.6 to 6.6 s without warm-up (vLLM's blog of 2025-10-26)
_DRAIN_S = 30.0
_STOP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds. `starts_s` are by shape; `drain_s` is how long the streams of a replica that takes no more go on, and
    `stop_s` how long its GPUs then take to come free.
    """

    starts_s: Mapping[Shape, float] = field(hash=False)
    drain_s: float = _DRAIN_S
    stop_s: float = _STOP_S

    def start_s(self, shape: Shape) -> float:
        """Until a replica of `shape` serves; of a shape that nothing is known of, the longest that is."""
        known = self.starts_s.get(shape)
        return max(self.starts_s.values(), default=math.inf) if known is None else known


def times_of(
    site: Site,
    *,
    measured_s: Mapping[Shape, float] | None = None,
    drain_s: float = _DRAIN_S,
    stop_s: float = _STOP_S,
) -> Times:
    """Times for all shapes of `site`. `measured_s` are starts that were seen; they replace the estimates."""
    estimated = {shape: estimated_start_s(site, shape) for shape in site.shapes}
    return Times(starts_s={**estimated, **(measured_s or {})}, drain_s=drain_s, stop_s=stop_s)


def estimated_start_s(site: Site, shape: Shape) -> float:
    """Seconds until a replica of `shape` serves."""
    use = memory_use(site.model, shape, site.region_of(shape).gpu, context_tokens=0, utilisation=site.utilisation)
    groups = sum(degree > 1 for degree in (shape.tp, shape.pp, shape.dp, shape.ep))
    communicators_s = _COMMUNICATORS_S + (groups - 1) * _PER_GROUP_S if groups else 0.0
    stage_layers = math.ceil(site.model.layers / shape.pp)
    return (
        _PROCESS_S
        + communicators_s
        + use.weights_bytes / _LOAD_BYTES_PER_S
        + stage_layers * (_COMPILED_S_PER_LAYER + _GRAPHS_S_PER_LAYER)
        + _FIRST_REQUEST_S
    )
