"""Which arithmetic each part of a model really runs in on a kind of GPU."""

from placement.clusters.hardware import GpuKind
from placement.models.model import ModelSpec


def arithmetic(math: str, gpu: GpuKind) -> str:
    """What the GPU really multiplies in: without the units for a format the weights are unpacked to 16 bits."""
    wanted = "fp4" if math == "mxfp4" else math
    return wanted if wanted in gpu.flops else "bf16"


def mlp_arithmetic(model: ModelSpec, gpu: GpuKind) -> str:
    """That of dense MLPs and shared experts."""
    return arithmetic((model.shared_math if model.is_moe else "") or model.mlp_math, gpu)


def expert_kernel(model: ModelSpec, gpu: GpuKind) -> str:
    """The arithmetic of the experts, or "w4a16" where 4-bit weights are unpacked to 16 bits on the way."""
    math = arithmetic(model.mlp_math, gpu)
    return "w4a16" if math == "bf16" and model.bytes_per_weight < 1 else math
