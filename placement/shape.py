"""The degrees of one replica, and whether a model can be cut that way.

vLLM's expert-parallel group is all tensor- and data-parallel ranks of one pipeline stage, so `ep` is a choice between
whole experts on different GPUs (ep = tp*dp) and every expert sliced over the same GPUs (ep = 1); it adds no GPUs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from placement.models.model import ModelSpec

_PART = re.compile(r"(tp|pp|ep|dp)([1-9][0-9]{0,4})")
_ACCEPTED = (
    "parts tp, pp, ep and dp, each at most once and followed by a number above 0, such as tp4, tp2pp2 or tp2ep4dp2"
)


class ShapeError(ValueError):
    """Not a shape. The message says what was given and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tensor-, pipeline-, expert- and data-parallel degree of one replica. Raises `ShapeError` for a degree below 1."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        for name, degree in self._degrees():
            if degree < 1:
                raise ShapeError(f"{name} is {degree}; it must be at least 1.")

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Read `tp2pp2`; the order of the parts is free. Raises `ShapeError`."""
        found = _PART.findall(text)
        degrees = {name: int(degree) for name, degree in found}
        if not found or len(degrees) < len(found) or "".join(map("".join, found)) != text:
            raise ShapeError(f"{text!r} is not a shape: a shape has the {_ACCEPTED}.")
        return cls(**degrees)

    def __str__(self) -> str:
        return "".join(f"{name}{degree}" for name, degree in self._degrees() if degree > 1) or "tp1"

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def expert_shards(self) -> int:
        """GPUs of one stage that the experts of a layer are divided over, whole (ep) or sliced (no ep)."""
        return self.tp * self.dp

    def _degrees(self) -> tuple[tuple[str, int], ...]:
        return ("tp", self.tp), ("pp", self.pp), ("ep", self.ep), ("dp", self.dp)


def misfits(shape: Shape, model: ModelSpec) -> tuple[str, ...]:
    """Why `model` cannot be cut into `shape`, one sentence each; empty when it can.

    The vocabulary is not checked (vLLM pads it), and stages may hold different numbers of layers.
    """
    return (*_attention_misfits(shape, model), *_mlp_misfits(shape, model), *_expert_misfits(shape, model))


def _attention_misfits(shape: Shape, model: ModelSpec) -> Iterator[str]:
    if model.heads % shape.tp:
        yield f"tp{shape.tp} does not divide the {model.heads} attention heads of {model.name}."
    # MLA keeps one compressed KV head, which every rank of the group holds whole.
    if not model.kv_lora_rank and model.kv_heads % shape.tp and shape.tp % model.kv_heads:
        yield (
            f"tp{shape.tp} neither divides the {model.kv_heads} key-value heads of {model.name} "
            "nor is a multiple of them."
        )
    if shape.pp > model.layers:
        yield f"pp{shape.pp} is more stages than the {model.layers} layers of {model.name}."


def _mlp_misfits(shape: Shape, model: ModelSpec) -> Iterator[str]:
    if model.dense_layers and model.intermediate_size % shape.tp:
        yield f"tp{shape.tp} does not divide the intermediate size {model.intermediate_size} of {model.name}."
    if model.shared_expert_intermediate_size % shape.tp:
        yield (
            f"tp{shape.tp} does not divide the shared expert size "
            f"{model.shared_expert_intermediate_size} of {model.name}."
        )
    if model.is_moe and shape.ep == 1 and model.expert_intermediate_size % shape.expert_shards:
        yield (
            f"{shape} slices every expert over {shape.expert_shards} GPUs, which does not divide the expert size "
            f"{model.expert_intermediate_size} of {model.name}; ep{shape.expert_shards} keeps experts whole."
        )


def _expert_misfits(shape: Shape, model: ModelSpec) -> Iterator[str]:
    if not model.is_moe:
        if shape.ep > 1:
            yield f"ep{shape.ep} needs a mixture of experts; {model.name} is a dense model."
        if shape.dp > 1:
            yield f"dp{shape.dp} on a dense model only ties copies together; use {shape.dp} replicas of {model.name}."
        return
    if shape.ep not in (1, shape.expert_shards):
        accepted = "1" if shape.expert_shards == 1 else f"1 or {shape.expert_shards}"
        yield f"ep{shape.ep} with tp{shape.tp} and dp{shape.dp} is impossible: ep is {accepted} (tp*dp) there."
    if model.experts % shape.ep:
        yield f"ep{shape.ep} does not divide the {model.experts} experts of {model.name}."
