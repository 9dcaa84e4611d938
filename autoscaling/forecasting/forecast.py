"""What demand is expected over the next minutes: a likely path, and one it stays under with a given probability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoscaling.forecasting.combination import Projection, project
from autoscaling.observation import Array, Demand, History
from placement import Lengths
from placement.workload import MAX_MEAN_TOKENS

# Below this a step is mostly noise, and a burst of a few seconds would be a step of its own.
_SHORTEST_STEP_S = 60.0
_DAY_S = 86_400.0
_SEASON_NAMES = {_DAY_S: "yesterday", 7 * _DAY_S: "last week"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rates:
    """Demand per second in each step to come; all three have the same length."""

    requests_per_s: Array
    input_tokens_per_s: Array
    output_tokens_per_s: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """Steps of `step_s` from the end of the history on, at least `horizon_s` long together.

    `mean` is the likely path (as often too low as too high). The maximum of `quantile` is not exceeded by the largest
    step of the horizon with the probability that was asked for. `method` says what the forecast of requests rests on;
    `error` is its mean absolute error over the mean demand when replayed on the history, NaN where that is too short.
    """

    step_s: float
    horizon_s: float
    mean: Rates
    quantile: Rates
    method: str
    error: float

    def demand_at(self, at_s: float, like: Demand, *, quantile: bool) -> Demand:
        """Demand `at_s` seconds after the end of the history (the last step's beyond the horizon).

        Mean lengths are those forecast; spread, prefix hits and dispersion are those of `like`.
        """
        step = self._step(at_s)
        return _demand(self.quantile if quantile else self.mean, slice(step, step + 1), like)

    def peak(self, like: Demand, *, until_s: float, quantile: bool) -> Demand:
        """The most of each, requests, prompt and answer tokens, from now to `until_s` after the end of the history."""
        return _demand(self.quantile if quantile else self.mean, slice(0, self._step(until_s) + 1), like)

    def _step(self, at_s: float) -> int:
        return min(max(math.ceil(at_s / self.step_s) - 1, 0), len(self.mean.requests_per_s) - 1)


def forecast(
    history: History,
    *,
    horizon_s: float,
    quantile: float,
    dispersion: float = 0.0,
    seasons_s: Sequence[float] = (_DAY_S, 7 * _DAY_S),
) -> Forecast:
    """Forecast the demand after `history` for `horizon_s`, and the `quantile` (0.5 to below 1) of its maximum.

    The quantile is of what is counted. With a `dispersion` (variance of the arrivals over their mean) it is of the rate
    behind that: what counts of such arrivals scatter by chance is left out, for who allows for it elsewhere.

    Steps shorter than a minute are joined to minutes. A season counts where the history is longer than it. Raises
    ValueError where a series has no known step, or the horizon or quantile makes no sense.
    """
    if not horizon_s > 0:
        raise ValueError(f"horizon_s is {horizon_s:g}; a forecast needs one above 0.")
    if not 0.5 <= quantile < 1:
        raise ValueError(f"quantile is {quantile:g}; it must be at least 0.5 and below 1.")
    joined = max(1, round(_SHORTEST_STEP_S / history.step_s))
    step_s = joined * history.step_s
    leads = max(1, math.ceil(horizon_s / step_s - 1e-9))
    seasons = [(_SEASON_NAMES.get(each, f"{each / 3600:g} h ago"), round(each / step_s)) for each in seasons_s]
    requests, inputs, outputs = (
        _joined(getattr(history, name), joined, name)
        for name in ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s")
    )

    def ahead(rates: Array, noise: float, chance: float) -> Projection:
        return project(rates, leads=leads, quantile=quantile, noise=noise, chance=chance, seasons=seasons)

    day = round(_DAY_S / step_s)
    # The root of a Poisson count has a variance of 1/4; tokens come in lumps of a request, of lengths that differ.
    of_requests = ahead(requests, math.sqrt(0.25 / step_s), math.sqrt(0.25 * dispersion / step_s))
    of_tokens = []
    for each in (inputs, outputs):
        lump = 0.25 * _tokens_per_request(each[-day:], requests[-day:]) / step_s
        of_tokens.append(ahead(each, math.sqrt(2 * lump), math.sqrt((1 + dispersion) * lump) if dispersion else 0.0))
    ranges = [_seen(each[-day:], requests[-day:]) for each in (inputs, outputs)]
    return Forecast(
        step_s=step_s,
        horizon_s=horizon_s,
        mean=_consistent(of_requests.mean, [each.mean for each in of_tokens], ranges),
        quantile=_consistent(of_requests.quantile, [each.quantile for each in of_tokens], ranges),
        method=_spelled(of_requests.weights),
        error=of_requests.error,
    )


def _joined(rates: Array, steps: int, name: str) -> Array:
    """Means over `steps` each, counted from the newest; NaN where none of them is known."""
    values = np.asarray(rates, dtype=np.float64)
    if not np.isfinite(values).any():
        raise ValueError(f"{name} of the history has no known step; a forecast needs one.")
    if steps == 1:
        return values
    grid = np.concatenate((np.full(-len(values) % steps, np.nan), values)).reshape(-1, steps)
    known = np.isfinite(grid)
    counts = known.sum(axis=1)
    return np.where(counts > 0, np.where(known, grid, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def _tokens_per_request(tokens: Array, requests: Array) -> float:
    """At least one: a request has a token."""
    both = np.isfinite(tokens) & np.isfinite(requests)
    total = float(requests[both].sum())
    return max(1.0, float(tokens[both].sum()) / total) if total > 0 else 1.0


def _seen(tokens: Array, requests: Array) -> tuple[float, float]:
    """The least and the most tokens per request that a step had."""
    served = np.isfinite(tokens) & (requests > 0)
    ratios = tokens[served] / requests[served]
    return (float(ratios.min()), float(ratios.max())) if len(ratios) else (0.0, MAX_MEAN_TOKENS)


def _consistent(requests: Array, tokens: Sequence[Array], ranges: Sequence[tuple[float, float]]) -> Rates:
    """The three series were forecast apart; lengths that never were are not made of them."""
    inputs, outputs = (
        np.clip(each, low * requests, high * requests) for each, (low, high) in zip(tokens, ranges, strict=True)
    )
    return Rates(requests_per_s=requests, input_tokens_per_s=inputs, output_tokens_per_s=outputs)


def _spelled(weights: dict[str, float]) -> str:
    """`trend 60 %, last value 40 %`: what has a tenth or more, the heaviest first."""
    ordered = sorted(weights.items(), key=lambda each: -each[1])
    return ", ".join(f"{name} {weight:.0%}".replace("%", " %") for name, weight in ordered if weight >= 0.1)


def _demand(rates: Rates, steps: slice, like: Demand) -> Demand:
    requests = float(rates.requests_per_s[steps].max())

    def lengths(tokens: Array, of: Lengths) -> Lengths:
        mean = float(tokens[steps].max()) / requests if requests > 0 else of.mean_tokens
        # Tokens are those of answers: of a queue that is worked off there are many to next to no arrivals.
        return Lengths(mean_tokens=min(max(1.0, mean), MAX_MEAN_TOKENS), spread=of.spread)

    return Demand(
        requests_per_s=requests,
        input_tokens=lengths(rates.input_tokens_per_s, like.input_tokens),
        output_tokens=lengths(rates.output_tokens_per_s, like.output_tokens),
        prefix_hit_rate=like.prefix_hit_rate,
        dispersion=like.dispersion,
    )
