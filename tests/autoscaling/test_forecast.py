"""Forecasts: what they say of shapes that a person can foresee, what must hold of any history, and what they cost."""

import math
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import process_time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.forecasting.forecast import Forecast, forecast
from autoscaling.observation import Demand, History
from placement import Lengths

_LIKE = Demand(
    requests_per_s=1.0,
    input_tokens=Lengths(mean_tokens=700, spread=1.5),
    output_tokens=Lengths(mean_tokens=90, spread=0.8),
    prefix_hit_rate=0.3,
    dispersion=4.0,
)
_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"


def _history(requests, step_s: float = 60.0, input_tokens: float = 500.0, output_tokens: float = 100.0) -> History:
    rates: npt.NDArray[np.float64] = np.asarray(requests, dtype=float)
    return History(
        step_s=step_s,
        end_s=1e9,
        requests_per_s=rates,
        answered_per_s=rates,
        input_tokens_per_s=rates * input_tokens,
        output_tokens_per_s=rates * output_tokens,
    )


def _ahead(requests, *, minutes: float = 10, quantile: float = 0.9, step_s: float = 60.0) -> Forecast:
    return forecast(_history(requests, step_s), horizon_s=minutes * 60, quantile=quantile)


def _noisy(rates, seed: int = 1):
    """Poisson counts of a minute, as rates."""
    return np.random.default_rng(seed).poisson(np.asarray(rates) * 60) / 60


@pytest.mark.parametrize("samples", [1, 2, 3, 20, 500])
def test_steady_demand_is_expected_to_stay(samples):
    found = _ahead([8.0] * samples)
    assert found.mean.requests_per_s == pytest.approx([8.0] * 10)
    assert found.mean.input_tokens_per_s == pytest.approx([4000.0] * 10)
    assert 8.0 < found.quantile.requests_per_s.max() < 8.0 * 2


@pytest.mark.parametrize("step_s", [10.0, 15.0, 60.0, 300.0])
def test_steps_below_a_minute_are_joined_and_longer_ones_kept(step_s):
    found = _ahead([8.0] * 200, step_s=step_s)
    assert found.step_s == max(60.0, step_s)
    assert len(found.mean.requests_per_s) * found.step_s >= 600.0
    assert found.mean.requests_per_s == pytest.approx(8.0)


def test_no_traffic_needs_next_to_nothing():
    found = _ahead([0.0] * 120, quantile=0.97)
    assert found.mean.requests_per_s.max() == 0.0
    assert found.quantile.requests_per_s.max() < 0.1
    assert found.demand_at(300, _LIKE, quantile=False) == replace(_LIKE, requests_per_s=0.0)


@pytest.mark.parametrize("slope", [0.1, 0.4])
def test_a_ramp_is_followed_with_less_than_a_step_of_lag(slope):
    ramp = 10 + slope * np.concatenate((np.zeros(60), np.arange(1, 41)))
    found = _ahead(ramp, minutes=5)
    assert ramp[-1] < found.mean.requests_per_s[0] <= ramp[-1] + 1.1 * slope
    assert "trend" in found.method


def test_a_ramp_under_noise_is_followed_with_less_than_a_step_of_lag():
    ramp = 10 + 0.4 * np.concatenate((np.zeros(60), np.arange(1, 41)))
    paths = [_ahead(_noisy(ramp, seed), minutes=5).mean.requests_per_s for seed in range(20)]
    assert np.mean(paths, axis=0)[0] > ramp[-1]


@pytest.mark.parametrize(
    ("minutes_since", "least", "most"), [(1, 0.0, 0.4), (2, 0.6, 1.1), (3, 0.85, 1.1), (10, 0.9, 1.1)]
)
@pytest.mark.parametrize("level", [25.0, 3.0])
def test_a_jump_is_believed_after_two_or_three_minutes(level, minutes_since, least, most):
    found = _ahead(_noisy([10.0] * 180 + [level] * minutes_since), minutes=2)
    believed = (found.mean.requests_per_s.mean() - 10) / (level - 10)
    assert least <= believed <= most


def test_a_spike_below_a_minute_neither_lifts_the_level_nor_becomes_a_trend():
    quiet = _noisy([10.0] * 120)
    for since in range(4):
        spiked = np.concatenate((quiet, [30.0], _noisy([10.0] * since, seed=2)))
        found = _ahead(spiked)
        assert found.mean.requests_per_s.max() < 13.0
        assert found.quantile.requests_per_s.max() < 1.25 * _ahead(quiet).quantile.requests_per_s.max()


def test_what_bursts_scatter_by_is_left_out_where_it_is_allowed_for_elsewhere():
    bursty = np.random.default_rng(1).normal(12, math.sqrt(16 * 12 / 60), 240)
    counted, behind = (
        forecast(_history(bursty), horizon_s=600, quantile=0.9, dispersion=dispersion).quantile.requests_per_s.max()
        for dispersion in (0.0, 16.0)
    )
    assert counted > 14.5
    assert behind < 14
    rising = 5 + 0.1 * np.arange(240)
    assert forecast(_history(rising), horizon_s=600, quantile=0.9, dispersion=1.0).quantile.requests_per_s.max() > 29.5


def test_holes_are_skipped():
    rates = _noisy([10.0] * 240)
    holed = rates.copy()
    holed[[0, 1, 50, 51, 52, 120, *range(180, 200), 238, 239]] = np.nan
    found = _ahead(holed)
    assert found.mean.requests_per_s == pytest.approx([10.0] * 10, rel=0.1)
    assert found.quantile.requests_per_s.max() == pytest.approx(_ahead(rates).quantile.requests_per_s.max(), rel=0.15)


@pytest.mark.parametrize(("days", "names"), [(3, ["yesterday"]), (10, ["yesterday", "last week"])])
def test_what_comes_every_day_is_seen_coming(days, names):
    """A batch that starts at noon: only who remembers yesterday knows it five minutes before."""
    minutes = np.arange(days * 1440 + 12 * 60 - 5)
    rates = 10 + 40 * ((minutes % 1440) // 60 >= 12) * ((minutes % 1440) // 60 < 14)
    found = _ahead(_noisy(rates))
    forgetful = forecast(_history(_noisy(rates)), horizon_s=600, quantile=0.9, seasons_s=())
    assert found.mean.requests_per_s[-1] > forgetful.mean.requests_per_s[-1]
    assert any(name in found.method for name in names)
    assert not any(name in forgetful.method for name in names)


def test_a_smooth_day_is_followed_better_than_by_the_last_value():
    minutes = np.arange(4 * 1440)
    truth = 20 * np.exp(1.2 * np.sin(2 * np.pi * minutes / 1440))
    rates = _noisy(truth)
    errors = {"forecast": 0.0, "last": 0.0}
    for end in range(3 * 1440, 4 * 1440 - 10, 60):
        errors["forecast"] += float(np.abs(_ahead(rates[:end]).mean.requests_per_s - truth[end : end + 10]).sum())
        errors["last"] += float(np.abs(rates[end - 1] - truth[end : end + 10]).sum())
    assert errors["forecast"] < 0.6 * errors["last"]


@pytest.mark.parametrize("quantile", [0.8, 0.9, 0.97])
@pytest.mark.parametrize("minutes", [2, 10])
def test_the_maximum_stays_below_the_quantile_as_often_as_asked(quantile, minutes):
    source = np.random.default_rng(3)
    rates = 12 * source.gamma(25, 1 / 25, 4000) * np.exp(np.cumsum(source.normal(0, 0.004, 4000)))
    ends = range(800, 3980, 30)
    kept = [
        rates[end : end + minutes].max()
        <= _ahead(rates[:end], minutes=minutes, quantile=quantile).quantile.requests_per_s.max()
        for end in ends
    ]
    assert np.mean(kept) == pytest.approx(quantile, abs=3 * math.sqrt(quantile * (1 - quantile) / len(ends)))


def test_the_error_stated_is_the_error_made():
    rates = 12 * np.random.default_rng(4).gamma(25, 1 / 25, 3000)
    found = [(_ahead(rates[:end]), rates[end : end + 10]) for end in range(1000, 2990, 30)]
    made = sum(np.abs(one.mean.requests_per_s - truth).sum() for one, truth in found) / sum(t.sum() for _, t in found)
    assert np.median([one.error for one, _ in found]) == pytest.approx(made, rel=0.15)
    assert math.isnan(_ahead(rates[:5]).error)


def test_lengths_that_change_are_followed_while_the_rate_stands_still():
    requests = np.full(120, 10.0)
    history = replace(_history(requests), input_tokens_per_s=requests * np.linspace(500, 1000, 120))
    demand = forecast(history, horizon_s=300, quantile=0.9).demand_at(300, _LIKE, quantile=False)
    assert demand.requests_per_s == pytest.approx(10, rel=0.02)
    assert demand.input_tokens.mean_tokens == pytest.approx(1000, rel=0.03)
    assert demand.output_tokens.mean_tokens == pytest.approx(100, rel=0.02)
    assert demand.input_tokens.spread == 1.5
    assert (demand.prefix_hit_rate, demand.dispersion) == (0.3, 4.0)


def test_the_peak_is_the_largest_step_up_to_a_moment():
    found = _ahead(10 + 0.3 * np.arange(60))
    for until_s, steps in [(0, 1), (60, 1), (61, 2), (300, 5), (600, 10), (9999, 10)]:
        peak = found.peak(_LIKE, until_s=until_s, quantile=True)
        assert peak.requests_per_s == found.quantile.requests_per_s[:steps].max()
        assert peak.prefill_tokens_per_s == pytest.approx(found.quantile.input_tokens_per_s[:steps].max() * 0.7)
        at = found.demand_at(until_s, _LIKE, quantile=True)
        assert at.decode_tokens_per_s == pytest.approx(found.quantile.output_tokens_per_s[steps - 1])


@pytest.mark.parametrize(
    ("history", "horizon_s", "quantile", "message"),
    [
        (_history([1.0]), 0.0, 0.9, "horizon_s is 0"),
        (_history([1.0]), math.nan, 0.9, "horizon_s is nan"),
        (_history([1.0]), 60.0, 1.0, "quantile is 1"),
        (_history([1.0]), 60.0, 0.3, "quantile is 0.3"),
        (_history([]), 60.0, 0.9, "requests_per_s of the history has no known step"),
        (_history([1.0], output_tokens=math.nan), 60.0, 0.9, "output_tokens_per_s of the history has no known step"),
    ],
)
def test_what_makes_no_sense_is_refused(history, horizon_s, quantile, message):
    with pytest.raises(ValueError, match=message):
        forecast(history, horizon_s=horizon_s, quantile=quantile)


_rates = st.lists(st.one_of(st.just(0.0), st.just(math.nan), st.floats(1e-3, 1e5)), min_size=1, max_size=80).filter(
    lambda rates: any(math.isfinite(rate) for rate in rates)
)


@given(rates=_rates, minutes=st.sampled_from([1, 2, 7, 30]), step_s=st.sampled_from([15.0, 60.0]))
def test_any_history_gives_ordered_finite_paths(rates, minutes, step_s):
    found = [_ahead(rates, minutes=minutes, quantile=each, step_s=step_s) for each in (0.5, 0.9, 0.99)]
    for name in ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s"):
        likely = getattr(found[0].mean, name)
        paths = [likely, *(getattr(each.quantile, name) for each in found)]
        assert np.isfinite(paths).all()
        assert (likely >= 0).all()
        for lower, higher in pairwise(paths):
            assert (lower <= higher * (1 + 1e-12)).all()
    # Lengths never seen are not made up.
    if not np.nanmax(rates) > 0:
        return
    assert found[1].quantile.input_tokens_per_s == pytest.approx(found[1].quantile.requests_per_s * 500)


@given(rates=_rates.filter(lambda rates: np.nanmax(rates) > 0), scale=st.floats(2.0, 1e3))
def test_tokens_scale(rates, scale):
    small = forecast(_history(rates), horizon_s=300, quantile=0.9)
    large = forecast(_history(rates, input_tokens=500 * scale, output_tokens=100 * scale), horizon_s=300, quantile=0.9)
    assert large.mean.requests_per_s == pytest.approx(small.mean.requests_per_s)
    assert large.mean.input_tokens_per_s == pytest.approx(small.mean.input_tokens_per_s * scale, rel=1e-6)
    assert large.quantile.output_tokens_per_s == pytest.approx(small.quantile.output_tokens_per_s * scale, rel=1e-6)


def test_two_weeks_of_minutes_take_little_time():
    minutes = np.arange(14 * 1440)
    history = _history(_noisy(20 + 10 * np.sin(2 * np.pi * minutes / 1440)))
    took_s = []
    for _ in range(15):
        began_s = process_time()
        forecast(history, horizon_s=600, quantile=0.9)
        took_s.append(process_time() - began_s)
    assert min(took_s) < 0.012, "2 to 3 ms where nothing else runs"


def test_the_public_conversation_trace_is_covered():
    directory = Path(os.environ.get("ARCHIPELAGO_TRACES", _BESIDE_THE_CHECKOUT))
    path = directory / "azure2023_conv_first20min.csv"
    if not path.exists():
        pytest.skip("optional local data")
    times = np.array([line.split(",")[0] for line in path.read_text().splitlines()[1:]], dtype="datetime64[ns]")
    seconds = (times - times[0]) / np.timedelta64(1, "s")
    rates = np.bincount((seconds // 60).astype(int))[:-1] / 60
    for end in range(4, len(rates) - 5):
        found = _ahead(rates[:end], minutes=5, quantile=0.97)
        truth = rates[end : end + 5]
        assert truth.max() <= found.quantile.requests_per_s.max() < 2.5 * truth.max()


def test_a_queue_that_is_worked_off_without_arrivals_makes_no_lengths_that_cannot_be():
    """Ten minutes in which one request came and a large fleet answered as if there were thousands."""
    requests, answered = np.full(120, 5.0), np.full(120, 5.0)
    requests[80:90], requests[90:], answered[80:90] = 1 / 60, 0.0, 20_000.0
    drained = replace(
        _history(requests),
        answered_per_s=answered,
        input_tokens_per_s=answered * 5000,
        output_tokens_per_s=answered * 500,
    )
    found = forecast(drained, horizon_s=600, quantile=0.9)
    for at_s in (60, 300, 600):
        assert found.demand_at(at_s, _LIKE, quantile=True).input_tokens.mean_tokens <= 1e8
