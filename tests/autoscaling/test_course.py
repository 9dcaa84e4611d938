"""The course of a noisy series: chance leaves it alone, a step is two levels, a ramp is a slope."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.forecasting.course import Course, course

STEPS, STEP_S = 20, 60.0
NOISE = 0.5  # standard deviation


def found(means, seed: int = 0, *, noise: float = NOISE, trend_after_s: float = 240.0) -> Course:
    values = np.asarray(means, dtype=float)
    values = values + noise * np.random.default_rng(seed).standard_normal(len(values))
    return course(values, np.full(len(values), STEP_S), np.full(len(values), NOISE**-2), trend_after_s=trend_after_s)


def rms(errors) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def test_chance_is_averaged_over_all_that_is_known():
    made = [found([10.0] * STEPS, seed) for seed in range(200)]
    assert rms([one.level - 10 for one in made]) < 0.6 * NOISE
    assert rms([one.levels.max() - 10 for one in made]) < NOISE  # single steps: 1.9
    assert rms([one.slope * 150 for one in made]) < 0.5 * NOISE


@pytest.mark.parametrize("since", [1, 2, 3, 5])
@pytest.mark.parametrize("to", [4.0, 14.0])
def test_a_step_is_a_new_level_at_once_and_no_trend(since, to):
    made = [found([10.0] * STEPS + [to] * since, seed) for seed in range(50)]
    assert rms([one.level - to for one in made]) < 1.2 * NOISE
    assert rms([one.slope * 150 for one in made]) < NOISE
    assert np.mean([one.levels[0] for one in made]) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize("per_minute", [-0.4, 0.4])
def test_a_ramp_is_a_slope_that_says_what_comes(per_minute):
    ramp = 10 + per_minute * np.arange(STEPS)
    coming = ramp[-1] + per_minute * 2.5  # two minutes after the end of the last step, which is the middle of a minute
    made = [found(ramp, seed) for seed in range(100)]
    assert rms([one.level + one.slope * 120 - coming for one in made]) < 1.3 * NOISE
    # Where a step explains a part of them as well, a part of the slope is taken back.
    assert 0.6 < np.mean([one.slope * 60 for one in made]) / per_minute < 1


def test_a_rise_that_is_shorter_than_a_trend_is_none():
    rise = [10.0] * STEPS + [12.0, 14.0, 16.0]
    assert abs(found(rise, noise=0.0, trend_after_s=480.0).slope) < 2e-3
    assert found(rise, noise=0.0, trend_after_s=180.0).slope > 0.02


def test_what_little_is_known_of_is_known_the_less_well():
    made = found([10.0] * STEPS + [20.0] * 2, noise=0.0)
    assert made.errors[0] == pytest.approx(NOISE / STEPS**0.5)
    assert made.errors[-1] == pytest.approx(NOISE / 2**0.5)


def test_nothing_known_is_no_course():
    with pytest.raises(ValueError, match="no value has a weight"):
        course(np.ones(3), np.ones(3), np.zeros(3))


@given(
    values=st.lists(st.tuples(st.floats(0, 100), st.sampled_from([0.0, 0.25, 4.0]), st.floats(1, 60)), min_size=1),
    trend_after_s=st.sampled_from([60.0, 300.0]),
)
def test_levels_without_a_trend_are_between_the_least_and_the_most(values, trend_after_s):
    rows = np.array(values)
    series, weights, lasted_s = rows[:, 0], rows[:, 1], rows[:, 2]
    if not weights.any():
        return
    made = course(series, lasted_s, weights)
    known = series[weights > 0]
    assert made.slope == 0
    assert known.min() - 1e-6 <= made.level <= known.max() + 1e-6
    sloping = course(series, lasted_s, weights, trend_after_s=trend_after_s)
    assert np.isfinite([*sloping.levels, *sloping.errors, sloping.level, sloping.slope]).all()
