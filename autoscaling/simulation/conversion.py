"""Public traces into the canonical form; every row read is emitted, or counted with the reason why not."""

import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from autoscaling.observation import Array
from autoscaling.simulation.traces import Trace, TraceError, trace_of

_TICK_S = 3.0  # Mooncake's conversation trace: 1,180 distinct times in an hour
_MS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """`rows == len(trace) + sum(dropped.values())`."""

    trace: Trace
    rows: int
    dropped: Mapping[str, int] = field(default_factory=dict)


Row = tuple[float, float, float]  # seconds, tokens in and out


def azure_2023(path: Path) -> Converted:
    """Azure's LLM inference trace of 2023: `TIMESTAMP,ContextTokens,GeneratedTokens`, columns by name."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(rows[0]):
        raise TraceError(f"{path} has no columns TIMESTAMP, ContextTokens and GeneratedTokens; is it Azure's of 2023?")

    def parsed(row: Mapping[str, str]) -> Row:
        whole, _, part = row["TIMESTAMP"].partition(".")  # seven decimals, one more than Python reads
        seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{part or 0}")
        return seconds, float(row["ContextTokens"]), float(row["GeneratedTokens"])

    return _converted(rows, parsed, path.stem)


def mooncake(path: Path, *, seed: int | None = 0) -> Converted:
    """A trace of Mooncake, .jsonl or .jsonl.gz.

    Its times are ticks of 3 s with ten requests each. They are spread evenly over the tick by `seed`; None keeps them
    as they are, which makes ten long prompts arrive at once.
    """
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]

    def parsed(line: str) -> Row:
        row = json.loads(line)
        return row["timestamp"] * _MS, float(row["input_length"]), float(row["output_length"])

    spread_s = None if seed is None else np.random.default_rng(seed).uniform(0, _TICK_S, len(lines))
    return _converted(lines, parsed, path.name.partition(".")[0], spread_s)


def _converted(
    rows: Iterable[Any], parsed: Callable[[Any], Row], name: str, spread_s: Array | None = None
) -> Converted:
    dropped: Counter[str] = Counter()
    kept: list[Row] = []
    count = 0
    for number, row in enumerate(rows):
        count += 1
        try:
            at_s, prompt, answer = parsed(row)
        except (KeyError, TypeError, ValueError):
            dropped["not readable"] += 1
            continue
        if prompt < 1 or answer < 1 or not math.isfinite(prompt + answer + at_s):
            dropped["no tokens"] += 1
        else:
            kept.append((at_s + (0.0 if spread_s is None else float(spread_s[number])), prompt, answer))
    if not kept:
        raise TraceError(f"{name} has no request among {count} rows.")
    times_s, prompts, answers = np.array(kept).T
    return Converted(
        trace=trace_of(times_s - times_s.min(), prompts, answers, name=name), rows=count, dropped=dict(dropped)
    )
