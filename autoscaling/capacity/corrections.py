"""How much slower or faster each shape really is than the cost model says: a factor per shape, learnt as it serves.

The factor scales the time of an engine step. With every steady window it moves a little towards what was measured, in
the logarithm, so that being twice as fast and twice as slow weigh the same, and never beyond [0.5, 2]: a factor outside
is no correction any more but a wrong description of the hardware, which `calibrate` is for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoscaling.observation import PoolLoad
from placement import Shape

LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
FEWEST_ANSWERS = 50.0  # of one window: the rate of fewer is not known well enough
# The first windows count more because nothing is known before them.
_FIRST_WEIGHT, _LEAST_WEIGHT = 0.5, 0.1
_MOST_WAITING = 0.1  # of what runs; more is an overload, in which what arrives is not what is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What the step times of a shape are multiplied with, and how many windows that was learnt from."""

    step_factor: float = 1.0
    samples: int = 0

    def __post_init__(self) -> None:
        if not LEAST_FACTOR <= self.step_factor <= MOST_FACTOR:
            raise ValueError(
                f"step_factor is {self.step_factor:g}; it must be from {LEAST_FACTOR:g} to {MOST_FACTOR:g}."
            )


Corrections = Mapping[Shape, Correction]


def is_steady(pool: PoolLoad, window_s: float) -> bool:
    """Whether a window of a pool whose replicas did not change tells the speed of its shape."""
    return (
        pool.requests_per_s * window_s >= FEWEST_ANSWERS
        and pool.running > 0
        and pool.waiting <= _MOST_WAITING * max(pool.running, 1.0)
        and pool.preemptions_per_s == 0
    )


def corrected(corrections: Corrections, shape: Shape, measured: float) -> Corrections:
    """The corrections after one steady window of `shape`, whose steps took `measured` times as long as predicted
    without any correction."""
    if not (math.isfinite(measured) and measured > 0):
        return corrections
    known = corrections.get(shape, Correction())
    weight = max(_LEAST_WEIGHT, _FIRST_WEIGHT / (known.samples + 1))
    bounded = min(MOST_FACTOR, max(LEAST_FACTOR, measured))
    factor = known.step_factor * (bounded / known.step_factor) ** weight
    return {**corrections, shape: Correction(step_factor=factor, samples=known.samples + 1)}


def as_json(corrections: Corrections) -> dict[str, dict[str, float]]:
    """Plain values, by the name of the shape."""
    return {
        str(shape): {"step_factor": known.step_factor, "samples": known.samples}
        for shape, known in sorted(corrections.items(), key=lambda item: str(item[0]))
    }


def from_json(document: Mapping[str, Mapping[str, float]]) -> Corrections:
    """What `as_json` wrote. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    return {
        Shape.parse(name): Correction(step_factor=float(known["step_factor"]), samples=int(known["samples"]))
        for name, known in document.items()
    }
