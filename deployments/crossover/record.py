"""What one run of the experiment measured, as values that go to a file and come back. Pure."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Cut(StrEnum):
    """How the model is cut, and whether the cut crosses the link between the islands."""

    TP1 = "tp1"
    TP2_INSIDE = "tp2 inside"
    TP2_ACROSS = "tp2 across"
    PP2_ACROSS = "pp2 across"


ACROSS = (Cut.TP2_ACROSS, Cut.PP2_ACROSS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of engine step: `requests` run together; the step is a prompt or, for each request, one more token."""

    name: str
    requests: int
    prompt_tokens: int
    output_tokens: int

    @property
    def is_prefill(self) -> bool:
        """Whether the step is the prompt's."""
        return self.output_tokens == 1

    @property
    def step_tokens(self) -> int:
        """Tokens that go through every layer in one step."""
        return self.requests * (self.prompt_tokens if self.is_prefill else 1)


DECODE_1 = Work(name="decode, batch 1", requests=1, prompt_tokens=16, output_tokens=24)
DECODE_8 = Work(name="decode, batch 8", requests=8, prompt_tokens=16, output_tokens=24)
PREFILL_256 = Work(name="prefill, 256 tokens", requests=1, prompt_tokens=256, output_tokens=1)
WORKS = (DECODE_1, DECODE_8, PREFILL_256)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProbe:
    """Median seconds of a plain transfer and of an all-reduce between the islands, by size in bytes."""

    speed: str
    send_recv_s: Mapping[int, float]
    all_reduce_s: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of `count` steps: the median and both quartiles."""

    cut: Cut
    speed: str
    work: str
    median_s: float
    low_s: float
    high_s: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run; `conditions` says where and with what."""

    conditions: Mapping[str, Any]
    links: tuple[LinkProbe, ...]
    steps: tuple[StepTime, ...]

    def step_s(self, cut: Cut, speed: str, work: str) -> float:
        """The median of one case. KeyError when it was not measured."""
        for step in self.steps:
            if (step.cut, step.speed, step.work) == (cut, speed, work):
                return step.median_s
        raise KeyError(f"{cut} at {speed}, {work}: not measured")

    def to_json(self) -> str:
        """As a file."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read what `to_json` wrote."""
        content = json.loads(text)
        return cls(
            conditions=content["conditions"],
            links=tuple(_link(link) for link in content["links"]),
            steps=tuple(StepTime(**step | {"cut": Cut(step["cut"])}) for step in content["steps"]),
        )


def _link(content: Mapping[str, Any]) -> LinkProbe:
    send_recv_s, all_reduce_s = (
        {int(size): seconds for size, seconds in content[name].items()} for name in ("send_recv_s", "all_reduce_s")
    )
    return LinkProbe(speed=content["speed"], send_recv_s=send_recv_s, all_reduce_s=all_reduce_s)
