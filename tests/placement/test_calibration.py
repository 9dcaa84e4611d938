import numpy as np
import pytest
from measured_rows import measured_under, questions, unmeasured

from placement.calibration.fit import balanced, batch_of, fit, predict
from placement.calibration.rows import Row, read_rows
from placement.cost.constants import Constants, priors, shipped
from placement.cost.step import overhead_s

LAYER = ("layer_overhead_us", "vllm")
MANY_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)
REQUEST = ("request_overhead_us", "vllm")


def changed(factor: float, *keys: tuple[str, str]) -> Constants:
    start = shipped()
    return start.with_values({key: start.value(*key) * factor for key in keys})


def refitted(rows: list[Row], start: Constants, weights: np.ndarray | None = None) -> Constants:
    return fit(batch_of(rows, start), start, weights=weights)


def off(rows: list[Row], constants: Constants) -> float:
    """Mean |log(predicted / measured)| of TPOT."""
    found = predict(batch_of(rows, constants), constants)
    return float(np.abs(np.log(found.tpot_ms / [row.tpot_ms for row in rows])).mean())


def engine_overhead(constants: Constants) -> float:
    """What a layer of a dense model takes on an H100 under vLLM; the fit may share a change between its factors."""
    return (
        constants.value(*LAYER)
        * constants.value("overhead_of_age", "older")
        * constants.value("overhead_of_gpu", "vllm|h100_sxm")
    )


def overheads_off(rows: list[Row], constants: Constants, truth: Constants) -> float:
    """Mean |log(step overhead / true step overhead)|."""
    batch = batch_of(rows, truth)
    found, true = (
        overhead_s(batch.work, batch.lookup.factors(batch.lookup.logarithms(each))) for each in (constants, truth)
    )
    return float(np.abs(np.log(found / true)).mean())


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_fit_finds_an_engine_with_other_overheads(factor: float) -> None:
    truth = changed(factor, LAYER)
    rows = measured_under(truth, unmeasured(clients=MANY_CLIENTS))
    found = refitted(rows, shipped())
    assert off(rows, shipped()) > 0.05
    assert off(rows, found) < 0.35 * off(rows, shipped())
    assert (engine_overhead(found) > engine_overhead(shipped())) == (factor > 1)
    assert overheads_off(rows, found, truth) < 0.6 * overheads_off(rows, shipped(), truth)


def test_measured_points_that_agree_change_nothing() -> None:
    rows = measured_under(shipped(), unmeasured())
    found = refitted(rows, shipped())
    for name, key in (LAYER, REQUEST, ("kv_bandwidth_share", "vllm")):
        assert found.value(name, key) == pytest.approx(shipped().value(name, key), rel=0.01)


def test_constants_of_other_engines_and_gpus_stay() -> None:
    rows = measured_under(changed(2.0, LAYER), unmeasured())
    found, start = refitted(rows, shipped()), shipped()
    for name, constant in start.constants.items():
        for key, value in constant.values.items():
            if "sglang" in key or "trtllm" in key or "b200" in key:
                assert found.value(name, key) == value


def test_a_handful_of_points_moves_the_constants_less_than_many() -> None:
    rows = measured_under(changed(3.0, LAYER), unmeasured())
    few, many = (engine_overhead(refitted(rows[:count], shipped())) for count in (1, len(rows)))
    assert engine_overhead(shipped()) < few < many * 1.05


def test_one_wild_point_pulls_little() -> None:
    rows = measured_under(shipped(), unmeasured())
    wild = [*rows[:-1], measured_under(changed(30.0, LAYER), rows[-1:])[0]]
    assert engine_overhead(refitted(wild, shipped())) / engine_overhead(shipped()) == pytest.approx(1, abs=0.15)


def test_a_row_of_no_weight_is_as_if_it_were_not_there() -> None:
    rows = measured_under(shipped(), unmeasured())
    wild = [*rows[:-1], measured_under(changed(30.0, LAYER), rows[-1:])[0]]
    without = np.array([1.0] * (len(rows) - 1) + [0.0])
    assert engine_overhead(refitted(wild, shipped(), without)) == pytest.approx(engine_overhead(shipped()), rel=0.01)


def test_a_fit_from_scratch_comes_from_the_priors() -> None:
    rows = measured_under(shipped(), unmeasured(clients=MANY_CLIENTS))
    found = refitted(rows, priors(shipped()))
    assert off(rows, found) < 0.65 * off(rows, priors(shipped()))
    assert off(rows, found) < 0.05


def test_a_much_measured_model_does_not_outvote_the_others() -> None:
    (few, *_), many = read_rows(questions(clients=[1])), read_rows(list(questions(clients=[1]))[:1] * 400)
    weights = balanced([few, *many])
    assert len(set(weights)) == 1
    other = read_rows(questions(backend="sglang", clients=[1]))
    weights = balanced([*other, *many])
    assert (weights[: len(other)] == 1).all()
    assert (weights[len(other) :] ** 2).sum() == pytest.approx(40)
