"""What a scaling study consists of: points over numbers of GPUs, curves of them, and where curves turn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from placement import parts
from placement.shape import Shape

Way = Literal["tp", "tp_across", "pp", "tp_pp", "tp_ep", "dp_ep"]
Measure = Literal["decode", "prefill", "tokens", "prompt_tokens"]

WAYS: Mapping[Way, str] = MappingProxyType(
    {
        "tp": "tensor parallel inside an island",
        "tp_across": "tensor parallel across islands",
        "pp": "pipeline stages of one GPU",
        "tp_pp": "tensor parallel inside, pipeline across",
        "tp_ep": "tensor parallel attention, whole experts",
        "dp_ep": "data-parallel attention, whole experts",
    }
)
MEASURES: Mapping[Measure, str] = MappingProxyType(
    {
        "decode": "time per token",
        "prefill": "time to read a prompt",
        "tokens": "output tokens/s",
        "prompt_tokens": "prompt tokens/s",
    }
)
PARTS: Mapping[str, str] = MappingProxyType({**parts.PARTS, "prompts": "prompts read in between"})
_MS = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One replica on `gpus` GPUs that touch `islands` islands. Where it does not fit, `reason` says why.

    `decode_ms` is the step that gives each of `running` requests its next token, no prompt in between; `running` is
    less than asked where the KV cache has no room. `tpot_ms` is the same with prompts in between. `prefill_ms` is to
    read one prompt alone, or one on each data-parallel rank. `tokens_per_s` is the most output at any batch, prompts
    being read as well, and `best_running` that batch; `prompt_tokens_per_s` is what prefill alone reads.
    `gain_per_gpu` compares with the largest point of at most half the GPUs; it is empty where none fits. Parts are keys
    of `PARTS`: of `decode_ms`, of `prefill_ms`, and of the time per token at the best batch.
    """

    gpus: int
    shape: Shape
    islands: int
    reason: str = ""
    running: float = 0.0
    decode_ms: float = math.inf
    tpot_ms: float = math.inf
    prefill_ms: float = math.inf
    tokens_per_s: float = 0.0
    best_running: float = 0.0
    prompt_tokens_per_s: float = 0.0
    communication_share: float = 0.0
    gain_per_gpu: Mapping[Measure, float] = field(default_factory=dict, hash=False)
    parts_ms: Mapping[str, float] = field(default_factory=dict, hash=False)
    prefill_parts_ms: Mapping[str, float] = field(default_factory=dict, hash=False)
    best_parts_ms: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def fits(self) -> bool:
        return not self.reason

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens_per_s / self.gpus

    def speed(self, measure: Measure) -> float:
        """How much gets done in a second; more is better whatever the measure."""
        if measure == "decode":
            return _MS / self.decode_ms
        if measure == "prefill":
            return _MS / self.prefill_ms
        return self.tokens_per_s if measure == "tokens" else self.prompt_tokens_per_s

    def costs_ms(self, measure: Measure) -> dict[str, float]:
        """By part, what adds up to a second over the speed: of a step, a prompt, or a single token."""
        parts = {"decode": self.parts_ms, "tokens": self.best_parts_ms}.get(measure, self.prefill_parts_ms)
        scale = _MS / self.speed(measure) / sum(parts.values())
        return {part: time_ms * scale for part, time_ms in parts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The first step of a curve whose gain is under the threshold ("diminishing"), or below 0 ("negative").

    `cause` is a key of `PARTS`; `sentence` says it all with numbers.
    """

    measure: Measure
    kind: Literal["diminishing", "negative"]
    before: Point
    after: Point
    gain_per_gpu: float
    cause: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points in order of GPUs, those that do not fit among them."""

    way: Way
    points: tuple[Point, ...]
    turns: tuple[Turn, ...] = ()

    @property
    def fitting(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.fits)
