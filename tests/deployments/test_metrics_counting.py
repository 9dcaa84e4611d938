import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.metrics.counting import BOUNDS_S, Durations

durations_s = st.floats(0, 1000) | st.sampled_from(BOUNDS_S)


@given(observed_s=st.lists(durations_s, max_size=50))
def test_a_bucket_counts_all_that_are_not_longer(observed_s: list[float]) -> None:
    durations = Durations()
    for duration_s in observed_s:
        durations.observe(duration_s)
    for name, count in durations.buckets():
        assert count == sum(duration_s <= float(name) for duration_s in observed_s)
    assert durations.sum_s == pytest.approx(sum(observed_s))


def test_bounds_tell_a_percentile_from_a_millisecond_to_a_minute_and_are_exact_where_slos_are() -> None:
    assert (BOUNDS_S[0], BOUNDS_S[-1]) == (0.001, 60.0)
    assert all(1 < after / before <= 1.51 for before, after in itertools.pairwise(BOUNDS_S))
    assert {0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0} <= set(BOUNDS_S)


def test_one_ingress_does_not_count_for_another() -> None:
    Durations().observe(1.0)
    assert sum(Durations().counts) == 0
