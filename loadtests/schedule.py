"""From a scenario to its requests. Every worker makes the same ones and takes its share: number modulo workers."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtests import arrivals as processes
from loadtests.demand import (
    Arrivals,
    Constant,
    Diurnal,
    Fixed,
    Gamma,
    Length,
    Lengths,
    Poisson,
    Ramp,
    ServeGen,
    Spike,
    Square,
    Step,
    Trace,
    Uniform,
)
from loadtests.scenario import RequestClass, Scenario
from loadtests.traces import TraceError, read_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to send `at_s` after the start (closed loop: as soon as its client is free)."""

    id: int
    at_s: float
    class_name: str | None
    input_tokens: int
    output_tokens: int


def requests_of(scenario: Scenario) -> Iterator[Request]:
    """All requests of an open loop, in the order of their times. Raises TraceError."""
    if isinstance(scenario.arrivals, Trace):
        yield from _recorded(scenario, scenario.arrivals)
        return
    assert scenario.arrivals is not None
    for number, at_s in enumerate(_times(scenario.arrivals, scenario)):
        yield drawn_request(scenario, number, at_s)


def share_of(requests: Iterator[Request], worker: int, workers: int) -> list[Request]:
    """The requests that one of several workers sends."""
    return list(itertools.islice(requests, worker, None, workers))


def drawn_request(scenario: Scenario, number: int, at_s: float) -> Request:
    """Request `number`: its class and lengths depend on the seed and the number alone."""
    rng = random.Random(f"{scenario.seed}/{number}")
    chosen = _class(scenario, at_s, rng)
    lengths = (chosen and chosen.lengths) or scenario.lengths
    assert lengths is not None
    return Request(
        id=number,
        at_s=at_s,
        class_name=chosen.name if chosen else None,
        input_tokens=_tokens(lengths.input, rng),
        output_tokens=_tokens(lengths.output, rng),
    )


def _recorded(scenario: Scenario, trace: Trace) -> Iterator[Request]:
    end_s = trace.from_s + scenario.duration_s
    rows = read_trace(Path(trace.file))
    kept = [row for row in rows if trace.from_s <= row.arrival_s < end_s]
    if not kept:
        raise TraceError(
            f"{trace.file}: no row arrives from {trace.from_s:g} s to {end_s:g} s; the last does at "
            f"{rows[-1].arrival_s:g} s: change arrivals.from_s or duration_s"
        )
    named = {each.name: each for each in scenario.classes}
    moved = processes.scaled([row.arrival_s - trace.from_s for row in kept], trace.scale, _rng(scenario))
    for number, (at_s, index) in enumerate(moved):
        row, rng = kept[index], random.Random(f"{scenario.seed}/{number}")
        chosen = named.get(row.class_name or "") or (None if row.class_name else _class(scenario, at_s, rng))
        lengths: Lengths | None = (chosen and chosen.lengths) or scenario.lengths
        yield Request(
            id=number,
            at_s=at_s,
            class_name=row.class_name or (chosen.name if chosen else None),
            input_tokens=_tokens(lengths.input, rng) if lengths else row.input_tokens,
            output_tokens=_tokens(lengths.output, rng) if lengths else row.output_tokens,
        )


def _rng(scenario: Scenario) -> random.Random:
    return random.Random(f"arrivals of seed {scenario.seed}")


def _times(given: Arrivals, scenario: Scenario) -> Iterator[float]:
    if isinstance(given, ServeGen):
        return processes.merged(
            processes.arrivals(
                processes.windows(client.rates, given.window_s, scenario.duration_s),
                client.cv,
                random.Random(f"arrivals of client {index}, seed {scenario.seed}"),
            )
            for index, client in enumerate(given.clients)
        )
    cv = given.cv if not isinstance(given, Constant | Poisson | Trace) else float(isinstance(given, Poisson))
    return processes.arrivals(_curve(given, scenario.duration_s), cv, _rng(scenario))


def _curve(given: Arrivals, duration_s: float) -> processes.Curve:
    match given:
        case Constant(rate=rate) | Poisson(rate=rate) | Gamma(rate=rate):
            return processes.steady(rate, duration_s)
        case Step():
            return processes.step(given.before, given.after, given.at_s, duration_s)
        case Ramp():
            return processes.ramp(given.before, given.after, given.start_s, given.end_s, duration_s)
        case Spike():
            return processes.spike(given.base, given.peak, given.at_s, given.length_s, duration_s)
        case Square():
            return processes.square(given.low, given.high, given.period_s, duration_s)
        case Diurnal():
            return processes.diurnal(given.mean, given.swing, given.period_s, duration_s)
        case _:
            raise TypeError(f"{type(given).__name__} has no one curve")


def _class(scenario: Scenario, at_s: float, rng: random.Random) -> RequestClass | None:
    if not scenario.classes:
        return None
    mixes = [mix.shares for mix in scenario.mix if mix.from_s <= at_s]
    given = mixes[-1] if mixes else {each.name: each.share for each in scenario.classes}
    return rng.choices(scenario.classes, [given.get(each.name, 0.0) for each in scenario.classes])[0]


def _tokens(length: Length, rng: random.Random) -> int:
    if isinstance(length, Fixed):
        return length.tokens
    if isinstance(length, Uniform):
        return rng.randint(length.least, length.most)
    drawn = round(rng.lognormvariate(math.log(length.median), length.sigma))
    return min(max(drawn, length.least), length.most)
