"""Made traces: a rate and lengths that change over time in a known way, drawn from a seed.

Arrivals are a renewal process with Gamma gaps in the time in which the mean rate is one: with a coefficient of
variation of 1 they are independent (Poisson), with 0 evenly spaced, above 1 in bursts, whatever the rate does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoscaling.observation import Array
from autoscaling.simulation.traces import Trace, TraceError

Profile = Callable[[Array], Array]  # a value at each of some times, in seconds from the start
_GRID_S = 1.0  # rates are taken as straight lines between whole seconds


def constant(value: float) -> Profile:
    """The same all the time."""
    return lambda at_s: np.full_like(at_s, value)


def step(before: float, after: float, *, at_s: float) -> Profile:
    """`after` from `at_s` on."""
    return lambda times_s: np.where(times_s < at_s, before, after)


def ramp(before: float, after: float, *, from_s: float, until_s: float) -> Profile:
    """A straight line from one value to another."""
    return lambda times_s: np.interp(times_s, (from_s, until_s), (before, after))


def spike(base: float, peak: float, *, from_s: float, for_s: float) -> Profile:
    """`peak` for a while."""
    return lambda times_s: np.where((times_s >= from_s) & (times_s < from_s + for_s), peak, base)


def square(first: float, second: float, *, period_s: float) -> Profile:
    """Half of each period one value, half the other."""
    return lambda times_s: np.where(times_s % period_s < period_s / 2, first, second)


def diurnal(mean: float, swing: float, *, period_s: float = 86_400.0, peak_s: float = 43_200.0) -> Profile:
    """A sine around `mean` that rises by the share `swing` of it, 0 to 1, at `peak_s`."""
    return lambda times_s: mean * (1 + swing * np.cos(2 * math.pi * (times_s - peak_s) / period_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What arrives. `variation` is that of the gaps (standard deviation over mean); the spreads are those of lengths.

    Inputs and outputs are drawn independently: in public traces their rank correlation is -0.02 to 0.07.
    """

    requests_per_s: Profile
    input_tokens: Profile
    output_tokens: Profile
    duration_s: float
    variation: float = 1.0
    input_spread: float = 1.0
    output_spread: float = 1.0


def made(load: Load, seed: int, *, name: str = "synthetic") -> Trace:
    """The trace of `load` for a seed: lengths are lognormal around the mean of their time, whole and at least 1."""
    generators = np.random.default_rng(seed).spawn(3)
    arrivals_s = arrivals(load.requests_per_s, load.duration_s, load.variation, generators[0])
    inputs, outputs = (
        np.maximum(1.0, np.rint(mean(arrivals_s) * _lognormal(spread, len(arrivals_s), generator)))
        for mean, spread, generator in (
            (load.input_tokens, load.input_spread, generators[1]),
            (load.output_tokens, load.output_spread, generators[2]),
        )
    )
    return Trace(arrivals_s=arrivals_s, input_tokens=inputs, output_tokens=outputs, name=name)


def arrivals(rate: Profile, duration_s: float, variation: float, generator: np.random.Generator) -> Array:
    """Times of arrivals from 0 to `duration_s` at a rate that changes. Raises `TraceError` for a negative rate."""
    if not (duration_s > 0 and math.isfinite(duration_s)):
        raise TraceError(f"duration_s is {duration_s:g}; it must be above 0 and finite.")
    if not 0 <= variation <= 100:
        raise TraceError(f"variation is {variation:g}; it must be from 0 to 100.")
    grid_s = np.append(np.arange(0.0, duration_s, _GRID_S), duration_s)
    rates = rate(grid_s)
    if not (np.all(rates >= 0) and np.all(np.isfinite(rates))):
        raise TraceError(f"requests_per_s goes down to {rates.min():g}; it must be 0 or more, and finite.")
    expected = np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(grid_s))])
    total = float(expected[-1])
    gaps = _gaps(math.ceil(total + 10 * (1 + variation) * math.sqrt(total + 1)), variation, generator)
    at = np.cumsum(gaps)
    at = at[at < total]
    times_s: Array = np.interp(at, expected, grid_s)
    return times_s


def _gaps(count: int, variation: float, generator: np.random.Generator) -> Array:
    """Gaps with mean 1; the first is a uniform part of one, as the start falls anywhere between two arrivals."""
    gaps = generator.gamma(1 / variation**2, variation**2, count) if variation else np.ones(count)
    gaps[0] *= generator.random()
    return gaps


def _lognormal(spread: float, count: int, generator: np.random.Generator) -> Array:
    variance = math.log1p(spread**2)
    drawn: Array = generator.lognormal(-variance / 2, math.sqrt(variance), count)
    return drawn
