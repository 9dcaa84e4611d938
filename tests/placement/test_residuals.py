import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_rows import unmeasured

from placement.calibration.rows import Row, case_of, points_of
from placement.cost.constants import shipped as shipped_constants
from placement.cost.residuals import (
    NOTHING_LEARNT,
    TARGETS,
    Points,
    Residuals,
    corrections,
    learn,
    read,
    shipped,
    write,
)

SLOWER = np.log(1.4)


def points(rows: list[Row]) -> Points:
    return points_of([case_of(row, shipped_constants()) for row in rows])


def learnt(rows: list[Row], logarithm: float = SLOWER) -> Residuals:
    return learn(points(rows), {target: np.full(len(rows), logarithm) for target in TARGETS})


def correction(residuals: Residuals, row: Row, target: str = "tpot") -> float:
    return float(corrections(residuals, points([row]), target)[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ratio", [0.7, 1.4])
def test_measured_points_are_nearly_recovered(target: str, ratio: float) -> None:
    rows = unmeasured()
    found = corrections(learnt(rows, np.log(ratio)), points(rows), target)
    assert found == pytest.approx(np.full(len(rows), ratio), rel=0.08)


@pytest.mark.parametrize("target", TARGETS)
def test_the_correction_fades_with_distance(target: str) -> None:
    rows = unmeasured()
    residuals = learnt(rows)
    near = correction(residuals, replace(rows[0], clients=12), target)
    (other_gpu, *_), (other_engine, *_) = unmeasured(gpu="b200_sxm"), unmeasured(backend="sglang")
    assert near == pytest.approx(1.4, rel=0.1)
    assert 1 <= correction(residuals, other_gpu, target) < near
    assert 1 <= correction(residuals, other_engine, target) < near
    far = replace(other_engine, gpu="mi300x", model_id="deepseek-ai/DeepSeek-V3", version="9")
    assert correction(residuals, far, target) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("version", "nearer", "further"),
    [
        ("0.19.0 2026-04", "0.19.0 2026-05", "0.20.0 2026-05"),
        ("0.19.0 2026-04", "0.19.0", "0.20.0"),
        ("0.19.0 2026-04", "0.19.0 2026-04", "0.19.0 2026-05"),
        ("nightly-1f3a 2026-04", "nightly-77c0 2026-05", "0.19.0 2026-05"),
        ("2025-11", "2025-11", "2025-10"),
    ],
)
def test_runs_of_one_release_tell_of_each_other_whatever_the_month(
    target: str, version: str, nearer: str, further: str
) -> None:
    residuals = learnt([replace(row, version=version) for row in unmeasured()])
    asked = unmeasured(gpu="b200_sxm")[0]
    near, far = (correction(residuals, replace(asked, version=each), target) for each in (nearer, further))
    assert 1 < far < near


def test_nothing_learnt_corrects_nothing() -> None:
    assert correction(NOTHING_LEARNT, unmeasured()[0]) == 1
    assert corrections(learnt(unmeasured()), points([]), "tpot").shape == (0,)


def test_a_point_that_fits_nothing_around_it_is_weighed_down() -> None:
    rows = unmeasured()
    logarithms = np.zeros(len(rows))
    logarithms[0] = 1.0
    found = learn(points(rows), dict.fromkeys(TARGETS, logarithms))
    assert correction(found, rows[0]) < 1.4
    others = corrections(found, points(rows[1:]), "tpot")
    assert np.abs(np.log(others)).max() < 0.15


def test_points_measured_in_another_way_say_nothing_of_these() -> None:
    prequantised = [replace(row, model_id=f"nvidia/{row.model_id.partition('/')[2]}-FP8") for row in unmeasured()]
    assert correction(learnt(prequantised), unmeasured()[0]) == 1


def test_what_is_written_is_read_again() -> None:
    rows = unmeasured()
    found = learnt(rows)
    again = read(json.loads(write(found)))
    assert again.points.labels == found.points.labels
    for target in TARGETS:
        assert corrections(again, points(rows), target) == pytest.approx(
            corrections(found, points(rows), target), rel=0.01
        )
    assert write(again) == write(found)


@settings(max_examples=30)
@given(st.lists(st.floats(-20, 20), min_size=24, max_size=24))
def test_no_correction_learns_from_a_point_absurdly_far_off(logarithms: list[float]) -> None:
    rows = unmeasured()
    found = learn(points(rows), {target: np.array(logarithms) for target in TARGETS})
    for target, most in (("tpot", 2.0), ("ttft", 3.0)):
        factors = corrections(found, points(rows), target)
        assert np.isfinite(factors).all()
        assert np.abs(np.log(factors)).max() < most


def test_what_is_shipped_corrects_within_reason() -> None:
    rows = unmeasured()
    for target in TARGETS:
        factors = corrections(shipped(), points(rows), target)
        assert (factors > 0.2).all()
        assert (factors < 5).all()
