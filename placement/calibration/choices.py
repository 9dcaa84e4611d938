"""What is lost by serving with the layout that is predicted to be best under an SLO, instead of the one that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.calibration.accuracy import folds_of, measured, part, tokens_per_s
from placement.calibration.fit import Prediction
from placement.calibration.rows import Row
from placement.cost.work import Array

SLO_TPOT_MS = (10.0, 15.0, 20.0, 30.0, 50.0)
SLO_TTFT_MS = 1000.0
MAX_VIOLATIONS = 0.08


class Margin(NamedTuple):
    """What predictions are multiplied by before they are held against a limit: TTFT is predicted less well."""

    tpot: float = 1.0
    ttft: float = 1.0


NO_MARGIN = Margin()
MARGINS = tuple(Margin(1 + tpot / 50, 1 + ttft / 10) for ttft, tpot in product(range(8), range(21)))  # to 1.4 and 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Picks of `decisions` scenarios and limits: shares that break the limit and that are the best, and mean regret.

    Regret is the throughput lost against the best layout that was measured to keep the limit; 1 for breaking it.
    """

    decisions: int
    violations: float
    regret: float
    best: float


def slo_choice(
    rows: Sequence[Row], prediction: Prediction, *, ttft_ms: float = math.inf, margin: Margin = NO_MARGIN
) -> Choice:
    """Choose among all measured layouts and loads of a scenario the most tokens/s for each GPU under each TPOT limit.

    A candidate is taken to keep a limit when its prediction times `margin` does; where none does, the one that
    comes closest is chosen. Limits that no measured candidate keeps are no decision.
    """
    return _choice(np.concatenate(list(_decisions(rows, prediction, ttft_ms, (margin,)).values())))


def slo_choice_with_margin(
    rows: Sequence[Row], prediction: Prediction, *, ttft_ms: float = math.inf, folds: int = 5, seed: int = 0
) -> tuple[Margin, Choice]:
    """The same with the margin that loses least while at most `MAX_VIOLATIONS` of the picks break their limit.

    Each fold of scenarios is scored with the margin of the others; the margin returned is that of all.
    """
    by_scenario = _decisions(rows, prediction, ttft_ms, MARGINS)
    scenarios = list(by_scenario.values())
    scored = []
    for held in folds_of(list(by_scenario), folds, seed):
        others = np.concatenate([table for table, out in zip(scenarios, held, strict=True) if not out])
        column = _safest(others)
        scored += [table[:, [column]] for table, out in zip(scenarios, held, strict=True) if out]
    return MARGINS[_safest(np.concatenate(scenarios))], _choice(np.concatenate(scored))


def _decisions(
    rows: Sequence[Row], prediction: Prediction, ttft_ms: float, margins: Sequence[Margin]
) -> dict[str, Array]:
    """Per scenario an array of limits x margins x (breaks it, regret, is the best)."""
    scenarios = np.array(
        [
            f"{row.model_id}|{row.gpu}|{row.precision}|{row.engine}|{row.input_tokens}|{row.output_tokens}"
            for row in rows
        ]
    )
    decided: dict[str, Array] = {}
    for name in np.unique(scenarios):
        inside, predicted = part(rows, prediction, scenarios == name)
        actual = measured(inside)
        earned, promised = tokens_per_s(inside, actual), tokens_per_s(inside, predicted)
        outcomes = [
            [_outcome(_excess(predicted, tpot_ms, ttft_ms, margin), promised, keeps, earned) for margin in margins]
            for tpot_ms in SLO_TPOT_MS
            if (keeps := _excess(actual, tpot_ms, ttft_ms, NO_MARGIN) <= 1).any()
        ]
        if outcomes:
            decided[str(name)] = np.array(outcomes)
    return decided


def _excess(times: Prediction, tpot_ms: float, ttft_ms: float, margin: Margin) -> Array:
    """What times and margins come to as a share of the limits: at most 1 keeps both."""
    return np.maximum(times.tpot_ms * margin.tpot / tpot_ms, times.ttft_ms * margin.ttft / ttft_ms)


def _outcome(excess: Array, promised: Array, keeps: NDArray[np.bool_], earned: Array) -> tuple[float, float, float]:
    within = excess <= 1
    pick = np.argmax(np.where(within, promised, -np.inf)) if within.any() else np.argmin(excess)
    most = earned[keeps].max()
    if not keeps[pick]:
        return 1.0, 1.0, 0.0
    return 0.0, float(1 - earned[pick] / most), float(earned[pick] == most)


def _choice(outcomes: Array) -> Choice:
    """`outcomes` with one margin."""
    violations, regret, best = outcomes.reshape(len(outcomes), 3).mean(axis=0)
    return Choice(decisions=len(outcomes), violations=float(violations), regret=float(regret), best=float(best))


def _safest(outcomes: Array) -> int:
    """The index of the margin with the least regret among those that break few limits, else of the largest."""
    violations, regret, _ = outcomes.mean(axis=0).T
    allowed = violations <= MAX_VIOLATIONS
    return int(np.argmin(np.where(allowed, regret, np.inf))) if allowed.any() else len(violations) - 1
