"""A trace that asks what was asked: single requests out of counts of requests and tokens.

What is known is kept: the requests of every minute, within one, and the tokens of every window with enough requests.
What is not known is drawn: when in its minute a request came, and how the tokens of a window fell on its requests. A
minute's count is not drawn again around itself, which would make arrivals twice as irregular as they were.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autoscaling.observation import Array
from autoscaling.simulation.traces import Trace, TraceError
from autoscaling.whatif.past import WINDOW_S, Habits, Past

ENOUGH = 30  # requests that share a mean length; neighbouring windows with fewer are taken as one
_LEAST_DISPERSION, _MOST_DISPERSION = 0.05, 100.0
_LATEST = 1 - 1e-9  # of a step: a last gap may be too small to be told from none
_ROUNDS = 12  # of cutting to the longest and making up for it
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How far a trace is from the history: (trace - history) / history, of all and of the worst hour.

    Tokens of the history are those of its answers; refused requests are taken to be as long as the others.
    """

    hours: int
    requests: float
    input_tokens: float
    output_tokens: float
    worst_requests: float
    worst_input_tokens: float
    worst_output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demanded:
    """By step, without gaps: requests, and the tokens they would have had, had none been refused."""

    step_s: float
    requests: Array
    input_tokens: Array
    output_tokens: Array


def demanded(past: Past) -> Demanded:
    """What was asked in each step; gaps are drawn straight across."""
    history = past.history
    answered = 1 - np.minimum(0.99, np.repeat(past.refused_share, past.steps // len(past.refused_share)))
    requests, inputs, outputs = (
        _filled(row) * history.step_s
        for row in (history.requests_per_s, history.input_tokens_per_s, history.output_tokens_per_s)
    )
    return Demanded(
        step_s=history.step_s, requests=requests, input_tokens=inputs / answered, output_tokens=outputs / answered
    )


def reconstructed(past: Past, seed: int) -> Trace:
    """The trace of `past` for a seed; time 0 is the start of the history. Raises `TraceError` without any request."""
    asked = demanded(past)
    generators = np.random.default_rng(seed).spawn(3)
    counts = np.diff(np.floor(np.cumsum(asked.requests) + 0.5), prepend=0.0).astype(int)
    if not counts.sum():
        raise TraceError(f"{past.model!r} had less than one request; there is nothing to replay.")
    arrivals_s = _arrivals(counts, asked.step_s, past.dispersion, generators[0])
    per_window = round(WINDOW_S / asked.step_s)
    blocks = _blocks(counts.reshape(-1, per_window).sum(axis=1))
    inputs, outputs = (
        _lengths(tokens.reshape(-1, per_window).sum(axis=1), habits, blocks, arrivals_s, generator)
        for tokens, habits, generator in (
            (asked.input_tokens, past.inputs, generators[1]),
            (asked.output_tokens, past.outputs, generators[2]),
        )
    )
    return Trace(arrivals_s=arrivals_s, input_tokens=inputs, output_tokens=outputs, name=past.model)


def fidelity(past: Past, trace: Trace) -> Fidelity:
    """How well `trace` stands for `past`, by hours of its own time."""
    asked = demanded(past)
    steps = np.arange(past.steps)
    hours = max(1, math.ceil(past.steps * asked.step_s / _HOUR_S))
    hour_of_step = np.minimum(hours - 1, (steps * asked.step_s // _HOUR_S).astype(int))
    hour_of_request = np.minimum(hours - 1, (trace.arrivals_s // _HOUR_S).astype(int))
    found = {}
    for name, history, weights in (
        ("requests", asked.requests, None),
        ("input_tokens", asked.input_tokens, trace.input_tokens),
        ("output_tokens", asked.output_tokens, trace.output_tokens),
    ):
        there = np.bincount(hour_of_step, history, minlength=hours)
        made = np.bincount(hour_of_request, weights, minlength=hours)
        busy = there > 0
        errors = (made[busy] - there[busy]) / there[busy]
        found[name] = float(made.sum() / there.sum() - 1) if there.sum() else 0.0
        found[f"worst_{name}"] = float(errors[np.abs(errors).argmax()]) if busy.any() else 0.0
    return Fidelity(hours=hours, **found)


def _filled(row: Array) -> Array:
    """With straight lines over what is not known, level at the ends."""
    at, known = np.arange(len(row)), np.isfinite(row)
    filled: Array = np.interp(at, at[known], row[known]) if known.any() else np.zeros(len(row))
    return filled


def _arrivals(counts: Array, step_s: float, dispersion: float, generator: np.random.Generator) -> Array:
    """So many in each step. Gaps are Gamma draws with `dispersion` as squared variation; with 1 that is Poisson."""
    shape = 1 / min(_MOST_DISPERSION, max(_LEAST_DISPERSION, dispersion))
    times = []
    for step in np.flatnonzero(counts):
        gaps = np.cumsum(generator.gamma(shape, size=counts[step] + 1)) + 1e-12
        times.append((step + np.minimum(gaps[:-1] / gaps[-1], _LATEST)) * step_s)
    return np.concatenate(times)


def _blocks(requests: Array) -> list[tuple[int, int]]:
    """Windows from and until which requests share a mean length: as few windows as have enough."""
    borders, inside = [0], 0
    for window, count in enumerate(requests.tolist(), start=1):
        inside += count
        if inside >= ENOUGH:
            borders.append(window)
            inside = 0
    borders[-1 if len(borders) > 1 else 1 :] = [len(requests)]  # what is left at the end joins the last block
    return list(pairwise(borders))


def _lengths(
    tokens: Array, habits: Habits, blocks: list[tuple[int, int]], arrivals_s: Array, generator: np.random.Generator
) -> Array:
    """Whole tokens of every request, with the tokens of its block as their sum."""
    borders = np.append(np.searchsorted(arrivals_s, np.arange(len(tokens)) * WINDOW_S), len(arrivals_s))
    spreads = np.where(np.isfinite(habits.spreads), habits.spreads, habits.spread)
    lengths = []
    for first, until in blocks:
        count = int(borders[until] - borders[first])
        if count:
            drawn = _lognormal(float(spreads[first:until].mean()), count, generator)
            lengths.append(_summing_to(float(tokens[first:until].sum()), drawn, habits.most_tokens))
    return np.concatenate(lengths)


def _summing_to(total: float, drawn: Array, most: float) -> Array:
    """`drawn`, scaled to whole numbers from 1 to `most` with the sum `total`, as far as that is possible."""
    most = max(most, total / len(drawn))
    kept = drawn
    for _ in range(_ROUNDS):
        kept = np.clip(kept * (total / kept.sum()), 1.0, most)
    return np.maximum(1.0, np.diff(np.floor(np.cumsum(kept) + 0.5), prepend=0.0))


def _lognormal(spread: float, count: int, generator: np.random.Generator) -> Array:
    variance = math.log1p(spread**2)
    return generator.lognormal(-variance / 2, math.sqrt(variance), count)
