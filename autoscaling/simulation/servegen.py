"""Requests drawn from ServeGen's published workloads (alibaba/ServeGen): rates by client, and lengths by client.

`chunk-N-trace.csv` has, without a header and for every ten minutes of client N: start (s), rate (1/s), coefficient of
variation, Gamma or Weibull, and its parameters. `chunk-N-dataset.json` has its lengths for every six hours. Inputs and
outputs are drawn independently: ServeGen's own generator takes one random number for both, which makes them rise
together, and in real traces they do not (rank correlation -0.02 to 0.07).
"""

import ast
import csv
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoscaling.observation import Array
from autoscaling.simulation.conversion import Converted
from autoscaling.simulation.traces import TraceError, trace_of

_WINDOW_S = 600.0
_NO_LENGTHS = "no lengths known of the client"
Tokens = tuple[Array, Array]  # lengths, and how often each is
Lengths = tuple[tuple[float, Tokens, Tokens], ...]  # since when, inputs, outputs


def servegen(rates: Path, datasets: Path, *, from_s: float, until_s: float, seed: int, share: float = 1.0) -> Converted:
    """Requests from `from_s` to `until_s`, each kept with probability `share`, as one trace that begins at 0.

    `rates` and `datasets` are the directories with the files of all clients. `rows` counts what was drawn and kept.
    Raises `TraceError` where there are no such files, or no request.
    """
    files = sorted(rates.glob("chunk-*-trace.csv"), key=_client)
    if not files or not until_s > from_s >= 0:
        raise TraceError(
            f"{rates} has {len(files)} files chunk-*-trace.csv, asked for {from_s:g} to {until_s:g} s; there must be "
            "at least one file, and a time span from 0 on."
        )
    dropped: Counter[str] = Counter()
    parts: list[tuple[Array, Array, Array]] = []
    for file, generator in zip(files, np.random.default_rng(seed).spawn(len(files)), strict=True):
        arrivals_s = _arrivals(file, from_s, until_s, generator)
        arrivals_s = arrivals_s[generator.random(len(arrivals_s)) < share]
        dataset = datasets / f"chunk-{_client(file)}-dataset.json"
        if not dataset.exists():
            dropped[_NO_LENGTHS] += len(arrivals_s)
        elif len(arrivals_s):
            parts.append((arrivals_s, *_drawn(_lengths(dataset), arrivals_s, generator)))
    if not parts:
        raise TraceError(f"{rates}: no request with known lengths from {from_s:g} to {until_s:g} s.")
    times_s, inputs, outputs = (np.concatenate(column) for column in zip(*parts, strict=True))
    rows = len(times_s) + dropped.total()
    trace = trace_of(times_s - from_s, inputs, outputs, name=rates.name)
    return Converted(trace=trace, rows=rows, dropped={reason: count for reason, count in dropped.items() if count})


def _client(file: Path) -> int:
    return int(file.name.split("-")[1])


def _arrivals(file: Path, from_s: float, until_s: float, generator: np.random.Generator) -> Array:
    """Renewals in every window, each begun anew."""
    found = [np.empty(0)]
    with file.open(newline="", encoding="utf-8") as lines:
        for start, rate, _, pattern, shape, _ in csv.reader(lines):
            start_s, per_s = float(start), float(rate)
            if per_s > 0 and start_s + _WINDOW_S > from_s and start_s < until_s:
                found.append(start_s + _renewals(per_s, pattern, float(shape), generator))
    times_s = np.concatenate(found)
    return times_s[(times_s >= from_s) & (times_s < until_s)]


def _renewals(per_s: float, pattern: str, shape: float, generator: np.random.Generator) -> Array:
    """Times in one window, at that rate in the long run; the window begins anywhere in a gap of a longer process."""
    count = math.ceil(2 * per_s * _WINDOW_S + 100)
    times_s = np.empty(0)
    start_s = -generator.uniform(0, 1) * _WINDOW_S  # far enough back to forget that a renewal was there
    while not len(times_s) or times_s[-1] < _WINDOW_S:
        gaps = _gaps(pattern, shape, count, generator) / per_s
        times_s = np.concatenate([times_s, (times_s[-1] if len(times_s) else start_s) + np.cumsum(gaps)])
    return times_s[(times_s >= 0) & (times_s < _WINDOW_S)]


def _gaps(pattern: str, shape: float, count: int, generator: np.random.Generator) -> Array:
    """Gaps with mean 1."""
    if pattern == "Gamma" and shape > 0:
        return generator.gamma(shape, 1 / shape, count)
    if pattern == "Weibull" and shape > 0:
        return generator.weibull(shape, count) / math.gamma(1 + 1 / shape)
    return generator.exponential(1.0, count)


def _lengths(dataset: Path) -> Lengths:
    """The lengths of every span of six hours in which the client sent anything, in order."""
    spans = json.loads(dataset.read_text(encoding="utf-8"))
    known = [
        (float(start), _tokens(span["input_tokens"]), _tokens(span["output_tokens"])) for start, span in spans.items()
    ]
    return tuple(sorted((span for span in known if len(span[1][0]) and len(span[2][0])), key=lambda span: span[0]))


def _tokens(text: str) -> Tokens:
    counts: Mapping[float, float] = ast.literal_eval(text)
    shares = np.array(list(counts.values()), dtype=np.float64)
    return np.array(list(counts), dtype=np.float64), shares / shares.sum() if len(shares) else shares


def _drawn(spans: Lengths, arrivals_s: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """Lengths of each arrival, out of the last span that had begun, or the first."""
    at = np.maximum(0, np.searchsorted([start_s for start_s, _, _ in spans], arrivals_s, side="right") - 1)
    inputs, outputs = np.empty(len(arrivals_s)), np.empty(len(arrivals_s))
    for number, (_, prompts, answers) in enumerate(spans):
        chosen = np.flatnonzero(at == number)
        inputs[chosen] = generator.choice(prompts[0], len(chosen), p=prompts[1])
        outputs[chosen] = generator.choice(answers[0], len(chosen), p=answers[1])
    return inputs, outputs
