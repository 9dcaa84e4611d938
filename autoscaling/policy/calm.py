"""What was seen, without what is chance in it: rates and lengths as they were over stretches, not in single minutes.

What replicas can do at an index of dispersion, and for lengths that spread, allows for the chance in a minute. A peak
of single minutes would count it a second time, and the more minutes are remembered the higher.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoscaling.forecasting.course import Course, course
from autoscaling.observation import Array, Demand, History, Observation
from placement import Lengths

_LEAST_NEW = 0.25  # of a window: so much of it is new since the last whole step of the history
_LEAST_SPREAD = 0.1  # lengths that hardly differ still change from minute to minute
_SURELY = 2.0  # standard errors
_MOST_LONGER = math.log(2)  # of few answers next to nothing is known, and the fleet must not be held for that
_LENGTH_DIGITS = 2  # of a logarithm: a percent, so that what was worked out at the last tick can be used again
_DIGITS = 6  # what is whole stays whole
_MOST_STEPS = 60  # the search for stretches takes time with the square of these; what is older stays as it was counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Calm:
    """Of one model, by a look back.

    Attributes:
        demand: of now.
        at_most: the observation with a history that surely was not exceeded, as far as was looked back: what is known
            from few minutes is not known well, and fewer replicas must do for it.
        root, slope: of the square root of the rate, now and per second.
        trend_s: how long a trend must have been seen, and is taken to go on, fading.
    """

    demand: Demand
    at_most: Observation
    root: float
    slope: float
    trend_s: float

    def ahead_per_s(self, in_s: float) -> float:
        """The rate in `in_s` seconds. Trends fade: carried on as they are they overshoot (Gardner & McKenzie 1985)."""
        lasts_s = self.trend_s * -math.expm1(-in_s / self.trend_s)
        return max(0.0, self.root + self.slope * lasts_s) ** 2


def calmed(observation: Observation, *, lookback_s: float, trend_s: float) -> Calm:
    """What `observation` shows without chance. `trend_s` is how long a trend must have been seen."""
    history, demand = observation.history, observation.demand
    steps = min(len(history.requests_per_s), int(lookback_s // history.step_s), _MOST_STEPS)
    counted, answered, *tokens = (row[len(row) - steps :] for row in _rows(history))
    new_s = min(max(observation.at_s - history.end_s, _LEAST_NEW * observation.window_s), observation.window_s)
    lasted_s = np.append(np.full(steps, history.step_s), new_s)
    rates = _of_rate(np.append(counted, demand.requests_per_s), lasted_s, demand.dispersion, trend_s)
    answers = np.append(answered, demand.requests_per_s) * lasted_s
    now = (demand.input_tokens, demand.output_tokens)
    inputs, outputs = (
        _of_lengths(np.append(row, of.mean_tokens * demand.requests_per_s) * lasted_s, answers, lasted_s, of, trend_s)
        for row, of in zip(tokens, now, strict=True)
    )
    surely = (
        np.where(np.isfinite(counted), np.maximum(0.0, _upper(rates)) ** 2, np.nan),
        answered,
        *(
            row if found is None else answered * np.exp(np.round(_upper(found, _MOST_LONGER), _LENGTH_DIGITS))
            for row, found in zip(tokens, (inputs, outputs), strict=True)
        ),
    )
    return Calm(
        demand=replace(
            demand,
            requests_per_s=round(max(0.0, rates.level) ** 2, _DIGITS),
            input_tokens=_like(demand.input_tokens, inputs),
            output_tokens=_like(demand.output_tokens, outputs),
        ),
        at_most=replace(observation, history=_ending(history, surely)),
        root=rates.level,
        slope=rates.slope,
        trend_s=trend_s,
    )


def _of_rate(counted: Array, lasted_s: Array, dispersion: float, trend_s: float) -> Course:
    """The course of the square root of the rate; that of a Poisson rate has a variance of 1/4 over the time (Bartlett
    1936)."""
    known = np.isfinite(counted)
    weights = np.where(known, 4 * lasted_s / max(dispersion, 1.0), 0.0)
    return course(np.sqrt(np.where(known, counted, 0.0)), lasted_s, weights, trend_after_s=trend_s)


def _of_lengths(tokens: Array, answers: Array, lasted_s: Array, now: Lengths, trend_s: float) -> Course | None:
    """The course of the logarithm of mean lengths; None where nothing was answered."""
    seen = (answers > 0) & (tokens > 0)
    if not seen.any():
        return None
    logs = np.log(np.divide(tokens, answers, out=np.ones_like(tokens), where=seen))
    weights = np.where(seen, answers, 0.0) / max(now.spread, _LEAST_SPREAD) ** 2
    return course(logs, lasted_s, weights, trend_after_s=trend_s)


def _upper(found: Course, most: float = math.inf) -> Array:
    """What surely was not exceeded in each step of the past; the newest value, that of now, is none of them."""
    return np.asarray(found.levels + np.minimum(_SURELY * found.errors, most))[:-1]


def _like(lengths: Lengths, found: Course | None) -> Lengths:
    if found is None:
        return lengths
    return replace(lengths, mean_tokens=max(1.0, round(math.exp(found.level), _DIGITS)))


def _rows(history: History) -> tuple[Array, Array, Array, Array]:
    return history.requests_per_s, history.answered_per_s, history.input_tokens_per_s, history.output_tokens_per_s


def _ending(history: History, end: Sequence[Array]) -> History:
    """`history` with another end."""
    begin = len(history.requests_per_s) - len(end[0])
    rates, answered, inputs, outputs = (
        np.append(row[:begin], last) for row, last in zip(_rows(history), end, strict=True)
    )
    return replace(
        history,
        requests_per_s=rates,
        answered_per_s=answered,
        input_tokens_per_s=inputs,
        output_tokens_per_s=outputs,
    )
