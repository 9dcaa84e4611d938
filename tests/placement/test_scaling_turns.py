"""Turns of curves made by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Shape
from placement.scaling.curve import Measure, Point
from placement.scaling.turns import gain_per_gpu, turns, with_gains


def point(gpus: int, decode_ms: float, **parts: float) -> Point:
    rest = {"matrices": decode_ms - sum(parts.values())} | parts
    return Point(
        gpus=gpus,
        shape=Shape(tp=gpus),
        islands=1 if gpus <= 8 else 2,
        running=1,
        decode_ms=decode_ms,
        prefill_ms=100 / gpus,
        tokens_per_s=100 * gpus,
        best_running=1,
        prompt_tokens_per_s=100 * gpus,
        parts_ms=rest,
        prefill_parts_ms=rest,
        best_parts_ms=rest,
    )


def test_perfect_scaling_never_turns() -> None:
    points = [point(gpus, 80 / gpus) for gpus in (1, 2, 4, 8, 16)]
    assert turns("tp", points, running=1, threshold=0.99) == ()
    assert all(after.gain_per_gpu["decode"] == pytest.approx(1) for after in with_gains(points)[1:])


def test_the_cause_is_what_kept_the_step_long() -> None:
    points = [
        point(4, 20, overhead=5, all_reduce=1),
        point(8, 14, overhead=5, all_reduce=1.5),
        point(16, 15, overhead=5, all_reduce=9),
    ]
    diminishing, negative = turns("tp", points, running=1, threshold=0.5)
    assert (diminishing.kind, diminishing.cause, diminishing.after.gpus) == ("diminishing", "overhead", 8)
    assert diminishing.sentence == (
        "TP 4 -> 8: launches and small kernels stay at 5.0 ms a step; 20.0 ms -> 14.0 ms a token, "
        "an added GPU brings 43% of a perfect one."
    )
    assert (negative.kind, negative.cause, negative.after.gpus) == ("negative", "all_reduce", 16)
    assert negative.sentence == (
        "TP 8 -> 16 crosses islands: all-reduces grow from 1.5 ms to 9.0 ms a step and eat the 6.5 ms saved on "
        "dense weights; 14.0 ms -> 15.0 ms a token, 7% slower."
    )


def test_a_step_that_loses_less_than_benchmarks_differ_is_no_negative_return() -> None:
    [turn] = turns("pp", [point(1, 30.0), point(2, 30.3)], running=1, threshold=0.5)
    assert turn.kind == "diminishing"
    assert "the added GPUs bring nothing" in turn.sentence


def test_sizes_between_doublings_do_not_make_a_turn() -> None:
    """From 8 to 9 GPUs anything gains little; only from 4 to 9 or 8 to 16 it says something."""
    points = with_gains([point(4, 20), point(8, 10), point(9, 9.9), point(16, 5)])
    assert [found.gpus for found in points if found.gain_per_gpu] == [8, 9, 16]
    assert turns("tp", points, running=1, threshold=0.5) == ()


@given(
    times_ms=st.lists(st.floats(min_value=1, max_value=1000), min_size=2, max_size=8),
    threshold=st.floats(min_value=0.05, max_value=0.95),
)
def test_turns_are_the_first_of_their_kind(times_ms: list[float], threshold: float) -> None:
    points = [point(2**power, time_ms) for power, time_ms in enumerate(times_ms)]
    measure: Measure = "decode"
    found = {turn.kind: turn for turn in turns("tp", points, running=1, threshold=threshold) if turn.measure == measure}
    steps = [(gain_per_gpu(before, after, measure), after.gpus) for before, after in pairwise(points)]
    small = [gpus for gain, gpus in steps if gain < threshold]
    lost = [gpus for gain, gpus in steps if gain < -0.02]
    assert ("negative" in found) == bool(lost)
    if lost:
        assert found["negative"].after.gpus == lost[0]
    if small and small[0] not in lost:
        assert found["diminishing"].after.gpus == small[0]
    assert all(turn.cause in turn.after.parts_ms for turn in found.values())
