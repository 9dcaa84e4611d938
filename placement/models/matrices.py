"""The matrices of one kind, with what decides their memory and the speed of their products."""

from dataclasses import dataclass

from placement.models.attention import AttentionLayers


@dataclass(frozen=True, slots=True)
class Matrices:
    """Of `layers` layers, each with `parameters` weights. `used_parameters` is what one token uses of them, 0 for all.

    `kind` is attention, linear, dense, experts, shared or router; `math` is bf16, fp8, fp4, int8 or mxfp4. `attention`
    has the single projections of that kind, which tensor parallelism does not cut alike.
    """

    kind: str
    layers: int
    parameters: int
    bytes_per_weight: float
    math: str
    used_parameters: int = 0
    attention: AttentionLayers | None = None

    @property
    def used(self) -> int:
        return self.used_parameters or self.parameters

    @property
    def weight_bytes(self) -> float:
        """Of all layers together."""
        return self.layers * self.parameters * self.bytes_per_weight
