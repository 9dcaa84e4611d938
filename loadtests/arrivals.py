"""When requests arrive: pure functions of a rate curve, a burstiness and a source of chance.

A curve is the rate over time. Arrivals with any burstiness are drawn at rate 1 and then mapped through the inverse of
the curve's integral, so that a spike and a burst are two different things and can be combined. The coefficient of
variation (CV) of the gaps is 0 for a metronome, 1 for a Poisson process, more for bursts: gaps are Gamma distributed.
"""

import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_DIURNAL_STEPS = 240  # of one period; linear between them: off by less than 0.02 % of the swing


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a curve: the rate goes in a straight line from `from_rate` to `to_rate` (requests per second)."""

    length_s: float
    from_rate: float
    to_rate: float

    @property
    def requests(self) -> float:
        """Expected arrivals."""
        return self.length_s * (self.from_rate + self.to_rate) / 2

    def time_of(self, requests: float) -> float:
        """Seconds into the piece when so many arrivals are expected; `requests` is at most those of the piece."""
        slope = (self.to_rate - self.from_rate) / self.length_s
        # The root of from_rate * t + slope * t**2 / 2 = requests, in the form that is exact for a small slope too.
        root = math.sqrt(max(0.0, self.from_rate**2 + 2 * slope * requests))
        return min(self.length_s, 2 * requests / (self.from_rate + root)) if requests else 0.0


Curve = tuple[Piece, ...]


def steady(rate: float, duration_s: float) -> Curve:
    """One rate for the whole time."""
    return (Piece(length_s=duration_s, from_rate=rate, to_rate=rate),)


def through(points: Sequence[tuple[float, float]], duration_s: float) -> Curve:
    """Straight lines through (time, rate); two points at one time are a jump. Before and after, the rate stays."""
    known = [(0.0, points[0][1]), *points, (math.inf, points[-1][1])]
    pieces = []
    for (from_s, from_rate), (to_s, to_rate) in itertools.pairwise(known):
        end_s = min(to_s, duration_s)
        if end_s <= from_s:
            continue
        share = 0.0 if math.isinf(to_s) else (end_s - from_s) / (to_s - from_s)
        end_rate = from_rate + share * (to_rate - from_rate)
        pieces.append(Piece(length_s=end_s - from_s, from_rate=from_rate, to_rate=end_rate))
    return tuple(pieces)


def step(before: float, after: float, at_s: float, duration_s: float) -> Curve:
    """One rate until `at_s`, another from then on."""
    return through(((at_s, before), (at_s, after)), duration_s)


def ramp(before: float, after: float, start_s: float, end_s: float, duration_s: float) -> Curve:
    """From one rate to another between two times, in a straight line."""
    return through(((start_s, before), (end_s, after)), duration_s)


def spike(base: float, peak: float, at_s: float, length_s: float, duration_s: float) -> Curve:
    """`base`, but `peak` for `length_s` from `at_s`."""
    end_s = at_s + length_s
    return through(((at_s, base), (at_s, peak), (end_s, peak), (end_s, base)), duration_s)


def square(low: float, high: float, period_s: float, duration_s: float) -> Curve:
    """Half a period `low`, half a period `high`, and so on."""
    halves = math.ceil(2 * duration_s / period_s)
    levels = [(half * period_s / 2, (low, high)[half % 2]) for half in range(halves)]
    return _stairs([*levels, (duration_s, 0.0)])


def diurnal(mean: float, swing: float, period_s: float, duration_s: float) -> Curve:
    """A sine from `mean * (1 - swing)` at the start to `mean * (1 + swing)` half a period later."""
    steps = math.ceil(duration_s / period_s * _DIURNAL_STEPS)
    times = [index * period_s / _DIURNAL_STEPS for index in range(steps + 1)]
    return through([(at_s, mean * (1 - swing * math.cos(2 * math.pi * at_s / period_s))) for at_s in times], duration_s)


def windows(rates: Sequence[float], window_s: float, duration_s: float) -> Curve:
    """One rate for each window of `window_s`, as in ServeGen (alibaba/ServeGen); nothing after the last."""
    starts = [index * window_s for index in range(len(rates))]
    end_s = min(duration_s, len(rates) * window_s)
    return _stairs([*((at_s, rate) for at_s, rate in zip(starts, rates, strict=True) if at_s < end_s), (end_s, 0.0)])


def _stairs(levels: Sequence[tuple[float, float]]) -> Curve:
    return tuple(
        Piece(length_s=to_s - from_s, from_rate=rate, to_rate=rate)
        for (from_s, rate), (to_s, _) in itertools.pairwise(levels)
    )


def arrivals(curve: Curve, cv: float, rng: random.Random) -> Iterator[float]:
    """Times of arrival in seconds, rising, each before the end of the curve.

    With `cv` 0 the first comes at once and there are exactly as many as the curve expects; equal sources of chance give
    equal times.
    """
    start_s, expected, due = 0.0, 0.0, 0.0 if cv == 0 else _gap(cv, rng)
    for piece in curve:
        while due < expected + piece.requests * (1 - 1e-12):  # a metronome's last beat must not depend on rounding
            yield start_s + piece.time_of(max(0.0, due - expected))
            due += _gap(cv, rng)
        start_s, expected = start_s + piece.length_s, expected + piece.requests


def _gap(cv: float, rng: random.Random) -> float:
    """A gap of mean 1."""
    return rng.gammavariate(cv**-2, cv**2) if cv else 1.0


def merged(processes: Iterable[Iterable[float]]) -> Iterator[float]:
    """Several processes at once: the arrivals of all, rising."""
    return heapq.merge(*processes)


def scaled(times_s: Sequence[float], scale: float, rng: random.Random) -> list[tuple[float, int]]:
    """More or fewer of recorded arrivals: (time, index of the recorded one), rising.

    Never compresses time, which would shorten bursts against the starts of replicas. Whole multiples lay copies over
    each other, each shifted by chance around the span of the recording; the rest is thinned by chance.
    """
    span_s = times_s[-1] if times_s else 0.0
    copies, rest = int(scale), scale - int(scale)
    found: list[tuple[float, int]] = []
    for copy in range(copies + 1):
        shift_s = rng.uniform(0, span_s) if copy else 0.0
        for index, at_s in enumerate(times_s):
            if copy < copies or rng.random() < rest:
                moved_s = at_s + shift_s
                found.append((moved_s - span_s if moved_s > span_s else moved_s, index))
    return sorted(found)
