"""How far forecasts are off, on public traces: python tests/benchmarks/forecast_error.py DIRECTORY

For each trace, horizon and series: the mean absolute error of the likely path over the mean demand, the same error over
that of the last minute, how often the largest minute of the horizon stayed below the quantile (0.9 and 0.97), and what
the 0.97 quantile costs (it over the largest minute that came, median). The directory has the first 20 minutes of Azure
2023 code and conversation, of Mooncake conversation (its ticks of 3 s spread evenly), and the rates of ServeGen m-large
over 7 days, here interpolated from 10 to 1 minutes with Poisson counts and exponential lengths of its means.
The last line of a trace is the course of its rate (levels and trends without chance), asked for the second minute.
About a minute on one processor core. 20-minute traces are asked every 15 s from the fourth minute on, so their windows
overlap and a coverage of theirs is worth a few independent ones at best.

Libraries on requests per minute, error over that of the last minute at 2 / 5 / 10 minutes, and time per series:
                                          conv (5 to 13 asked)   servegen (50 asked)
  autoscaling.forecasting.forecast                    0.95 / 0.90 / 0.84     0.95 / 0.93 / 0.97     1 ms
  statsmodels 0.15.0 Holt, damped         1.15 / 1.61 / 3.25     0.76 / 0.72 / 0.78    23 ms
  statsforecast 2.1.1 AutoETS             refuses 5 samples      0.86 / 0.83 / 0.88    37 ms
  statsforecast 2.1.1 Holt                refuses 5 samples      0.85 / 0.83 / 0.87    18 ms
They were fitted anew to the last 720 minutes. Where there is much history and the rate is smooth (servegen here is made
of straight lines 10 minutes long) a fitted trend is better than ours; where there is little it is much worse.
"""

import csv
import gzip
import json
import math
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from autoscaling.forecasting.course import course
from autoscaling.forecasting.forecast import Forecast, forecast
from autoscaling.observation import Array, History
from autoscaling.observing.dispersion import index_of_dispersion

_HORIZONS_MIN = (2, 5, 10)
_QUANTILES = (0.9, 0.97)
_SERIES = ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s")
_MINUTE_S = 60.0
_LEAD_S = 142.0  # a cold start of a 70B model and a window


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Rates per step; forecasts are made after every `stride` steps from `start` on."""

    name: str
    step_s: float
    rates: tuple[Array, Array, Array]
    start: int
    stride: int

    def origins(self, horizon_min: int) -> Iterator[tuple[History, list[Array]]]:
        """Histories, and the minutes that followed, of each series."""
        minute = round(_MINUTE_S / self.step_s)
        following = horizon_min * minute
        for end in range(self.start, len(self.rates[0]) - following + 1, self.stride):
            past = dict(zip(_SERIES, (each[:end] for each in self.rates), strict=True))
            truth = [each[end : end + following].reshape(-1, minute).mean(axis=1) for each in self.rates]
            answered = past["requests_per_s"]
            yield History(step_s=self.step_s, end_s=end * self.step_s, answered_per_s=answered, **past), truth


def main(directory: Path) -> None:
    """Measure and print."""
    sys.stdout.write(f"{'trace, series':<34}{'horizon':>8}{'asked':>7}{'error':>8}{'/ last':>8}")
    sys.stdout.write(f"{'in 0.9':>8}{'in 0.97':>8}{'0.97 / max':>12}{'ms':>7}\n")
    for trace in traces(directory):
        for horizon_min in _HORIZONS_MIN:
            for line in _lines(trace, horizon_min):
                sys.stdout.write(line + "\n")
        sys.stdout.write(_course_line(trace) + "\n")


def _lines(trace: Trace, horizon_min: int) -> Iterator[str]:
    asked = list(trace.origins(horizon_min))
    began_s = time.process_time()
    answers = [[_ask(history, horizon_min, quantile) for quantile in _QUANTILES] for history, _ in asked]
    took_ms = (time.process_time() - began_s) * 1e3 / len(asked) / len(_QUANTILES)
    minutes = round(_MINUTE_S / trace.step_s)
    for index, series in enumerate(_SERIES):
        truth = np.array([after[index] for _, after in asked])
        last = np.array([getattr(history, series)[-minutes:].mean() for history, _ in asked])
        likely = np.array([getattr(each[0].mean, series) for each in answers])
        highest = np.array([[getattr(one.quantile, series).max() for one in each] for each in answers])
        error = np.abs(likely - truth).sum()
        most = truth.max(axis=1)
        cost = np.median(highest[:, 1] / np.maximum(most, 1e-9))
        inside = (most[:, None] <= highest).mean(axis=0)
        yield (
            f"{trace.name + ', ' + series.removesuffix('_per_s').replace('_', ' '):<34}{horizon_min:>4} min"
            f"{len(asked):>7}{error / truth.sum():>8.1%}{error / np.abs(last[:, None] - truth).sum():>8.2f}"
            f"{inside[0]:>8.0%}{inside[1]:>8.0%}{cost:>12.2f}{took_ms:>7.1f}"
        )


def _course_line(trace: Trace) -> str:
    """The rate two minutes ahead by its course over twenty minutes: what the policy goes by without a forecast."""
    per_minute = round(_MINUTE_S / trace.step_s)
    trend_s = 2 * _LEAD_S
    errors = []
    for history, truth in trace.origins(2):
        counted = history.requests_per_s[-30 * per_minute :]
        dispersion = index_of_dispersion(counted * trace.step_s) if per_minute > 1 else 1.0
        rates = counted[len(counted) % per_minute :].reshape(-1, per_minute).mean(axis=1)[-20:]
        lasted_s = np.full(len(rates), _MINUTE_S)
        weights = 4 * lasted_s / max(dispersion, 1.0)
        found = course(np.sqrt(rates), lasted_s, weights, trend_after_s=trend_s)
        ahead_s = trend_s * -math.expm1(-1.5 * _MINUTE_S / trend_s)
        said = max(0.0, found.level + found.slope * ahead_s) ** 2
        errors.append((abs(said - truth[0][1]), abs(rates[-1] - truth[0][1]), truth[0][1]))
    error, last, whole = np.sum(errors, axis=0)
    return (
        f"{trace.name + ', requests by course':<34}{2:>4} min{len(errors):>7}{error / whole:>8.1%}{error / last:>8.2f}"
    )


def _ask(history: History, horizon_min: int, quantile: float) -> Forecast:
    return forecast(history, horizon_s=horizon_min * _MINUTE_S, quantile=quantile)


def traces(directory: Path) -> Iterator[Trace]:
    """All four, from the files in `directory`."""
    for name in ("code", "conv"):
        with (directory / f"azure2023_{name}_first20min.csv").open() as file:
            rows = [(row["TIMESTAMP"], row["ContextTokens"], row["GeneratedTokens"]) for row in csv.DictReader(file)]
        times = np.array([np.datetime64(row[0]) for row in rows])
        arrivals_s = (times - times[0]) / np.timedelta64(1, "s")
        yield _short(f"azure {name}", arrivals_s, np.array([row[1:] for row in rows], dtype=float))
    with gzip.open(directory / "mooncake_conversation_first20min.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    ticks_s = np.array([line["timestamp"] / 1e3 for line in lines]) + np.random.default_rng(1).uniform(0, 3, len(lines))
    yield _short(
        "mooncake", ticks_s, np.array([(line["input_length"], line["output_length"]) for line in lines], float)
    )
    yield _servegen(directory / "servegen_m-large_days0-6_trace-csv.tar.xz")


def _short(name: str, arrivals_s: Array, lengths: Array) -> Trace:
    """In steps of 15 s; the last, which is not whole, left out."""
    step_s = 15.0
    steps = (arrivals_s // step_s).astype(int)
    whole = int(steps.max())
    weights = (np.ones(len(steps)), lengths[:, 0], lengths[:, 1])
    requests, inputs, outputs = (np.bincount(steps, each)[:whole] / step_s for each in weights)
    return Trace(name=name, step_s=step_s, rates=(requests, inputs, outputs), start=12, stride=1)


def _servegen(path: Path) -> Trace:
    """From the second day on, so that there is a yesterday."""
    with tarfile.open(path) as archive:
        clients = [archive.extractfile(member) for member in archive if member.isfile()]
        rates = np.sum([np.loadtxt(file, delimiter=",", usecols=1) for file in clients if file], axis=0)
    windows = len(rates)
    smooth = np.interp(np.arange(windows * 10) + 0.5, np.arange(windows) * 10 + 5, rates)
    source = np.random.default_rng(1)
    counts = source.poisson(smooth * _MINUTE_S)
    # The sum of n exponential lengths is a gamma of shape n. Means of m-large: 914 and 155 tokens.
    inputs, outputs = (source.gamma(np.maximum(counts, 1e-9), mean) / _MINUTE_S for mean in (914, 155))
    return Trace(name="servegen", step_s=60.0, rates=(counts / _MINUTE_S, inputs, outputs), start=1560, stride=13)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give one argument: the directory of the traces.")
    main(Path(sys.argv[1]))
