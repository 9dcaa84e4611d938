"""Fitting the constants of the cost model to measured serving points.

The logarithms of all constants move together so that the logarithms of TPOT and TTFT come close to the measured ones:
Levenberg-Marquardt on residuals with a soft absolute loss, so that a point measured under unknown settings pulls
little. Each constant is held near its prior by its `spread`, which is what makes a handful of points enough.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from placement.calibration.rows import Case, Row, case_of
from placement.cost.constants import Constants, Key, Lookup
from placement.cost.serving import Demand, Served, closed_loop
from placement.cost.step import lookup
from placement.cost.work import Array, Work, stack

_TTFT_WEIGHT = 0.4  # TTFT is noisier than TPOT in every source
_PRIOR_WEIGHT = 0.5
_SOFTNESS = 0.1  # residuals (log) beyond this count linearly, not squared
_STEPS = 25
_POINTS_OF_A_GROUP = 40  # a model on one GPU and engine with more points than this weighs no more
_TINY = 1e-4
_MS = 1e3


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases stacked for the vectorised model."""

    rows: tuple[Row, ...]
    work: Work
    demand: Demand
    clients: Array
    lookup: Lookup

    def served(self, factors: dict[str, Array]) -> Served:
        """The closed loop of every case."""
        return closed_loop(self.work, factors, self.demand, self.clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Milliseconds per row."""

    ttft_ms: Array
    tpot_ms: Array


def batch_of(rows: Sequence[Row], constants: Constants) -> Batch:
    """Make rows ready. Raises `RowError` for a model or GPU that is not known."""
    return stacked([case_of(row, constants) for row in rows])


def stacked(cases: Sequence[Case]) -> Batch:
    """Stack cases that were made ready one by one."""
    return Batch(
        rows=tuple(case.row for case in cases),
        work=stack([case.work for case in cases]),
        demand=Demand(
            *(np.array(column, dtype=np.float64) for column in zip(*(case.demand for case in cases), strict=True))
        ),
        clients=np.array([case.row.clients for case in cases]),
        lookup=lookup([case.situation for case in cases]),
    )


def predict(batch: Batch, constants: Constants) -> Prediction:
    """What the formulas say, without what neighbouring measured points know better (`residuals`)."""
    served = batch.served(batch.lookup.factors(batch.lookup.logarithms(constants)))
    return Prediction(ttft_ms=served.ttft_s * _MS, tpot_ms=served.tpot_s * _MS)


def fit(batch: Batch, prior: Constants, *, weights: Array | None = None) -> Constants:
    """The constants that explain the measured points of `batch` best while staying near `prior`.

    Only keys that the points use move. `weights` is one number per row, 0 to leave a row out.
    """
    start = batch.lookup.logarithms(prior)
    spread = np.array([1.0, *(prior.constants[name].spread for name, _ in batch.lookup.keys)])
    weight = balanced(batch.rows) if weights is None else balanced(batch.rows) * weights
    measured_tpot = np.log([row.tpot_ms for row in batch.rows])
    measured_ttft = np.log([row.ttft_ms for row in batch.rows])

    def residuals(logarithms: Array) -> Array:
        served = batch.served(batch.lookup.factors(logarithms))
        tpot = (np.log(served.tpot_s * _MS) - measured_tpot) * weight
        ttft = (np.log(served.ttft_s * _MS) - measured_ttft) * weight * _TTFT_WEIGHT
        return np.concatenate([tpot, ttft])

    logarithms = _levenberg_marquardt(residuals, start, _PRIOR_WEIGHT / spread)
    return prior.with_values(_values(batch.lookup.keys, logarithms))


def balanced(rows: Sequence[Row]) -> Array:
    """Weights that keep a much measured model from outvoting the others."""
    groups = [(row.model_id, row.gpu, row.engine) for row in rows]
    counts = Counter(groups)
    return np.array([min(1.0, (_POINTS_OF_A_GROUP / counts[group]) ** 0.5) for group in groups])


def _values(keys: Sequence[Key], logarithms: Array) -> dict[Key, float]:
    return {key: float(np.exp(value)) for key, value in zip(keys, logarithms[1:], strict=True)}


def _levenberg_marquardt(residuals: Callable[[Array], Array], start: Array, stiffness: Array) -> Array:
    """Minimise sum(rho(residuals)) + sum((stiffness * (x - start))^2), rho(r) = 2 s^2 (sqrt(1 + (r/s)^2) - 1)."""
    point, damping = start.copy(), 1e-3
    current = residuals(point)
    loss = _loss(current, stiffness * (point - start))
    for _ in range(_STEPS):
        # The soft loss as squares with weights from the last step: points far off get weight s/|r|.
        soft = (1 + (current / _SOFTNESS) ** 2) ** -0.25
        slopes = _slopes(residuals, point, current) * soft[:, None]
        curvature = slopes.T @ slopes + np.diag(stiffness**2)
        gradient = slopes.T @ (current * soft) + stiffness**2 * (point - start)
        improved = False
        while damping < 1e6 and not improved:
            candidate = point - np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            candidate[0] = 0.0
            values = residuals(candidate)
            candidate_loss = _loss(values, stiffness * (candidate - start))
            improved = bool(candidate_loss < loss)
            damping *= 0.3 if improved else 4.0
        if not improved:
            break
        converged = loss - candidate_loss < 1e-5 * loss
        point, current, loss = candidate, values, candidate_loss
        if converged:
            break
    return point


def _loss(residuals: Array, deviations: Array) -> float:
    soft = 2 * _SOFTNESS**2 * (np.sqrt(1 + (residuals / _SOFTNESS) ** 2) - 1)
    return float(np.sum(soft) + np.sum(deviations**2))


def _slopes(residuals: Callable[[Array], Array], point: Array, current: Array) -> Array:
    columns = np.zeros((len(current), len(point)))
    for index in range(1, len(point)):
        moved = point.copy()
        moved[index] += _TINY
        columns[:, index] = (residuals(moved) - current) / _TINY
    return columns
