"""What is lost by serving with the layout that the planner would choose under an SLO, instead of the best one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.calibration.accuracy import folds_of, measured, part, tokens_per_s
from placement.calibration.fit import Prediction
from placement.calibration.rows import Row
from placement.cost.work import Array
from placement.planning.chance import Spread, least_expected_cost, spread_of

SLO_TPOT_MS = (10.0, 15.0, 20.0, 30.0, 50.0)
SLO_TTFT_MS = 1000.0

# Of tokens/s for each GPU, and of TTFT and TPOT over their limits, all as predicted: the index of the one to take.
Rule = Callable[[Array, Array, Array], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Picks of `decisions` scenarios and limits: shares that break the limit and that are the best, and mean regret.

    Regret is the throughput lost against the best layout that was measured to keep the limit; 1 for breaking it.
    """

    decisions: int
    violations: float
    regret: float
    best: float


def slo_choice(rows: Sequence[Row], prediction: Prediction, *, ttft_ms: float = math.inf) -> Choice:
    """Choose among all measured layouts and loads of a scenario the most tokens/s for each GPU under each TPOT limit.

    Predictions are taken at face value; where none keeps a limit, the one that comes closest is chosen. Limits that no
    measured candidate keeps are no decision.
    """
    return _choice(_outcomes(rows, prediction, ttft_ms, at_face_value))


def slo_choice_by_chance(
    rows: Sequence[Row], prediction: Prediction, *, ttft_ms: float = math.inf, folds: int = 5
) -> Choice:
    """The same as `plan` chooses: what a candidate costs counts for more the less likely it keeps the limits.

    Each fold of scenarios is scored with the errors of the others.
    """
    scenarios = np.array([_scenario(row) for row in rows])
    scored = []
    for held in folds_of(list(np.unique(scenarios)), folds):
        inside = np.isin(scenarios, np.unique(scenarios)[held])
        rule = by_chance(errors_spread(*part(rows, prediction, ~inside)))
        scored += _outcomes(*part(rows, prediction, inside), ttft_ms, rule)
    return _choice(scored)


def errors_spread(rows: Sequence[Row], prediction: Prediction) -> Spread:
    """How far what was measured is from `prediction`."""
    actual = measured(rows)
    return spread_of(actual.tpot_ms / prediction.tpot_ms, actual.ttft_ms / prediction.ttft_ms)


def at_face_value(promised: Array, ttft_excess: Array, tpot_excess: Array) -> int:
    """The most tokens/s of those within both limits, else the closest to them."""
    excess = np.maximum(ttft_excess, tpot_excess)
    within = excess <= 1
    return int(np.argmax(np.where(within, promised, -np.inf)) if within.any() else np.argmin(excess))


def by_chance(spread: Spread) -> Rule:
    """The planner's rule, for predictions that are so far off."""

    def pick(promised: Array, ttft_excess: Array, tpot_excess: Array) -> int:
        return least_expected_cost(1 / promised, ttft_excess, tpot_excess, spread)

    return pick


def _outcomes(
    rows: Sequence[Row], prediction: Prediction, ttft_ms: float, rule: Rule
) -> list[tuple[float, float, float]]:
    """Of each decision: whether it breaks the limit, its regret, whether it is the best."""
    scenarios = np.array([_scenario(row) for row in rows])
    outcomes = []
    for name in np.unique(scenarios):
        inside, predicted = part(rows, prediction, scenarios == name)
        actual = measured(inside)
        earned, promised = tokens_per_s(inside, actual), tokens_per_s(inside, predicted)
        for tpot_ms in SLO_TPOT_MS:
            keeps = (actual.tpot_ms <= tpot_ms) & (actual.ttft_ms <= ttft_ms)
            if keeps.any():
                pick = rule(promised, predicted.ttft_ms / ttft_ms, predicted.tpot_ms / tpot_ms)
                outcomes.append(_outcome(pick, keeps, earned))
    return outcomes


def _scenario(row: Row) -> str:
    return f"{row.model_id}|{row.gpu}|{row.precision}|{row.engine}|{row.input_tokens}|{row.output_tokens}"


def _outcome(pick: int, keeps: NDArray[np.bool_], earned: Array) -> tuple[float, float, float]:
    most = earned[keeps].max()
    if not keeps[pick]:
        return 1.0, 1.0, 0.0
    return 0.0, float(1 - earned[pick] / most), float(earned[pick] == most)


def _choice(outcomes: Sequence[tuple[float, float, float]]) -> Choice:
    violations, regret, best = np.mean(outcomes, axis=0)
    return Choice(decisions=len(outcomes), violations=float(violations), regret=float(regret), best=float(best))
