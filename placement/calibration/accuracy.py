"""How far the predictions are from what was measured, and how far on points that nothing was fitted to.

Folds hold out whole groups of rows, so that a point never helps to predict its neighbour on the same curve. How good
the choices are that follow from the predictions is told by `choices` and `ladders`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.calibration.fit import Prediction, fit, predict, stacked
from placement.calibration.rows import Case, Row, points_of
from placement.cost.constants import Constants, priors
from placement.cost.residuals import Points, Target, corrections, family, learn
from placement.cost.work import Array

FOLDS = {"curve": 5, "group": 14, "gpu": 100, "model": 100}  # at most one for each label: 100 leaves one out
_UNRECORDED_TRUST = 0.1
HEADING = f"{'error: mean / median':<34}{'points':>6}{'TPOT':>18}{'TTFT':>18}{'tokens/s/GPU':>18}"


class AccuracyError(ValueError):
    """Rows from which no accuracy follows. The message names the field, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Of one quantity: mean and median of |predicted / measured - 1|, and `bias`, the geometric mean less 1."""

    mean: float
    median: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of `rows` points; `tokens_per_s` is for each GPU and the same as for each replica."""

    rows: int
    tpot: Error
    ttft: Error
    tokens_per_s: Error


def errors(rows: Sequence[Row], prediction: Prediction) -> Errors:
    """Of all `rows`."""
    found = measured(rows)
    return Errors(
        rows=len(rows),
        tpot=_error(prediction.tpot_ms / found.tpot_ms),
        ttft=_error(prediction.ttft_ms / found.ttft_ms),
        tokens_per_s=_error(tokens_per_s(rows, prediction) / tokens_per_s(rows, found)),
    )


def errors_by(rows: Sequence[Row], prediction: Prediction, label: Callable[[Row], str]) -> dict[str, Errors]:
    """For the rows of each label, in the order of the labels."""
    labels = np.array([label(row) for row in rows])
    return {str(name): errors(*part(rows, prediction, labels == name)) for name in np.unique(labels)}


def tokens_per_s(rows: Sequence[Row], times: Prediction) -> Array:
    """Output tokens/s for each GPU: each of the clients gets its answer in TTFT + (tokens - 1) * TPOT."""
    tokens = np.array([row.output_tokens for row in rows])
    written = np.array([row.clients * row.output_tokens / row.shape.gpus for row in rows])
    return np.asarray(1e3 * written / (times.ttft_ms + times.tpot_ms * (tokens - 1)))


def trust(rows: Sequence[Row]) -> Array:
    """The weight of each row in a fit: little where the settings of the run were not recorded.

    Those are the runs of NVIDIA's own 4-bit checkpoints, some with speculative decoding, and all on GB200.
    """
    odd = [row.model_id.startswith("nvidia/") or row.gpu == "gb200" for row in rows]
    return np.where(odd, _UNRECORDED_TRUST, 1.0)


def logarithms(rows: Sequence[Row], prediction: Prediction) -> dict[Target, Array]:
    """log(measured / predicted) of each row, as `residuals.learn` takes them."""
    found = measured(rows)
    return {"tpot": np.log(found.tpot_ms / prediction.tpot_ms), "ttft": np.log(found.ttft_ms / prediction.ttft_ms)}


def cross_validate(
    cases: Sequence[Case], constants: Constants, *, by: str = "group", folds: int | None = None
) -> Prediction:
    """Each case predicted from constants and residuals that were learnt on other folds only.

    `by` says what is never divided: the "curve" of one layout over the number of clients, the "group" of a model, GPU
    and engine, all of a "model", or all of a "gpu". Of `constants` only the priors are used: fitted values know what a
    fold holds out. Raises `AccuracyError` for fewer than two labels or folds.
    """
    rows = [case.row for case in cases]
    prior, points, weights = priors(constants), points_of(cases), trust(rows)
    tpot_ms, ttft_ms = np.zeros(len(cases)), np.zeros(len(cases))
    for held in folds_of(labels_of(cases, by), FOLDS[by] if folds is None else folds):
        training = stacked([case for case, out in zip(cases, held, strict=True) if not out])
        test = stacked([case for case, out in zip(cases, held, strict=True) if out])
        fitted = fit(training, prior, weights=weights[~held])
        learnt = learn(_points(points, ~held), logarithms(training.rows, predict(training, fitted)))
        there, found = _points(points, held), predict(test, fitted)
        tpot_ms[held] = found.tpot_ms * corrections(learnt, there, "tpot")
        ttft_ms[held] = found.ttft_ms * corrections(learnt, there, "ttft")
    return Prediction(ttft_ms=ttft_ms, tpot_ms=tpot_ms)


def labels_of(cases: Sequence[Case], by: str) -> list[str]:
    """What is never divided over folds, for each case; see `cross_validate`."""
    return [_label(case, by) for case in cases]


def folds_of(labels: Sequence[str], folds: int) -> list[NDArray[np.bool_]]:
    """Which cases each fold holds out: every case in one fold, cases of one label in the same. Always the same ones."""
    names = np.unique(labels)
    if min(folds, len(names)) < 2:
        raise AccuracyError(f"folds is {folds} for {len(names)} labels; both must be at least 2.")
    shuffled = np.random.default_rng(0).permutation(names)
    return [np.isin(labels, shuffled[fold::folds]) for fold in range(min(folds, len(names)))]


def measured(rows: Sequence[Row]) -> Prediction:
    """What was measured. Raises `AccuracyError` when a row lacks TTFT or TPOT, or when there are no rows."""
    missing = next((row.id for row in rows if not row.ttft_ms or not row.tpot_ms), None)
    if missing is not None or not rows:
        raise AccuracyError(
            f"row {missing}: silicon_ttft_ms and silicon_tpot_ms must both be measured."
            if rows
            else "There are no rows."
        )
    return Prediction(ttft_ms=np.array([row.ttft_ms for row in rows]), tpot_ms=np.array([row.tpot_ms for row in rows]))


def part(rows: Sequence[Row], times: Prediction, mask: NDArray[np.bool_]) -> tuple[list[Row], Prediction]:
    """The rows, and their times, where `mask` is true."""
    kept = [row for row, wanted in zip(rows, mask, strict=True) if wanted]
    return kept, Prediction(ttft_ms=times.ttft_ms[mask], tpot_ms=times.tpot_ms[mask])


def _error(ratio: Array) -> Error:
    off = np.abs(ratio - 1)
    return Error(mean=float(off.mean()), median=float(np.median(off)), bias=float(np.exp(np.log(ratio).mean()) - 1))


def _points(points: Points, mask: NDArray[np.bool_]) -> Points:
    labels = tuple(label for label, wanted in zip(points.labels, mask, strict=True) if wanted)
    return Points(labels, points.places[mask])


def _label(case: Case, by: str) -> str:
    row = case.row
    group = f"{row.model_id}|{row.gpu}|{row.engine}"
    curve = f"{group}|{row.precision}|{row.shape}|{row.input_tokens}|{row.output_tokens}"
    return {"curve": curve, "group": group, "gpu": row.gpu, "model": family(case.model)}[by]


def as_text(checks: Mapping[str, Errors]) -> str:
    """One line for each of `checks`, under a heading."""
    return "\n".join([HEADING, *(line(name, found) for name, found in checks.items())])


def as_json(checks: Mapping[str, Errors]) -> dict[str, Any]:
    """The same as plain values; errors are shares, not per cent."""
    return {name: asdict(found) for name, found in checks.items()}


def line(name: str, found: Errors) -> str:
    """`found` under `HEADING`."""
    columns = (f"{each.mean:.1%} / {each.median:.1%}" for each in (found.tpot, found.ttft, found.tokens_per_s))
    return f"{name:<34}{found.rows:>6}" + "".join(f"{column:>18}" for column in columns)
