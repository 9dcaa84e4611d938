"""The demands of the past that must not be forgotten: the most of each kind that was asked, without chance."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from autoscaling.observation import Array, Demand, History, Observation

# Single steps are noise: a length is the mean of few requests, a rate a count of them.
_SMOOTHED_OVER_S = 120.0
_FEWEST_REQUESTS = 30.0  # behind a length that is to be remembered
_CLEARLY = 3.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A demand and when it comes: in so many seconds, negative for the past."""

    demand: Demand
    in_s: float


class _Series(NamedTuple):
    """Of a history, per second: arrivals, answers, and the tokens of these."""

    rates: Array
    answered: Array
    inputs: Array
    outputs: Array

    @property
    def lengths(self) -> tuple[Array, Array]:
        """Mean tokens of prompts and of answers; not a number where none was answered."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.inputs / self.answered, self.outputs / self.answered


def extremes(observation: Observation, lookback_s: float) -> tuple[Asked, ...]:
    """The extremes of the history over `lookback_s`: of rates, of tokens, and of lengths."""
    history = observation.history
    steps = min(len(history.requests_per_s), int(lookback_s // history.step_s))
    if not steps:
        return ()
    width = max(1, min(steps, round(_SMOOTHED_OVER_S / history.step_s)))
    smooth = _smoothed(history, steps, width)
    known = np.isfinite(smooth.rates + smooth.inputs + smooth.outputs) & (smooth.rates > 0) & (smooth.answered > 0)
    if not known.any():
        return ()
    found = {_peak(series, known) for series in (smooth.rates, smooth.inputs, smooth.outputs)}
    telling = known & (smooth.answered * max(history.step_s, _SMOOTHED_OVER_S) >= _FEWEST_REQUESTS)
    if telling.any():
        found |= {_peak(lengths, telling) for lengths in smooth.lengths}
    return (
        *(_asked(observation, smooth, at) for at in sorted(found)),
        *(_asked(observation, _smoothed(history, steps, 1), at) for at in _swings(observation.demand, history, steps)),
    )


def _swings(demand: Demand, history: History, steps: int) -> set[int]:
    """Single steps with the longest prompts or answers, where these are longer than chance makes them.

    A mix that swings within the smoothing time looks like its mean, which no request has.
    """
    each = _smoothed(history, steps, 1)
    answers = each.answered * history.step_s
    counted = answers >= _FEWEST_REQUESTS
    found = set()
    rows = zip((each.inputs, each.outputs), (demand.input_tokens, demand.output_tokens), each.lengths, strict=True)
    for tokens, now, lengths in rows:
        with np.errstate(divide="ignore", invalid="ignore"):
            longer = lengths / (np.nansum(tokens) / np.nansum(each.answered)) - 1
            clear = counted & (longer > _CLEARLY * now.spread / np.sqrt(answers))
        if clear.any():
            found.add(_peak(longer, clear))
    return found


def _asked(observation: Observation, series: _Series, at: int) -> Asked:
    """The demand in one place of the history."""
    history, like = observation.history, observation.demand
    age_s = observation.at_s - history.end_s + (len(series.rates) - 1 - at) * history.step_s
    inputs, outputs = (max(1.0, round(float(lengths[at]), 6)) for lengths in series.lengths)
    demand = replace(
        like,
        requests_per_s=float(series.rates[at]),
        input_tokens=replace(like.input_tokens, mean_tokens=inputs),
        output_tokens=replace(like.output_tokens, mean_tokens=outputs),
    )
    return Asked(demand=demand, in_s=-age_s)


def _smoothed(history: History, steps: int, width: int) -> _Series:
    """Means of the last `steps` over `width` of them, each where all of its steps are known."""
    weights = np.full(width, 1 / width)
    series = (history.requests_per_s, history.answered_per_s, history.input_tokens_per_s, history.output_tokens_per_s)
    return _Series(*(np.convolve(one[-steps:], weights, mode="valid") for one in series))


def _peak(series: Array, known: np.ndarray) -> int:
    return int(np.argmax(np.where(known, series, -np.inf)))
