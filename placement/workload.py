"""What is asked of a model: requests of certain lengths at a certain rate, and how fast each must be answered."""

import math
from dataclasses import dataclass

from placement.fields import FieldError

MAX_MEAN_TOKENS, MAX_SPREAD = 1e8, 10.0


class WorkloadError(FieldError):
    """A workload or an SLO that nobody can have. The message names the field, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of a prompt or an answer: the mean, and how far single requests are from it.

    `spread` is the standard deviation over the mean; 0 makes every request alike.
    """

    mean_tokens: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        _check("mean_tokens", self.mean_tokens, at_least=1, at_most=MAX_MEAN_TOKENS)
        _check("spread", self.spread, at_least=0, at_most=MAX_SPREAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests, and how many of them: a rate (an open loop), a number of clients (a closed one), or neither.

    With neither the plan answers what one replica can do. `prefix_hit_rate` is the share of prompt tokens whose KV
    cache is found instead of computed.
    """

    input_tokens: Lengths
    output_tokens: Lengths
    requests_per_s: float | None = None
    concurrency: float | None = None
    prefix_hit_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.requests_per_s is not None:
            _check("requests_per_s", self.requests_per_s, at_least=1e-9, at_most=1e9)
        if self.concurrency is not None:
            _check("concurrency", self.concurrency, at_least=1, at_most=1e9)
        if self.requests_per_s is not None and self.concurrency is not None:
            raise WorkloadError("are both given; a workload has one of them.", "requests_per_s", "concurrency")
        _check("prefix_hit_rate", self.prefix_hit_rate, at_least=0, at_most=1)

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens that must be computed on average; the last token of a prompt always is."""
        return max(1.0, self.input_tokens.mean_tokens * (1 - self.prefix_hit_rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The slowest acceptable TTFT and TPOT, None for any, met by `percentile` of the requests (0.5 to 0.999)."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float = 0.9

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if value is not None:
                _check(name, value, at_least=1e-6, at_most=1e6)
        _check("percentile", self.percentile, at_least=0.5, at_most=0.999)


def _check(name: str, value: float, *, at_least: float, at_most: float) -> None:
    if not (math.isfinite(value) and at_least <= value <= at_most):
        raise WorkloadError(f"is {value:g}; it must be from {at_least:g} to {at_most:g}.", name)
