"""Demand over time out of Prometheus: its history, and how bursty the arrivals of the last half hour were.

A rate over `[step + scrape interval]` at every `step` has one sample more than a step has intervals, so neighbouring
steps share a sample and no request falls between two steps; a rate over `[step]` would lose those of one interval.
"""

import math
from collections.abc import Sequence

import numpy as np

from autoscaling.observation import Array, History
from autoscaling.observing.dispersion import index_of_dispersion
from autoscaling.observing.queries import (
    ARRIVALS,
    MAX_POINTS,
    PAST,
    Ask,
    Failure,
    Series,
    Span,
    joined,
    parted,
)

STEP_S = 60.0
MAX_STEPS = 14 * 24 * 60  # two weeks of minutes: two requests. What is longer has longer steps.
DISPERSION_S = 1800.0  # looked at for the dispersion


def history(
    ask: Ask,
    *,
    model: str,
    now_s: float,
    length_s: float = MAX_STEPS * STEP_S,
    scrape_interval_s: float = 15.0,
    known: History | None = None,
) -> History | Failure:
    """Demand of the last `length_s`, in steps of a minute where that makes at most `MAX_STEPS`, else of more minutes.

    Steps end at multiples of the step. The history begins with the first step of which anything is known. With `known`,
    an earlier answer, only the steps since are asked for.
    """
    step_s = STEP_S * max(1, math.ceil(length_s / STEP_S / MAX_STEPS))
    last = math.floor(now_s / step_s)
    first = last - math.floor(length_s / step_s) + 1
    usable = known if known is not None and known.step_s == step_s and known.end_s <= last * step_s else None
    new = first if usable is None else max(first, round(usable.end_s / step_s) + 1)
    asked = _steps(ask, model, new, last, step_s, scrape_interval_s)
    if isinstance(asked, Failure):
        return asked
    if usable is not None:
        before = _aligned(usable, new)
        asked = np.concatenate([before, asked], axis=1)
    kept = asked[:, -(last - first + 1) :]
    begun = np.flatnonzero(~np.isnan(kept[0]))
    kept = kept[:, begun[0] :] if begun.size else kept[:, :0]
    return History(
        step_s=step_s,
        end_s=last * step_s,
        requests_per_s=kept[0],
        answered_per_s=kept[1],
        input_tokens_per_s=kept[2],
        output_tokens_per_s=kept[3],
    )


def dispersion(ask: Ask, *, model: str, scraped_s: float, scrape_interval_s: float = 15.0) -> float | Failure:
    """Variance over mean of the arrivals in windows of two scrape intervals, the shortest that can be told apart.

    `scraped_s` is the time of the newest sample: windows end in the middle between two scrapes, so that each has
    exactly three samples and covers exactly two intervals. (Several ingresses are scraped at times of their own.)
    `index_of_dispersion` says how exact it is.
    """
    step_s = 2 * scrape_interval_s
    end_s = scraped_s + scrape_interval_s / 2
    start_s = end_s - (math.floor(DISPERSION_S / step_s) - 1) * step_s
    text = ARRIVALS.text(model=model, window_s=step_s + scrape_interval_s)
    answer = ask(Span(promql=text, start_s=start_s, end_s=end_s, step_s=step_s))
    if isinstance(answer, Failure):
        return answer
    counts = _placed(answer, start_s, end_s, step_s) * step_s
    return index_of_dispersion(counts)


def _aligned(known: History, new: int) -> Array:
    """The rows of a history up to step `new`, with NaN for steps between that nobody asked for."""
    rows = np.stack([known.requests_per_s, known.answered_per_s, known.input_tokens_per_s, known.output_tokens_per_s])
    between = max(0, new - 1 - round(known.end_s / known.step_s))
    return np.pad(rows, ((0, 0), (0, between)), constant_values=np.nan)


def _steps(ask: Ask, model: str, first: int, last: int, step_s: float, scrape_interval_s: float) -> Array | Failure:
    text = joined(PAST, model=model, window_s=step_s + scrape_interval_s)
    pieces = [np.empty((len(PAST), 0))]
    for start in range(first, last + 1, MAX_POINTS):
        end = min(last, start + MAX_POINTS - 1)
        answer = ask(Span(promql=text, start_s=start * step_s, end_s=end * step_s, step_s=step_s))
        if isinstance(answer, Failure):
            return answer
        parts = parted(answer)
        times = (start * step_s, end * step_s, step_s)
        pieces.append(_rows(*(_placed(parts.get(query.name, ()), *times) for query in PAST)))
    return np.concatenate(pieces, axis=1)


def _rows(requests: Array, *answers: Array) -> Array:
    """Without a request in a step there were no answers either, whether or not an engine was there to say so."""
    idle = requests == 0
    return np.stack([requests, *(np.where(idle & np.isnan(row), 0.0, row) for row in answers)])


def _placed(answer: Sequence[Series], start_s: float, end_s: float, step_s: float) -> Array:
    """Values at each step from `start_s` to `end_s`; NaN where there is none, or none that is a number."""
    values = np.full(round((end_s - start_s) / step_s) + 1, np.nan)
    for series in answer:
        at_s, found = np.array(series.points).T
        values[np.rint((at_s - start_s) / step_s).astype(int)] = np.where(np.isfinite(found), found, np.nan)
    return values
