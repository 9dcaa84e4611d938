"""What demand a decision is for: the path it is expected to take, and the demands that must not be forgotten.

Peaks decide how many GPUs are needed, not means. A demand is a rate and two lengths, and which of several is the
hardest depends on the shape that serves it: so the extremes in each respect are kept, and a fleet must serve each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoscaling.decision import Expected
from autoscaling.forecasting.forecast import Forecast, forecast
from autoscaling.observation import Demand, History, Observation
from autoscaling.policy.calm import Calm, calmed
from autoscaling.policy.imbalance import USUAL_WAITING
from autoscaling.policy.past import Asked, extremes
from autoscaling.policy.rules import Rules
from placement import Lengths

_DEFAULT_BEYOND_START_S = 600.0
_SLICES = 12
_PROVED_AFTER = 5.0  # horizons of history
_TREND_AFTER = 2.0  # leads: a demand that rose for less may be a spike, or a step
_ALIKE = 0.97  # a demand that is at least this part of another in every respect stands for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Demand from one moment on, for `length_s`."""

    length_s: float
    demand: Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected of one model.

    Attributes:
        horizon_s: what prices are over. lead_s: what is decided later comes too late for demand before this.
        path: the demand that prices are for; beyond the lead no more than before it, as more is decided later.
        need: what must be served.
        recent: what fewer replicas must serve as well, of the last `patience_s` and the horizon; `recent_s` are known.
        lasting: what a repartition that only saves GPUs must serve too, of a longer past.
        running: requests that are being answered. backlog: those that wait and should not.
        expected: what the decision shows of it.
    """

    horizon_s: float
    lead_s: float
    path: tuple[Slice, ...]
    need: tuple[Asked, ...]
    patience_s: float
    recent: tuple[Asked, ...]
    recent_s: float
    lasting: tuple[Asked, ...]
    lasting_s: float
    running: float
    backlog: float
    expected: Expected


def outlook(observation: Observation, rules: Rules, *, start_s: float, queued: float, regrets: int = 0) -> Outlook:
    """What to plan for.

    Args:
        observation: of now.
        rules: how far to look ahead and back.
        start_s: the slowest cold start of the shapes in question.
        queued: requests that wait and that other replicas could answer.
        regrets: how often in a row GPUs were given up too early.
    """
    horizon_s = rules.horizon_s or start_s + _DEFAULT_BEYOND_START_S
    lead_s = min(start_s + observation.window_s, horizon_s)
    patience_s = rules.patience_s(start_s, regrets)
    lookback_s = max(patience_s, rules.lookback_s)
    backlog = max(0.0, queued - USUAL_WAITING * observation.running)
    calm = calmed(observation, lookback_s=lookback_s, trend_s=_TREND_AFTER * lead_s)
    if not rules.forecast:
        calm = replace(calm, slope=0.0)
    now = Asked(demand=calm.demand, in_s=0.0)
    future = _future(observation, rules, horizon_s)
    past = extremes(calm.at_most, lookback_s)
    need = tuple(
        replace(asked, demand=_with_backlog(asked.demand, backlog / lead_s))
        for asked in _hardest((now, *_risen(calm, now, lead_s), *_peak_until(future, now, past, lead_s)))
    )
    coming = (*need, *_peak_until(future, now, past, horizon_s))
    most = max(need, key=lambda asked: asked.demand.requests_per_s).demand
    mean = future.peak(now.demand, until_s=lead_s, quantile=False) if future else now.demand
    return Outlook(
        horizon_s=horizon_s,
        lead_s=lead_s,
        path=_path(now.demand, future, calm, lead_s, horizon_s),
        need=need,
        patience_s=patience_s,
        recent=_hardest((*coming, *extremes(calm.at_most, patience_s))),
        recent_s=_known_s(observation.history, patience_s),
        lasting=_hardest((*coming, *past)),
        lasting_s=_known_s(observation.history, lookback_s),
        running=observation.running,
        backlog=backlog,
        expected=Expected(
            horizon_s=horizon_s,
            requests_per_s=most.requests_per_s,
            mean_requests_per_s=max(mean.requests_per_s, calm.ahead_per_s(lead_s)),
            input_tokens=most.input_tokens.mean_tokens,
            output_tokens=most.output_tokens.mean_tokens,
        ),
    )


def _risen(calm: Calm, now: Asked, lead_s: float) -> tuple[Asked, ...]:
    """What a trend makes of the demand by the time that a replica begun now serves."""
    if calm.slope <= 0:
        return ()
    return (Asked(demand=replace(now.demand, requests_per_s=calm.ahead_per_s(lead_s)), in_s=lead_s),)


def _future(observation: Observation, rules: Rules, horizon_s: float) -> Forecast | None:
    """None where the history is too short to have proved a forecast: the demand is then taken to stay.

    After a step of demand an unproved one carries the rise on, and every spike would be acted on.
    """
    history = observation.history
    series = (history.requests_per_s, history.input_tokens_per_s, history.output_tokens_per_s)
    known = min((np.isfinite(one).sum() for one in series), default=0) * history.step_s
    if not rules.forecast or known < _PROVED_AFTER * horizon_s:
        return None
    dispersion = observation.demand.dispersion
    return forecast(history, horizon_s=horizon_s, quantile=rules.forecast_quantile, dispersion=dispersion)


def _peak_until(future: Forecast | None, now: Asked, past: Sequence[Asked], until_s: float) -> tuple[Asked, ...]:
    """The most of each series; lengths, which are quotients of them, are no longer than they have been."""
    if future is None:
        return ()
    peak = future.peak(now.demand, until_s=until_s, quantile=True)
    seen = [asked.demand for asked in (now, *past)]
    capped = replace(
        peak,
        input_tokens=_at_most(peak.input_tokens, max(one.input_tokens.mean_tokens for one in seen)),
        output_tokens=_at_most(peak.output_tokens, max(one.output_tokens.mean_tokens for one in seen)),
    )
    return (Asked(demand=capped, in_s=until_s),)


def _at_most(lengths: Lengths, mean_tokens: float) -> Lengths:
    return replace(lengths, mean_tokens=min(lengths.mean_tokens, mean_tokens))


def _path(now: Demand, future: Forecast | None, calm: Calm, lead_s: float, horizon_s: float) -> tuple[Slice, ...]:
    """Slices over the horizon, neighbours that are alike in one."""
    most_per_s = future.peak(now, until_s=lead_s, quantile=True).requests_per_s if future else now.requests_per_s
    length_s = horizon_s / _SLICES
    slices: list[Slice] = []
    for step in range(_SLICES):
        at_s = (step + 0.5) * length_s
        demand = future.demand_at(at_s, now, quantile=True) if future else now
        risen_per_s = calm.ahead_per_s(min(at_s, lead_s)) if calm.slope > 0 else 0.0
        demand = replace(demand, requests_per_s=max(min(demand.requests_per_s, most_per_s), risen_per_s))
        last = slices[-1] if slices else None
        if last is not None and _covers(last.demand, demand) and _covers(demand, last.demand):
            slices[-1] = replace(last, length_s=last.length_s + length_s)
        else:
            slices.append(Slice(length_s=length_s, demand=demand))
    return tuple(slices)


def _known_s(history: History, lookback_s: float) -> float:
    """How much of the last `lookback_s` is known."""
    steps = int(lookback_s // history.step_s)
    return float(np.isfinite(history.requests_per_s[-steps:]).sum()) * history.step_s if steps else 0.0


def _with_backlog(demand: Demand, requests_per_s: float) -> Demand:
    return replace(demand, requests_per_s=demand.requests_per_s + requests_per_s) if requests_per_s else demand


def _hardest(asked: Iterable[Asked]) -> tuple[Asked, ...]:
    """Without those that another covers; what is harder by a little makes that other one harder."""
    kept: list[Asked] = []
    for one in asked:
        at = next((at for at, other in enumerate(kept) if _covers(other.demand, one.demand)), None)
        if at is None:
            kept = [other for other in kept if not _covers(one.demand, other.demand, part=1.0)]
            kept.append(one)
        elif not _covers(kept[at].demand, one.demand, part=1.0):
            kept[at] = replace(kept[at], demand=_hardest_of(kept[at].demand, one.demand))
    return tuple(kept)


def _covers(one: Demand, other: Demand, part: float = _ALIKE) -> bool:
    """Whether `one` is at least `part` of `other` in every respect."""
    return all(mine >= part * its for mine, its in zip(_sizes(one), _sizes(other), strict=True))


def _hardest_of(one: Demand, other: Demand) -> Demand:
    return replace(
        one,
        requests_per_s=max(one.requests_per_s, other.requests_per_s),
        input_tokens=max(one.input_tokens, other.input_tokens, key=lambda lengths: lengths.mean_tokens),
        output_tokens=max(one.output_tokens, other.output_tokens, key=lambda lengths: lengths.mean_tokens),
    )


def _sizes(demand: Demand) -> tuple[float, float, float]:
    return demand.requests_per_s, demand.input_tokens.mean_tokens, demand.output_tokens.mean_tokens
