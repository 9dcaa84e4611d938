"""A trace made of counts has the requests and the tokens that were counted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whatif_builders import past

from autoscaling.observing.dispersion import index_of_dispersion
from autoscaling.simulation.traces import TraceError
from autoscaling.whatif.reconstruction import ENOUGH, demanded, fidelity, reconstructed

RATES = st.lists(st.floats(0, 3), min_size=1, max_size=30).map(lambda each: np.repeat(each, 5))


@settings(max_examples=60)
@given(RATES, st.floats(5, 5000), st.floats(2, 500), st.floats(0, 3), st.floats(0.05, 20), st.integers(0, 9))
def test_requests_and_tokens_are_conserved(
    rates: np.ndarray, prompt: float, answer: float, spread: float, dispersion: float, seed: int
) -> None:
    known = past(rates, input_tokens=prompt, output_tokens=answer, spread=spread, dispersion=dispersion)
    asked = demanded(known)
    if asked.requests.sum() < 1:
        return
    trace = reconstructed(known, seed)
    until = np.searchsorted(trace.arrivals_s, 60.0 * np.arange(1, len(rates) + 1), side="left")
    assert np.abs(until - np.cumsum(asked.requests)).max() <= 1, "no minute is off by more than one request"
    for made, counted in ((trace.input_tokens, asked.input_tokens), (trace.output_tokens, asked.output_tokens)):
        # The sum is right to the token, but where a mean of tokens near 1 leaves no room: no request has less than 1.
        assert made.sum() == pytest.approx(counted.sum(), rel=0.02, abs=len(trace) * 0.05 + 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_hour_has_the_tokens_it_had(seed: int) -> None:
    rates = np.repeat([0.5, 2.0, 1.0, 0.0, 4.0], 60)
    found = fidelity(past(rates, spread=2.0), reconstructed(past(rates, spread=2.0), seed))
    for error in (found.worst_requests, found.worst_input_tokens, found.worst_output_tokens):
        assert abs(error) < 0.001
    assert found.hours == 5


def test_where_few_come_windows_share_a_mean_and_the_error_is_told() -> None:
    rates = np.full(120, ENOUGH / 2 / 300)  # two windows make one mean
    known = past(rates)
    history = replace(known.history, input_tokens_per_s=rates * np.where(np.arange(120) % 10 < 5, 500.0, 1500.0))
    trace = reconstructed(replace(known, history=history), 0)
    assert trace.input_tokens.mean() == pytest.approx(1000, rel=0.01)


def test_equal_seeds_give_equal_traces_and_others_do_not() -> None:
    known = past(np.ones(30))
    one, same, other = (reconstructed(known, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.input_tokens, same.input_tokens)
    assert np.array_equal(one.arrivals_s, same.arrivals_s)
    assert not np.array_equal(one.arrivals_s, other.arrivals_s)


@pytest.mark.parametrize("dispersion", [1.0, 5.0])
def test_arrivals_are_as_bursty_as_measured(dispersion: float) -> None:
    trace = reconstructed(past(np.full(600, 5.0), dispersion=dispersion), 0)
    counts = np.bincount((trace.arrivals_s // 5).astype(int))
    # The counts of minutes are known, so windows of 5 s have 11/12 of their own variance left.
    assert index_of_dispersion(counts.astype(float)) == pytest.approx(dispersion, rel=0.25)


def test_lengths_have_the_measured_spread() -> None:
    trace = reconstructed(past(np.full(600, 5.0), spread=0.8), 0)
    assert trace.input_tokens.std() / trace.input_tokens.mean() == pytest.approx(0.8, rel=0.1)


def test_no_request_is_longer_than_the_longest_bucket() -> None:
    known = past(np.full(60, 5.0), spread=2.0)
    trace = reconstructed(replace(known, inputs=replace(known.inputs, most_tokens=3000.0)), 0)
    assert trace.input_tokens.max() <= 3001
    assert trace.input_tokens.mean() == pytest.approx(1000, rel=0.01)


def test_gaps_are_drawn_straight_across() -> None:
    rates = np.r_[np.full(30, 1.0), np.full(10, np.nan), np.full(20, 3.0)]
    asked = demanded(past(rates))
    assert asked.requests[30:40] == pytest.approx(60 * (1 + 2 * np.arange(1, 11) / 11))


def test_refused_requests_are_as_long_as_the_answered_ones() -> None:
    known = past(np.ones(10), refused_share=np.array([0.5, 0.0]))
    assert demanded(known).input_tokens == pytest.approx(np.repeat([2 * 60_000.0, 60_000.0], 5))


def test_less_than_one_request_is_refused() -> None:
    with pytest.raises(TraceError, match="nothing to replay"):
        reconstructed(past(np.full(10, 1e-6)), 0)
