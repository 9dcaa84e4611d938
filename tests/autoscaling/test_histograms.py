"""Shares and spreads out of buckets, against the events themselves."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_answers import TOKENS_BOUNDS, le

from autoscaling.observing.histograms import counted, share_below, spread

LENGTHS = st.lists(st.integers(1, 4000), min_size=1, max_size=60)


def test_no_events_have_no_spread_and_miss_nothing() -> None:
    assert counted({}) == 0
    assert share_below({}, 1.0) == 1.0
    assert spread(le(), 5.0) == 0.0


@pytest.mark.parametrize(
    ("limit", "share"),
    [(0.0, 0.0), (0.05, 0.25), (0.1, 0.5), (0.175, 0.625), (0.25, 0.75), (4.9, 0.75), (5.0, 0.75), (9.0, 0.75)],
)
def test_a_limit_inside_a_bucket_takes_its_part_and_beyond_all_bounds_is_a_miss(limit: float, share: float) -> None:
    buckets = {0.1: 2.0, 0.25: 3.0, 5.0: 3.0, math.inf: 4.0}
    assert share_below(buckets, limit) == pytest.approx(share)


@given(events=LENGTHS, limit=st.integers(1, 5000))
def test_a_share_is_off_by_no_more_than_the_bucket_of_the_limit(events: list[int], limit: int) -> None:
    bounds = (0.0, *TOKENS_BOUNDS)
    inside = sum(low < event <= high for low, high in pairwise(bounds) if low <= limit < high for event in events)
    true = sum(event <= limit for event in events) / len(events)
    assert abs(share_below(le(*events, bounds=TOKENS_BOUNDS), limit) - true) <= inside / len(events) + 1e-9


@given(events=LENGTHS, weight=st.floats(1e-6, 1e6))
def test_the_spread_does_not_depend_on_how_many_events_there_were(events: list[int], weight: float) -> None:
    mean = sum(events) / len(events)
    one = spread(le(*events, bounds=TOKENS_BOUNDS), mean)
    assert math.isfinite(one)
    assert spread(le(*events, bounds=TOKENS_BOUNDS, weight=weight), mean) == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("mean", [7, 60, 300, 1500])
@pytest.mark.parametrize("true", [0.0, 0.3, 0.6, 1.0])
def test_the_spread_of_log_normal_lengths_is_near_enough(mean: float, true: float) -> None:
    width = math.sqrt(math.log(1 + true**2))
    events = np.maximum(1, np.random.default_rng(3).lognormal(math.log(mean) - width**2 / 2, width, 5000).round())
    found = spread(le(*events, bounds=TOKENS_BOUNDS), float(events.mean()))
    assert found == pytest.approx(float(events.std() / events.mean()), abs=0.3)


@pytest.mark.parametrize("length", TOKENS_BOUNDS[1:])
def test_equal_lengths_on_a_bound_have_no_spread(length: float) -> None:
    assert spread(le(*[length] * 9, bounds=TOKENS_BOUNDS), length) == pytest.approx(0, abs=1e-9)


def test_rates_that_do_not_rise_are_mended() -> None:
    assert share_below({1.0: 5.0, 2.0: 4.0, math.inf: 10.0}, 2.0) == 0.5
