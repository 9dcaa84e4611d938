"""How likely an SLO is kept when predictions may be off, and what an option costs with that chance counted.

Whoever takes the cheapest of many predictions takes those that err on the fast side: at face value every tenth pick on
public measurements breaks its limit. So an option counts for more the surer it is. `calibration.choices` tells what
this rule loses on measured points; `plan` ranks by it.
"""

import math
from dataclasses import dataclass

import numpy as np

from placement.clusters.terrain import Region
from placement.cost.prediction import Question
from placement.cost.residuals import family
from placement.cost.step import STEADY, situation_of
from placement.cost.work import Array

# The power that a chance counts with, chosen on public points: at 1.5 fewer than 7 % of the picks break a limit,
# whatever is unseen; 1 breaks up to 9 %, and 2 costs up to a point more.
_CAUTION = 1.5
_FARTHEST = 1e3  # times a limit; keeps the logarithm finite where there is no limit (0) or no end (infinity)
_LEAST = 0.01  # nobody measures twice the same
_QUARTER = math.log(3.0)  # from the middle to the highest quarter of a logistic distribution of scale 1
_TENTHS = 2 * math.log(9.0)  # and from the lowest tenth to the highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far measurements are from predictions: log(measured / predicted) is logistic around 0 with these scales.

    A logistic distribution has the heavy tails that the errors have: settings nobody recorded make some far slower.
    """

    tpot: float
    ttft: float

    @property
    def halves(self) -> tuple[float, float]:
        """How far (a share) half of the predictions are off at most: TPOT and TTFT."""
        return self.tpot * _QUARTER, self.ttft * _QUARTER


# Out of fold on 1,643 public serving points, as tests/benchmarks/planner_accuracy.py prints them. `MEASURED` is where
# other layouts of the model were measured on that GPU and engine (folds by curve), `UNMEASURED` where none was (group).
MEASURED = Spread(tpot=0.044, ttft=0.144)
UNMEASURED = Spread(tpot=0.093, ttft=0.248)


def spread_of(tpot_ratios: Array, ttft_ratios: Array) -> Spread:
    """The spread of measured / predicted, from the middle eight tenths: a few points that fit nothing say little."""
    return Spread(tpot=_scale(tpot_ratios), ttft=_scale(ttft_ratios))


def spread_in(question: Question, region: Region) -> Spread:
    """The spread of what is predicted in `region`: less where the corrections know the model, GPU and engine."""
    situation = situation_of(question.model, region.kind, question.engine, STEADY)
    asked = (situation.engine, situation.gpu, family(question.model))
    known = any(labels[: len(asked)] == asked for labels in question.residuals.points.labels)
    return MEASURED if known else UNMEASURED


def chances(ttft_excess: Array | float, tpot_excess: Array | float, spread: Spread) -> Array:
    """The chance that both limits are kept, for predictions of so many times each limit (0 where there is none).

    A prediction right at a limit keeps it with even chance. Errors of TTFT and TPOT have little to do with each other
    (their logarithms correlate by 0.3), so their chances multiply.
    """
    return _chance(ttft_excess, spread.ttft) * _chance(tpot_excess, spread.tpot)


def expected_cost(cost: Array | float, chance: Array | float) -> Array:
    """`cost` in whatever unit, dearer the less likely its SLO is kept."""
    return np.asarray(cost / chance**_CAUTION)


def least_expected_cost(costs: Array, ttft_excess: Array, tpot_excess: Array, spread: Spread) -> int:
    """The index of the cheapest one predicted to keep both limits, chances counted; else of the closest to them."""
    excess = np.maximum(ttft_excess, tpot_excess)
    within = excess <= 1
    if not within.any():
        return int(np.argmin(excess))
    expected = expected_cost(costs[within], chances(ttft_excess[within], tpot_excess[within], spread))
    return int(np.flatnonzero(within)[np.argmin(expected)])


def _scale(ratios: Array) -> float:
    low, high = np.quantile(np.log(ratios), (0.1, 0.9))
    return max(_LEAST, float(high - low) / _TENTHS)


def _chance(excess: Array | float, scale: float) -> Array:
    logarithm = np.log(np.clip(excess, 1 / _FARTHEST, _FARTHEST))
    return np.asarray(1 / (1 + np.exp(logarithm / scale)))
