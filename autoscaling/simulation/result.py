"""What came of a run: how many requests kept the SLO, what it cost, and what was done. Plain values, as JSON too."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Seconds; the smallest value that so many do not exceed, infinite where too many were never answered."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A decision that changed something, or `ticks` holds in a row for one cause.

    `accepted` is False where the fleet could not do it, and `answer` then says why.
    """

    at_s: float
    kind: str
    cause: str
    target: dict[str, int]
    reason: str
    ticks: int = 1
    way: str = "none"
    accepted: bool = True
    answer: str = ""
    expected: dict[str, float] | None = None
    options: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One value per minute, by the minute of the arrival; `attainment` is None for a minute without arrivals.

    `gpus` are by shape and held on average in the minute, those of replicas that start or drain included.
    """

    minute_s: tuple[float, ...]
    requests_per_s: tuple[float, ...]
    input_tokens_per_s: tuple[float, ...]
    output_tokens_per_s: tuple[float, ...]
    attainment: tuple[float | None, ...]
    ttft_p99_s: tuple[float | None, ...]
    tpot_p99_s: tuple[float | None, ...]
    gpus: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of all arrivals after settling: `arrivals == good + late + refused + unfinished`.

    `late` were answered outside the SLO, `refused` got a 429 or 503, `unfinished` never got their whole answer.
    `attainment` is good/arrivals. `gpu_hours` are allocated ones, starts and drains included, up to the last arrival.
    `reversals` are changes that take back the one before within ten minutes.
    """

    policy: str
    trace: str
    seed: int
    duration_s: float
    arrivals: int
    good: int
    late: int
    refused: int
    unfinished: int
    attainment: float
    gpu_hours: float
    goodput_requests_per_s: float
    goodput_tokens_per_s: float
    worst_5_minutes: float
    minutes_kept: float
    ttft_s: Percentiles
    tpot_s: Percentiles
    actions: dict[str, int]
    reversals: int
    moved_requests: int
    recomputed_tokens: int
    longest_stall_s: float
    attainment_by_class: dict[str, float]
    decisions: tuple[Decided, ...]
    series: Series

    def as_json(self) -> dict[str, Any]:
        """Plain values; an infinite time is null."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(self))
        return plain

    def text(self) -> str:
        """The same figures as a JSON document that is equal for equal runs."""
        return json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
