"""One series: methods weighed by how they did on its past, and a quantile from the errors of the whole.

The past is replayed from many origins (rolling-origin backtest). A quantile is one of the *maximum* over the horizon,
since that is what capacity has to hold: the path is raised by as many typical errors as kept the maximum below it in
that share of the past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from autoscaling.forecasting.methods import WARM_UP, Candidates, Indices, candidates, without_spikes
from autoscaling.observation import Array

_REPLAYED = 720  # steps back to the first origin; they are half a horizon apart
_HALF_LIFE_OF_WEIGHTS = 240.0  # steps after which an error counts half, for the choice of methods
_HALF_LIFE_OF_QUANTILE = 720.0  # the same for the quantile, which needs more of them
_APART = 0.1  # share of a method's error taken to be its own where weights are set: keeps near-equal methods together
_LOCAL_STEPS, _LOCAL_POWER = 5, 0.15  # a method that missed the last few steps more than the best one did counts less
# Before errors are known: half the usual step to step change, and 10 % that grow with the lead. Both count as much as
# four independent errors, and fade as real ones come in.
_PRIOR_ERROR, _PRIOR_GROWTH, _PRIOR_COUNT = 0.10, 0.15, 4.0
_NORMAL_SCORES = [(index + 0.5) / 20 for index in range(20)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """Of one series: paths per lead (of the rate, not its root), the weight of each method, and the error.

    `error` is the absolute error of the mean path over the demand, in the backtest; NaN where there was none.
    """

    mean: Array
    quantile: Array
    weights: dict[str, float]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Replay:
    """The past of one series: `actual[lead, origin]` came true; `counts` is what each origin weighs, by `age`."""

    actual: Array
    ages: Indices
    known: npt.NDArray[np.bool_]

    def counts(self, half_life: float) -> Array:
        return np.where(self.known, 0.5 ** (self.ages / half_life), 0.0)


def project(
    rates: Array, *, leads: int, quantile: float, noise: float, chance: float, seasons: Sequence[tuple[str, int]]
) -> Projection:
    """Forecast `rates`, one per step and NaN where unknown (but not everywhere), for `leads` steps.

    `noise` is the standard deviation that the root of a rate has by chance alone; `chance` what of it the quantile
    leaves out.
    """
    known = np.isfinite(rates)
    roots = np.sqrt(np.maximum(_filled(rates, known), 0.0))
    stride = max(1, leads // 2)
    steps = min(len(roots), _REPLAYED + leads + WARM_UP)
    recent = without_spikes(roots[-steps:], noise)
    origins = np.arange(steps - 1, -1, -stride)[: _REPLAYED // stride + 1 + leads // stride][::-1]
    options = candidates(roots, recent, origins, leads, seasons)
    past = origins[origins + leads < steps]
    following = past + np.arange(1, leads + 1)[:, None]
    replay = _Replay(
        actual=recent[following], ages=steps - 1 - leads - past, known=np.all(known[-steps:][following], axis=0)
    )
    half_change = float(np.mean(np.diff(recent) ** 2)) / 2 if steps > 1 else 0.0
    variance = max(noise**2, half_change) + (_PRIOR_ERROR / 2 * recent[-1]) ** 2
    prior = variance * (1 + _PRIOR_GROWTH * np.arange(1, leads + 1))
    shares = _shares(options, replay, prior)[:, None] * _surprise(options, recent, origins, noise)
    shares /= shares.sum(axis=0)
    paths = np.maximum(np.einsum("mo,mlo->lo", shares, options.paths), 0.0)
    weights: dict[str, float] = {}
    for name, share in zip(options.names, shares[:, -1], strict=True):
        weights[name] = weights.get(name, 0.0) + float(share)
    raised = paths[:, -1] + _margin(paths[:, : len(past)], replay, prior, quantile, stride, chance)
    return Projection(
        mean=paths[:, -1] ** 2, quantile=raised**2, weights=weights, error=_error(paths[:, : len(past)], replay)
    )


def _filled(rates: Array, known: npt.NDArray[np.bool_]) -> Array:
    """Holes closed with the last value before them; those at the start with the first."""
    if known.all():
        return rates
    latest = np.maximum.accumulate(np.where(known, np.arange(len(rates)), -1))
    filled: Array = rates[np.where(latest < 0, int(np.argmax(known)), latest)]
    return filled


def _shares(options: Candidates, replay: _Replay, prior: Array) -> Array:
    """Of each method, so that the error of the sum was least (Bates & Granger 1969), none negative."""
    methods, leads = len(options.names), len(replay.actual)
    counts = replay.counts(_HALF_LIFE_OF_WEIGHTS)
    errors = replay.actual - options.paths[:, :, : len(replay.ages)]
    flat = errors.reshape(methods, -1)
    together = (errors * counts).reshape(methods, -1) @ flat.T
    total = leads * (counts.sum() + _PRIOR_COUNT)
    alone = (np.diag(together) + _PRIOR_COUNT * prior.sum()) / total
    best = np.linalg.solve((1 - _APART) * together / total + _APART * np.diag(alone), np.ones(methods))
    found: Array = np.maximum(best, 1e-3 / alone)
    return found


def _surprise(options: Candidates, recent: Array, origins: Indices, noise: float) -> Array:
    """Between 0 and 1 for each method at each origin: after a jump, those that have not seen it lose their say."""
    missed = np.zeros_like(options.nexts)
    missed[:, 1:] = recent[1:] - options.nexts[:, :-1]
    usual = (float(np.mean(missed**2, axis=1).min()) + noise**2) / 2
    sums = np.cumsum(missed**2 / usual, axis=1)
    sums[:, _LOCAL_STEPS:] -= sums[:, :-_LOCAL_STEPS].copy()
    chosen = sums[:, origins]
    kept: Array = np.exp(-_LOCAL_POWER * (chosen - chosen.min(axis=0)))
    return kept


def _margin(paths: Array, replay: _Replay, prior: Array, quantile: float, stride: int, chance: float) -> Array:
    """What to add to the path at each lead so that the maximum stays below it with probability `quantile`."""
    leads = len(prior)
    # Windows that overlap are not independent: together they count as those that do not.
    counts = replay.counts(_HALF_LIFE_OF_QUANTILE) * stride / leads
    errors = replay.actual - paths
    typical = np.sqrt((errors**2 @ counts + _PRIOR_COUNT * prior) / (counts.sum() + _PRIOR_COUNT))
    needed = ((replay.actual.max(axis=0) - paths) / typical[:, None]).min(axis=0)
    # The prior: the largest of normal errors, about half of them independent of each other.
    expected = [NormalDist().inv_cdf(score ** (2 / (1 + leads))) for score in _NORMAL_SCORES]
    values = np.concatenate((needed, expected))
    weights = np.concatenate((counts, np.full(len(expected), _PRIOR_COUNT / len(expected))))
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    found = values[order[min(int(np.searchsorted(reached, quantile * reached[-1])), len(order) - 1)]]
    margin: Array = max(float(found), 0.0) * np.sqrt(np.maximum(typical**2 - chance**2, 0.0))
    return margin


def _error(paths: Array, replay: _Replay) -> float:
    counts = replay.counts(_HALF_LIFE_OF_WEIGHTS)
    demand = float((counts * replay.actual**2).sum())
    return float((counts * np.abs(paths**2 - replay.actual**2)).sum()) / demand if demand > 0 else float("nan")
