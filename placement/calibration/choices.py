"""What is lost by serving with the layout that is predicted to be best under an SLO, instead of the one that is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.calibration.accuracy import folds_of, measured, part, tokens_per_s
from placement.calibration.fit import Prediction
from placement.calibration.rows import Row
from placement.cost.work import Array

SLO_TPOT_MS = (10.0, 15.0, 20.0, 30.0, 50.0)
SLO_TTFT_MS = 1000.0
MAX_VIOLATIONS = 0.08
CAUTIONS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)

# Of TPOT and TTFT over their limits, and of tokens/s, all as predicted: the index of the candidate to take.
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
    return _choice(_outcomes(rows, prediction, ttft_ms, (at_face_value,)))


def slo_choice_by_chance(
    rows: Sequence[Row], prediction: Prediction, *, ttft_ms: float = math.inf, folds: int = 5, seed: int = 0
) -> tuple[float, Choice]:
    """The same where each candidate counts its tokens/s times the chance that it keeps the limits.

    The chance is the share of other scenarios' errors that would leave it within them. It counts to the power of a
    caution: the one that loses least while at most `MAX_VIOLATIONS` of the picks break their limit. Each fold of
    scenarios is scored with the errors and the caution of the others; the caution returned is that of all.
    """
    scenarios = np.array([_scenario(row) for row in rows])
    scored = []
    for held in folds_of(list(np.unique(scenarios)), folds, seed):
        inside = np.isin(scenarios, np.unique(scenarios)[held])
        others = part(rows, prediction, ~inside)
        rules = cautious(*others)
        safest = _safest(_outcomes(*others, ttft_ms, rules))
        scored.append(_outcomes(*part(rows, prediction, inside), ttft_ms, (rules[safest],)))
    safest = _safest(_outcomes(rows, prediction, ttft_ms, cautious(rows, prediction)))
    return CAUTIONS[safest], _choice(np.concatenate(scored))


def at_face_value(tpot: Array, ttft: Array, promised: Array) -> int:
    """The most tokens/s of those within both limits, else the closest to them."""
    excess = np.maximum(tpot, ttft)
    within = excess <= 1
    return int(np.argmax(np.where(within, promised, -np.inf)) if within.any() else np.argmin(excess))


def cautious(rows: Sequence[Row], prediction: Prediction) -> list[Rule]:
    """One rule for each of `CAUTIONS`, with the errors of `prediction` on `rows`."""
    actual = measured(rows)
    tpot_errors, ttft_errors = actual.tpot_ms / prediction.tpot_ms, actual.ttft_ms / prediction.ttft_ms

    def rule(caution: float) -> Rule:
        def pick(tpot: Array, ttft: Array, promised: Array) -> int:
            kept = (np.outer(tpot, tpot_errors) <= 1) & (np.outer(ttft, ttft_errors) <= 1)
            chance = kept.mean(axis=1)
            return int(np.argmax(promised * chance**caution) if chance.any() else np.argmin(np.maximum(tpot, ttft)))

        return pick

    return [rule(caution) for caution in CAUTIONS]


def _outcomes(rows: Sequence[Row], prediction: Prediction, ttft_ms: float, rules: Sequence[Rule]) -> Array:
    """Decisions x rules x (breaks it, regret, is the best)."""
    scenarios = np.array([_scenario(row) for row in rows])
    outcomes = []
    for name in np.unique(scenarios):
        inside, predicted = part(rows, prediction, scenarios == name)
        actual = measured(inside)
        earned, promised = tokens_per_s(inside, actual), tokens_per_s(inside, predicted)
        for tpot_ms in SLO_TPOT_MS:
            keeps = (actual.tpot_ms <= tpot_ms) & (actual.ttft_ms <= ttft_ms)
            if keeps.any():
                over = predicted.tpot_ms / tpot_ms, predicted.ttft_ms / ttft_ms
                outcomes.append([_outcome(rule(*over, promised), keeps, earned) for rule in rules])
    return np.array(outcomes).reshape(-1, len(rules), 3)


def _scenario(row: Row) -> str:
    return f"{row.model_id}|{row.gpu}|{row.precision}|{row.engine}|{row.input_tokens}|{row.output_tokens}"


def _outcome(pick: int, keeps: NDArray[np.bool_], earned: Array) -> tuple[float, float, float]:
    most = earned[keeps].max()
    if not keeps[pick]:
        return 1.0, 1.0, 0.0
    return 0.0, float(1 - earned[pick] / most), float(earned[pick] == most)


def _choice(outcomes: Array) -> Choice:
    """`outcomes` of one rule."""
    violations, regret, best = outcomes.reshape(len(outcomes), 3).mean(axis=0)
    return Choice(decisions=len(outcomes), violations=float(violations), regret=float(regret), best=float(best))


def _safest(outcomes: Array) -> int:
    """The index of the rule with the least regret among those that break few limits, else of the most cautious."""
    violations, regret, _ = outcomes.mean(axis=0).T
    allowed = violations <= MAX_VIOLATIONS
    return int(np.argmin(np.where(allowed, regret, np.inf))) if allowed.any() else len(violations) - 1
