import json
import math

import numpy as np
import pytest
from autoscaling_builders import TP2, TP4, TP8, demand, performance, site, slo
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.capacity.corrections import (
    FEWEST_ANSWERS,
    LEAST_FACTOR,
    MOST_FACTOR,
    Correction,
    Corrections,
    as_json,
    corrected,
    from_json,
    is_steady,
)
from autoscaling.ledger.expected import Expectations
from autoscaling.observation import PoolLoad
from placement import Workload
from placement.cost.prediction import predict
from placement.cost.simulation import lengths, poisson_arrivals, simulate, step_table
from placement.cost.simulation_replica import slowed

measurements = st.lists(st.floats(min_value=1e-3, max_value=1e3), max_size=30)


def after(measured: list[float]) -> Corrections:
    corrections: Corrections = {}
    for factor in measured:
        corrections = corrected(corrections, TP4, factor)
    return corrections


@given(measurements)
def test_a_factor_never_leaves_its_bounds(measured: list[float]) -> None:
    assert all(LEAST_FACTOR <= known.step_factor <= MOST_FACTOR for known in after(measured).values())


@given(measurements)
def test_what_is_written_is_what_is_read(measured: list[float]) -> None:
    corrections = after(measured)
    assert from_json(json.loads(json.dumps(as_json(corrections)))) == corrections


@given(st.floats(min_value=LEAST_FACTOR, max_value=MOST_FACTOR))
def test_it_converges_to_what_is_measured(truth: float) -> None:
    assert after([truth] * 60)[TP4].step_factor == pytest.approx(truth, rel=0.01)


@given(st.floats(min_value=0.6, max_value=1.8), st.floats(min_value=0.6, max_value=1.8))
def test_one_odd_window_moves_a_known_factor_little(truth: float, odd: float) -> None:
    before = after([truth] * 20)
    moved = corrected(before, TP4, odd)[TP4].step_factor / before[TP4].step_factor
    assert abs(math.log(moved)) <= 0.1 * abs(math.log(odd / before[TP4].step_factor)) + 1e-9


def test_one_shape_says_nothing_of_another() -> None:
    assert TP8 not in after([1.5])


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_measurement_changes_nothing(nothing: float) -> None:
    assert corrected(after([1.2]), TP4, nothing) == after([1.2])


def load(**changes: float) -> PoolLoad:
    fields = {"running": 10.0, "waiting": 0.0, "kv_usage": 0.3, "requests_per_s": FEWEST_ANSWERS / 60, **changes}
    return PoolLoad(shape=TP4, replicas=1, **fields)


@pytest.mark.parametrize(
    ("pool", "is_good"),
    [
        (load(), True),
        (load(requests_per_s=FEWEST_ANSWERS / 61), False),
        (load(waiting=2), False),
        (load(preemptions_per_s=0.1), False),
        (load(running=0), False),
    ],
)
def test_only_a_steady_window_with_enough_answers_is_learnt_from(pool: PoolLoad, is_good: bool) -> None:
    assert is_steady(pool, 60) is is_good


@pytest.mark.parametrize("rate", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("truth", [0.8, 1.0, 1.4])
def test_how_much_slower_a_replica_is_follows_from_how_many_requests_run(truth: float, rate: float) -> None:
    """A replica is simulated request by request with steps that are slower by a known factor; its load tells it."""
    asked = demand(rate, 1000, 300, spread=1.0)
    here = site()
    workload = Workload(input_tokens=asked.input_tokens, output_tokens=asked.output_tokens)
    question, region = here.question(workload), here.region_of(TP4)
    generator = np.random.default_rng(7)
    outputs = lengths(asked.output_tokens, 3000, generator)
    tails = simulate(
        slowed(step_table(question, TP4, region), truth),
        poisson_arrivals(rate, 3000, generator),
        lengths(asked.input_tokens, 3000, generator),
        outputs,
        room_tokens=predict(question, [(TP4, region)])[0].room.tokens,
        max_running=256,
        slo=None,
        settling=200,
    )
    running = rate * (tails.ttft_s.mean_s + tails.tpot_s.mean_s * float(outputs.mean()))
    pool = PoolLoad(shape=TP4, replicas=1, running=running, waiting=0, kv_usage=0.2, requests_per_s=rate)
    measured = Expectations(here, slo()).step_factor(pool, asked)
    assert measured == pytest.approx(truth, rel=0.06)


def test_expected_times_are_those_of_the_corrected_model() -> None:
    expectations = Expectations(site(), slo(percentile=0.95))
    asked = demand(2.0)
    plain = expectations.figures({TP4: 2}, asked, performance(), {})
    slower = {TP4: Correction(step_factor=1.5, samples=9)}
    corrected_ = expectations.figures({TP4: 2}, asked, performance().corrected(slower), slower)
    assert plain.tpot_s is not None
    assert corrected_.tpot_s is not None
    assert corrected_.tpot_s > 1.4 * plain.tpot_s
    assert (plain.gpus, plain.requests_per_s) == (8, 2.0)


def test_pools_that_cannot_answer_have_no_times_and_get_no_requests() -> None:
    expectations, asked = Expectations(site(), slo()), demand(0.1, 20_000, spread=0.0)
    none = expectations.figures({TP2: 1}, asked, performance(), {})
    assert (none.attainment, none.ttft_s, none.tpot_s) == (0.0, None, None)
    alone, beside = (expectations.figures(of, asked, performance(), {}) for of in ({TP4: 1}, {TP2: 1, TP4: 1}))
    assert alone.ttft_s is not None
    assert beside.ttft_s == pytest.approx(alone.ttft_s)


def test_without_demand_there_are_no_times() -> None:
    idle = Expectations(site(), slo()).figures({TP4: 1}, demand(0.0), performance(), {})
    assert (idle.attainment, idle.ttft_s, idle.tpot_s) == (1.0, None, None)
