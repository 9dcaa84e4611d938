"""That a plan weighs cost against the chance of keeping the SLO, and says so."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_builders import LLAMA_70B, best, cluster, model, region, requests, slo

from placement.cost import constants, residuals
from placement.cost.prediction import Question
from placement.planning.assurance import assured
from placement.planning.chance import (
    MEASURED,
    UNMEASURED,
    Spread,
    chances,
    expected_cost,
    least_expected_cost,
    spread_in,
    spread_of,
)
from placement.planning.plan import plan
from placement.shape import Shape

SPREADS = st.builds(Spread, tpot=st.floats(0.01, 0.5), ttft=st.floats(0.01, 0.5))
EXCESSES = st.floats(0, 50)


def chance(ttft_excess: float, tpot_excess: float, spread: Spread = MEASURED) -> float:
    return float(chances(ttft_excess, tpot_excess, spread))


# --- the chance ------------------------------------------------------------------------------------------------------


def test_a_prediction_at_its_limit_keeps_it_every_second_time() -> None:
    assert chance(0, 1) == pytest.approx(0.5)
    assert chance(1, 1) == pytest.approx(0.25)
    assert chance(0, 0) == pytest.approx(1)


@given(ttft=EXCESSES, tpot=EXCESSES, less=st.floats(0, 1), spread=SPREADS)
def test_what_is_faster_is_surer(ttft: float, tpot: float, less: float, spread: Spread) -> None:
    assert chance(ttft * less, tpot, spread) >= chance(ttft, tpot, spread)
    assert chance(ttft, tpot * less, spread) >= chance(ttft, tpot, spread)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), tpot=st.floats(0.02, 0.4), ttft=st.floats(0.02, 0.4))
def test_the_spread_gives_back_how_often_limits_are_kept(seed: int, tpot: float, ttft: float) -> None:
    """Of times that are off as a spread says, limits of 10 and 30 % more are kept as often as the chance says."""
    ratios = [
        np.exp(np.random.default_rng([seed, each]).logistic(0, scale, 4000)) for each, scale in enumerate((tpot, ttft))
    ]
    found = spread_of(*ratios)
    for limit in (1.1, 1.3):
        assert chance(0, 1 / limit, found) == pytest.approx((ratios[0] <= limit).mean(), abs=0.05)
        assert chance(1 / limit, 0, found) == pytest.approx((ratios[1] <= limit).mean(), abs=0.05)


def test_a_few_points_that_fit_nothing_change_the_spread_little() -> None:
    ratios = np.exp(np.random.default_rng(1).logistic(0, 0.05, 1000))
    odd = np.where(np.arange(1000) % 50 == 0, 8.0, ratios)
    assert spread_of(odd, odd).tpot == pytest.approx(spread_of(ratios, ratios).tpot, rel=0.25)


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "tpot_excess", "chosen"),
    [
        pytest.param([8, 9], [0.99, 0.8], 1, id="a-little-dearer-and-far-surer"),
        pytest.param([8, 40], [0.99, 0.8], 0, id="far-dearer"),
        pytest.param([8, 9], [0.6, 0.5], 0, id="both-sure"),
        pytest.param([8, 9], [1.01, 0.99], 1, id="only-one-is-predicted-to-keep-it"),
        pytest.param([8, 9], [1.5, 1.4], 1, id="none-keeps-it-the-closest"),
    ],
)
def test_cost_is_weighed_against_the_chance(costs: list[float], tpot_excess: list[float], chosen: int) -> None:
    assert least_expected_cost(np.array(costs), np.zeros(2), np.array(tpot_excess), MEASURED) == chosen


@pytest.mark.parametrize(
    ("on", "name", "spread"),
    [
        ("4x dgx-h100", LLAMA_70B, MEASURED),
        ("l40s-8", LLAMA_70B, UNMEASURED),
        ("dgx-h100", "openai/gpt-oss-20b", UNMEASURED),
    ],
)
def test_predictions_are_trusted_where_their_like_was_measured(on: str, name: str, spread: Spread) -> None:
    asked = Question(
        model=model(name), workload=requests(), constants=constants.shipped(), residuals=residuals.shipped()
    )
    assert spread_in(asked, region(on)) == spread


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_surer_shape_wins_over_a_cheaper_one_and_its_reason_says_so() -> None:
    """tp4 is predicted to keep 18.8 ms, but within what such predictions are off."""
    found = plan(model(), cluster(), requests(requests_per_s=1), slo(tpot_ms=18.8))
    chosen = best(found)
    cheaper = min(found.options, key=lambda option: option.gpus)
    assert cheaper.gpus < chosen.gpus
    assert cheaper.chance < 0.75 < 0.9 < chosen.chance
    words = (
        rf"costs \S+ .* {cheaper.shape} \({chosen.gpus} against {cheaper.gpus} GPUs\) "
        rf"but keeps TPOT with \S+ chance, {cheaper.shape} with only {cheaper.chance:.0%}: one replica of "
    )
    assert re.match(words, chosen.reason)


def test_without_a_rate_a_replica_is_not_filled_to_its_limit() -> None:
    chosen = best(plan(model(), cluster(), requests(), slo(tpot_ms=20)))
    assert chosen.load.tpot_s < 0.018 < chosen.fullest.tpot_s <= 0.020
    assert chosen.chance > 0.8


@settings(max_examples=8)
@given(tpot_ms=st.floats(15, 60), looser=st.floats(1, 2), rate=st.floats(0.5, 20))
def test_a_looser_slo_or_a_lower_rate_never_costs_more_chances_counted(
    tpot_ms: float, looser: float, rate: float
) -> None:
    def cost(tpot_ms: float, rate: float) -> float:
        found = plan(model(), cluster(), requests(concurrency=rate * 10), slo(tpot_ms=tpot_ms)).best
        return np.inf if found is None else float(expected_cost(found.gpus, round(found.chance, 2)))

    assert cost(tpot_ms * looser, rate) <= cost(tpot_ms, rate)
    assert cost(tpot_ms, rate / looser) <= cost(tpot_ms, rate)


def test_more_replicas_than_tails_need_are_taken_where_the_chance_is_worth_them() -> None:
    """The fewest replicas of tp4 keep 27 ms, but hardly."""
    found = plan(model(), cluster(), requests(requests_per_s=8), slo(tpot_ms=27))
    option = replace(next(each for each in found.options if each.shape == Shape(tp=4)), replicas=1)
    fewest, worth = (assured(option, found.question, found.slo, most) for most in (None, option.most_replicas))
    assert fewest.meets_slo
    assert worth.replicas > fewest.replicas
    assert expected_cost(worth.gpus, worth.chance) < expected_cost(fewest.gpus, fewest.chance)


def test_without_an_slo_nothing_is_said_of_chances() -> None:
    found = plan(model(), cluster(), requests(requests_per_s=8))
    assert all(option.chance == pytest.approx(1) for option in found.options)
    assert not any("chance" in option.reason for option in found.options)


def test_a_little_more_output_is_not_worth_a_larger_replica() -> None:
    """Which is harder to place, to move and to lose."""
    found = plan(model(LLAMA_70B), cluster("4x dgx-h100"), requests(requests_per_s=None), slo(None, None))
    chosen, most = found.economical(), max(option.tokens_per_s_per_gpu for option in found.options)
    smaller = [option for option in found.options if chosen and option.shape.gpus < chosen.shape.gpus]
    assert chosen is not None
    assert chosen.shape.gpus < max(found.options, key=lambda option: option.tokens_per_s_per_gpu).shape.gpus
    assert chosen.tokens_per_s_per_gpu >= 0.8 * most
    assert all(option.tokens_per_s_per_gpu < 0.8 * most for option in smaller)
