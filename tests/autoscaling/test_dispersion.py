"""How bursty arrivals are, told from counts."""

import numpy as np
import pytest

from autoscaling.observing.dispersion import index_of_dispersion

GENERATOR = np.random.default_rng(5)


def mean_of(draw: object, runs: int = 300) -> float:
    return float(np.mean([index_of_dispersion(draw().astype(float)) for _ in range(runs)]))  # type: ignore[operator]


@pytest.mark.parametrize("rate", [3, 30, 300])
def test_independent_arrivals_have_one_whatever_their_rate(rate: int) -> None:
    assert mean_of(lambda: GENERATOR.poisson(rate, 60)) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("dispersion", [2, 5, 13])
def test_bursts_are_seen(dispersion: float) -> None:
    counts = lambda: GENERATOR.negative_binomial(50 / (dispersion - 1), 1 / dispersion, 60)  # noqa: E731
    assert mean_of(counts) == pytest.approx(dispersion, rel=0.15)


def test_a_rate_that_doubles_at_once_is_no_burst() -> None:
    doubled = lambda: np.concatenate([GENERATOR.poisson(90, 30), GENERATOR.poisson(180, 30)])  # noqa: E731
    assert mean_of(doubled) < 1.25


def test_holes_are_passed_over_and_too_little_says_nothing() -> None:
    counts = GENERATOR.poisson(40, 60).astype(float)
    counts[10:13] = np.nan
    assert 0.3 < index_of_dispersion(counts) < 2
    assert index_of_dispersion(np.full(60, np.nan)) == 1
    assert index_of_dispersion(np.zeros(60)) == 1
    assert index_of_dispersion(np.array([5.0, 40.0, 3.0])) == 1
    assert index_of_dispersion(np.array([0.0] * 12 + [np.nan, 40.0, np.nan])) == 1
