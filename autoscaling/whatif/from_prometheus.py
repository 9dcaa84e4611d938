"""A model's past out of Prometheus."""

import math
from collections.abc import Mapping
from itertools import groupby

import numpy as np

from autoscaling.observation import Array, History
from autoscaling.observing import past as demand
from autoscaling.observing import queries
from autoscaling.observing.dispersion import index_of_dispersion
from autoscaling.observing.histograms import share_below, spread
from autoscaling.observing.queries import MAX_POINTS, Ask, Moment, Query, Span
from autoscaling.whatif import asking
from autoscaling.whatif.asking import Rows, answered, named, over_time, summed
from autoscaling.whatif.past import WINDOW_S, Answers, Habits, Origin, Past, PastError, Ran, unknown_steps
from placement import Shape, ShapeError, Slo
from placement.workload import MAX_SPREAD

MOST_SINCE_S = 14 * 86_400.0
MOST_UNKNOWN = 0.2  # share of the steps; of more, what fills the gaps would be the story
_ENOUGH = 30  # ended requests of a window, before it says how far lengths spread
_BEYOND = 2.5  # times the highest bound, as `histograms` takes the unbounded bucket to end
_ENDED = (
    queries.TTFT_BUCKETS,
    queries.TPOT_BUCKETS,
    queries.INPUT_SUM,
    queries.INPUT_BUCKETS,
    queries.OUTPUT_SUM,
    queries.OUTPUT_BUCKETS,
)
_OURS = (queries.ARRIVALS, queries.REFUSED, queries.FAILED, queries.COMPUTED, queries.HITS)
_FOREIGN = (asking.FOREIGN_ARRIVALS, queries.FAILED, asking.FOREIGN_HITS, asking.FOREIGN_LOOKUPS)


def read_past(ask: Ask, *, model: str, slo: Slo, now_s: float, since_s: float, scrape_interval_s: float = 15.0) -> Past:
    """The last `since_s` of `model`. Raises `PastError`: no answer, no such model, no requests, or too many gaps."""
    if not WINDOW_S * 3 <= since_s <= MOST_SINCE_S:
        raise PastError(f"--since is {since_s / 3600:g} h; it must be from 15 minutes to 14 days.")
    origin, history = _history(ask, model, now_s, since_s, scrape_interval_s)
    notes = _gaps(history, since_s)
    steps_per_window = round(WINDOW_S / history.step_s)
    count = len(history.requests_per_s) // steps_per_window
    if not count:
        raise PastError(f"{model!r} has less than 5 minutes of history; there is nothing to replay yet.")
    history = _first(history, count * steps_per_window)
    start_s = history.end_s - count * WINDOW_S
    asked = (*_ENDED, *(_OURS if origin == "archipelago" else _FOREIGN))
    rows = over_time(
        ask,
        asked,
        model=model,
        start_s=start_s,
        count=count,
        step_s=WINDOW_S,
        window_s=WINDOW_S + scrape_interval_s,
    )
    ran = _ran(ask, model, history) if origin == "archipelago" else None
    answers = _answers(rows, slo, count)
    return Past(
        model=model,
        origin=origin,
        history=history,
        inputs=_habits(rows, queries.INPUT_BUCKETS, queries.INPUT_SUM, count),
        outputs=_habits(rows, queries.OUTPUT_BUCKETS, queries.OUTPUT_SUM, count),
        refused_share=_refused_share(rows, count),
        prefix_hit_rate=_prefix_hit_rate(rows, origin),
        dispersion=_dispersion(
            ask if origin == "archipelago" else asking.of_any_vllm(ask), model, history, scrape_interval_s
        ),
        answers=answers,
        ran=ran,
        notes=(*notes, *_unknown(origin, ran, answers)),
    )


def _history(ask: Ask, model: str, now_s: float, since_s: float, scrape_interval_s: float) -> tuple[Origin, History]:
    """By our own series, else by those of any vLLM."""
    ways: tuple[tuple[Origin, Ask], ...] = (("archipelago", ask), ("vllm", asking.of_any_vllm(ask)))
    for origin, one in ways:
        found = demand.history(one, model=model, now_s=now_s, length_s=since_s, scrape_interval_s=scrape_interval_s)
        if not isinstance(found, History):
            raise PastError(f"--prometheus: {found.why}")
        if np.nansum(found.requests_per_s) > 0:
            return origin, found
        if np.isfinite(found.requests_per_s).any():
            raise PastError(f"{model!r} had no request in the last {since_s / 3600:g} h; there is nothing to replay.")
    known = asking.models_in(ask, now_s=now_s, since_s=since_s)
    there = f"it has {', '.join(known[:10])}" if known else "it has no model at all"
    raise PastError(f"--model is {model!r}; Prometheus has nothing of it in the last {since_s / 3600:g} h: {there}.")


def _gaps(history: History, since_s: float) -> tuple[str, ...]:
    """What is missing, in sentences. Raises `PastError` where that is too much."""
    missing = unknown_steps(history)
    unknown = float(missing.mean())
    if unknown > MOST_UNKNOWN:
        raise PastError(
            f"{unknown:.0%} of the history is missing (no samples of requests or of tokens); a replay takes at most "
            f"{MOST_UNKNOWN:.0%}. Give a --since in which Prometheus was scraping."
        )
    notes = []
    had_s = len(missing) * history.step_s
    if had_s < 0.95 * since_s:
        notes.append(f"Prometheus knows the last {had_s / 3600:.1f} h only, of {since_s / 3600:.1f} h asked for.")
    if unknown:
        longest = max(len(list(run)) for is_missing, run in groupby(missing.tolist()) if is_missing)
        notes.append(
            f"{unknown:.1%} of the minutes are missing, at most {longest} in a row: demand is drawn straight across."
        )
    return tuple(notes)


def _first(history: History, steps: int) -> History:
    left = len(history.requests_per_s) - steps
    return History(
        step_s=history.step_s,
        end_s=history.end_s - left * history.step_s,
        requests_per_s=history.requests_per_s[:steps],
        answered_per_s=history.answered_per_s[:steps],
        input_tokens_per_s=history.input_tokens_per_s[:steps],
        output_tokens_per_s=history.output_tokens_per_s[:steps],
    )


def _ran(ask: Ask, model: str, history: History) -> Ran | None:
    rows = over_time(
        ask,
        (asking.HELD, asking.DESIRED),
        model=model,
        start_s=history.end_s - len(history.requests_per_s) * history.step_s,
        count=len(history.requests_per_s),
        step_s=history.step_s,
        window_s=history.step_s,
    )
    held, desired = (_by_shape(named(rows, query)) for query in (asking.HELD, asking.DESIRED))
    return Ran(held=held, desired=desired or held) if held else None


def _by_shape(rows: Mapping[str, Array]) -> dict[Shape, Array]:
    """Without shapes that never ran."""
    try:
        return {Shape.parse(label): row for label, row in rows.items() if np.nansum(row)}
    except ShapeError as error:
        raise PastError(f"archipelago_fleet_replicas: {error}") from error


def _answers(rows: Rows, slo: Slo, count: int) -> Answers | None:
    """As `reading` counts attainment: the shares that keep either limit are multiplied, which is the least it can be.

    None where the histogram of a limit is not there.
    """
    ttft, tpot = (_buckets(rows, query) for query in (queries.TTFT_BUCKETS, queries.TPOT_BUCKETS))
    if not ttft or (slo.tpot_s is not None and not tpot):
        return None
    refused, failed = (summed(rows, query, count) for query in (queries.REFUSED, queries.FAILED))
    answered = ttft[math.inf]
    in_time = _shares_below(ttft, slo.ttft_s, count)
    in_pace = _shares_below(tpot, slo.tpot_s, count)
    kept = np.maximum(0.0, answered * in_time * in_pace - failed)
    ended = np.nan_to_num(answered + refused)
    return Answers(ended=ended * WINDOW_S, kept=np.nan_to_num(kept) * WINDOW_S)


def _shares_below(buckets: Mapping[float, Array], limit_s: float | None, count: int) -> Array:
    if limit_s is None:
        return np.ones(count)
    return np.array([share_below(_at(buckets, window), limit_s) for window in range(count)])


def _buckets(rows: Rows, query: Query) -> dict[float, Array]:
    """Cumulative rates by upper bound; empty where the histogram is not there."""
    found = {float(label): row for label, row in named(rows, query).items() if label}
    return dict(sorted(found.items())) if math.inf in found else {}


def _at(buckets: Mapping[float, Array], window: int) -> dict[float, float]:
    return {bound: float(np.nan_to_num(row[window])) for bound, row in buckets.items()}


def _habits(rows: Rows, of_buckets: Query, of_sum: Query, count: int) -> Habits:
    buckets = _buckets(rows, of_buckets)
    if not buckets:
        return Habits(spreads=np.full(count, np.nan), spread=1.0, most_tokens=math.inf)
    ended = np.nan_to_num(buckets[math.inf])
    tokens = np.nan_to_num(summed(rows, of_sum, count))
    spreads = np.full(count, np.nan)
    for window in np.flatnonzero(ended * WINDOW_S >= _ENOUGH):
        spreads[window] = min(MAX_SPREAD, spread(_at(buckets, window), tokens[window] / ended[window]))
    whole = {bound: float(np.nansum(row)) for bound, row in buckets.items()}
    mean = float(tokens.sum() / ended.sum()) if ended.sum() else 0.0
    return Habits(spreads=spreads, spread=min(MAX_SPREAD, spread(whole, mean)), most_tokens=_longest(whole))


def _longest(whole: Mapping[float, float]) -> float:
    """Upper bound of the highest bucket that has any."""
    bounds = sorted(whole)
    below = [0.0, *(whole[bound] for bound in bounds[:-1])]
    used = [bound for bound, under in zip(bounds, below, strict=True) if whole[bound] > under * (1 + 1e-9)]
    if not used:
        return math.inf
    return used[-1] if math.isfinite(used[-1]) else _BEYOND * bounds[-2]


def _refused_share(rows: Rows, count: int) -> Array:
    refused = summed(rows, queries.REFUSED, count)
    arrived = np.nan_to_num(summed(rows, queries.ARRIVALS, count))
    shares = np.zeros(count)
    np.divide(refused, arrived, out=shares, where=arrived > 0)
    return np.clip(shares, 0.0, 1.0)


def _prefix_hit_rate(rows: Rows, origin: str) -> float:
    """Share of prompt tokens that were found in a cache, over all the time."""

    def total(query: Query) -> float:
        return float(np.nansum(rows.get((query.name, ""), np.zeros(1))))

    if origin == "archipelago":
        hits, looked_up = total(queries.HITS), total(queries.HITS) + total(queries.COMPUTED)
    else:
        hits, looked_up = total(asking.FOREIGN_HITS), total(asking.FOREIGN_LOOKUPS)
    return min(1.0, hits / looked_up) if looked_up else 0.0


def _dispersion(ask: Ask, model: str, history: History, scrape_interval_s: float) -> float:
    """Over all the time, or its end, in the windows that `observing.past` looks at for the last half hour.

    1 where these are so long that there are next to none.
    """
    step_s = 2 * scrape_interval_s
    newest = answered(ask(Moment(promql=queries.NEWEST.text(model=model, window_s=step_s), at_s=history.end_s)))
    end_s = (newest[0].value if newest else history.end_s) - scrape_interval_s / 2
    count = min(MAX_POINTS, math.floor(len(history.requests_per_s) * history.step_s / step_s) - 1)
    if count < 1:
        return 1.0
    text = queries.ARRIVALS.text(model=model, window_s=step_s + scrape_interval_s)
    span = Span(promql=text, start_s=end_s - (count - 1) * step_s, end_s=end_s, step_s=step_s)
    counts = np.full(count, np.nan)
    for series in answered(ask(span)):
        at_s, values = np.array(series.points).T
        counts[np.rint((at_s - span.start_s) / step_s).astype(int)] = values * step_s
    return index_of_dispersion(counts)


def _unknown(origin: str, ran: Ran | None, answers: Answers | None) -> tuple[str, ...]:
    notes = []
    if origin == "vllm":
        notes.append(
            "These are the series of a vLLM that Archipelago does not run: arrivals are taken to be where first tokens "
            "were, so a queue looks like less demand, and refused requests are not in it."
        )
    if ran is None:
        notes.append("What ran is unknown: there is no archipelago_fleet_replicas of this model.")
    if answers is None:
        notes.append("How many kept the SLO is unknown: there is no histogram of TTFT, or of TPOT.")
    return tuple(notes)
