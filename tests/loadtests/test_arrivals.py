import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import arrivals
from loadtests.arrivals import Curve

RATES = st.floats(0.1, 50)
LONG_S = 2000.0

CURVES = {
    "steady": arrivals.steady(5, LONG_S),
    "step": arrivals.step(2, 8, 500, LONG_S),
    "ramp": arrivals.ramp(1, 9, 400, 1600, LONG_S),
    "spike": arrivals.spike(3, 30, 700, 100, LONG_S),
    "square": arrivals.square(2, 8, 300, LONG_S),
    "diurnal": arrivals.diurnal(5, 0.8, 1000, LONG_S),
    "windows": arrivals.windows([1, 0, 12, 4], 500, LONG_S),
}
EXPECTED = {  # the integral of each, by hand
    "steady": 10_000,
    "step": 1000 + 12_000,
    "ramp": 400 + 6000 + 3600,
    "spike": 5700 + 3000,
    "square": 6 * 300 * 5 + 150 * 2 + 50 * 8,
    "diurnal": 10_000,
    "windows": 500 + 6000 + 2000,
}


def times(curve: Curve, cv: float, seed: int = 1) -> list[float]:
    return list(arrivals.arrivals(curve, cv, random.Random(seed)))


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", CURVES)
def test_as_many_arrive_as_the_curve_expects_in_order_and_before_its_end(name: str, cv: float) -> None:
    expected = sum(piece.requests for piece in CURVES[name])
    found = times(CURVES[name], cv)
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] < LONG_S
    assert len(found) == pytest.approx(expected, abs=1 + 5 * cv * expected**0.5)


@pytest.mark.parametrize("name", CURVES)
def test_the_integral_of_a_curve_is_what_one_works_out_by_hand(name: str) -> None:
    assert sum(piece.requests for piece in CURVES[name]) == pytest.approx(EXPECTED[name], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "from_s", "to_s", "rate"),
    [
        ("step", 0, 500, 2),
        ("step", 500, 2000, 8),
        ("ramp", 0, 400, 1),
        ("ramp", 900, 1100, 5),
        ("ramp", 1600, 2000, 9),
        ("spike", 0, 700, 3),
        ("spike", 700, 800, 30),
        ("spike", 800, 2000, 3),
        ("square", 0, 150, 2),
        ("square", 150, 300, 8),
        ("square", 1800, 1950, 2),
        ("diurnal", 0, 20, 1.03),
        ("diurnal", 490, 510, 9),
        ("windows", 500, 1000, 0),
        ("windows", 1000, 1500, 12),
    ],
)
def test_the_rate_is_where_it_should_be(name: str, from_s: float, to_s: float, rate: float) -> None:
    found = sum(from_s <= at_s < to_s for at_s in times(CURVES[name], 0.0))
    assert found == pytest.approx(rate * (to_s - from_s), abs=1.01, rel=0.02)


@given(rate=RATES, duration_s=st.floats(0.1, 100))
def test_a_metronome_beats_from_the_start_and_evenly(rate: float, duration_s: float) -> None:
    found = times(arrivals.steady(rate, duration_s), 0.0)
    assert found == pytest.approx([index / rate for index in range(len(found))])
    assert abs(len(found) - rate * duration_s) <= 1


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gaps_have_the_burstiness_that_was_asked_for(cv: float) -> None:
    found = times(arrivals.steady(10, 20_000), cv)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.05)


@given(seed=st.integers(0, 1000), cv=st.sampled_from([0.3, 1.0, 5.0]))
def test_equal_seeds_give_equal_times_and_others_do_not(seed: int, cv: float) -> None:
    curve = arrivals.ramp(1, 5, 0, 20, 30)
    assert times(curve, cv, seed) == times(curve, cv, seed)
    assert times(curve, cv, seed) != times(curve, cv, seed + 1)


@given(scale=st.floats(0.05, 5), seed=st.integers(0, 99))
def test_scaling_a_recording_keeps_its_span_and_changes_its_number(scale: float, seed: int) -> None:
    recorded = [float(index) for index in range(1000)]
    found = arrivals.scaled(recorded, scale, random.Random(seed))
    assert found == sorted(found)
    assert found[0][0] >= 0
    assert found[-1][0] <= recorded[-1]
    assert len(found) == pytest.approx(1000 * scale, abs=150)
    assert {index for _, index in found} <= set(range(1000))


def test_a_recording_at_its_own_scale_is_played_as_it_was() -> None:
    recorded = [0.0, 0.0, 3.5, 9.0]
    assert arrivals.scaled(recorded, 1.0, random.Random(0)) == [(0.0, 0), (0.0, 1), (3.5, 2), (9.0, 3)]
