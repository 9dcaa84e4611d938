"""What is known of a model's past: what was asked, how it was answered, and what ran. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from autoscaling.observation import Array, History, Pools, pools_of
from placement import Shape

# Latencies and lengths are looked at in windows of this: tokens are counted when they are made and requests when they
# come, so a shorter window mixes the tokens of one load with the requests of another. The worst 5 minutes are one.
WINDOW_S = 300.0


class PastError(ValueError):
    """A past that cannot be replayed. The message says why, and what would be accepted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Habits:
    """Of prompts or answers: the spread of lengths by window (NaN: too few to say) and of all, and the longest."""

    spreads: Array
    spread: float
    most_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """By window: requests that came to an end or were refused, and at least how many of them kept the SLO."""

    ended: Array
    kept: Array

    @property
    def attainment(self) -> float | None:
        ended = float(np.nansum(self.ended))
        return float(np.nansum(self.kept)) / ended if ended else None

    @property
    def shares(self) -> Array:
        """By window, NaN without requests."""
        shares = np.full(len(self.ended), np.nan)
        np.divide(self.kept, self.ended, out=shares, where=self.ended > 0)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """By step of the history: replicas that held GPUs by shape, in any phase, and the target; NaN where unknown."""

    held: Mapping[Shape, Array] = field(hash=False)
    desired: Mapping[Shape, Array] = field(hash=False)

    def gpus(self, steps: int) -> dict[Shape, Array]:
        """GPUs held in each of the first `steps`."""
        return {shape: shape.gpus * _last_known(row)[:steps] for shape, row in self.held.items()}

    def targets(self, step_s: float) -> tuple[tuple[float, Pools], ...]:
        """What was wanted, each from its time (seconds since the start of the history) on; steps of none are left."""
        rows = {shape: _last_known(row) for shape, row in self.desired.items()}
        found: list[tuple[float, Pools]] = []
        for step in range(max(map(len, rows.values()), default=0)):
            pools = pools_of({shape: round(row[step]) for shape, row in rows.items()})
            if pools and (not found or found[-1][1] != pools):
                found.append((step * step_s if found else 0.0, pools))
        return tuple(found)


def _last_known(row: Array) -> Array:
    """A gauge with its gaps filled: what ran before went on; before the first sample it was as that says."""
    known = np.flatnonzero(np.isfinite(row))
    if not known.size:
        return np.zeros(len(row))
    before = np.searchsorted(known, np.arange(len(row)), side="right") - 1
    return np.asarray(row[known[np.maximum(before, 0)]], dtype=np.float64)


Origin = Literal["archipelago", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """A model's past, from `start_s` on (seconds since the epoch).

    `origin` says whose series told it: ours, or those of any vLLM. `refused_share` is of all arrivals, by window.
    `ran` and `answers` are None where nothing says so; `notes` are sentences about what is missing.
    """

    model: str
    origin: Origin
    history: History
    inputs: Habits
    outputs: Habits
    refused_share: Array
    prefix_hit_rate: float
    dispersion: float
    answers: Answers | None
    ran: Ran | None
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.history.requests_per_s)

    @property
    def start_s(self) -> float:
        return self.history.end_s - self.steps * self.history.step_s

    @property
    def unknown(self) -> Array:
        """Which steps are missing, as 0 and 1."""
        return unknown_steps(self.history)


def unknown_steps(history: History) -> Array:
    """1 where a step has no requests or no tokens that are known, else 0."""
    total = history.requests_per_s + history.input_tokens_per_s + history.output_tokens_per_s
    return np.where(np.isfinite(total), 0.0, 1.0)
