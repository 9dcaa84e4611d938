"""Where a curve turns, which part of the time is to blame, and a sentence that says so with numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from placement.scaling.curve import PARTS, Measure, Point, Turn, Way

_NAMES: Mapping[Way, str] = {
    "tp": "TP",
    "tp_across": "TP",
    "pp": "PP",
    "tp_pp": "TP x PP",
    "tp_ep": "TP + EP",
    "dp_ep": "DP + EP",
}
_PER: Mapping[Measure, str] = {
    "decode": "step",
    "prefill": "prompt",
    "tokens": "token",
    "prompt_tokens": "prompt token",
}
_MEASURES: tuple[Measure, ...] = get_args(Measure)
_SAME = 0.02  # a speed this near to the one before is the same: runs of one benchmark differ by as much
_STILL = 0.1  # a part that changes by less stays what it is


def with_gains(points: Sequence[Point]) -> tuple[Point, ...]:
    """The same points with `gain_per_gpu`."""
    gains = {
        after.gpus: {measure: gain_per_gpu(before, after, measure) for measure in _MEASURES}
        for before, after in _doublings([point for point in points if point.fits])
    }
    return tuple(replace(point, gain_per_gpu=gains.get(point.gpus, {})) for point in points)


def gain_per_gpu(before: Point, after: Point, measure: Measure) -> float:
    """What an added GPU brings, as a share of what each GPU had brought so far."""
    faster = after.speed(measure) / before.speed(measure) - 1
    return faster / (after.gpus / before.gpus - 1)


def turns(way: Way, points: Sequence[Point], *, running: float, threshold: float) -> tuple[Turn, ...]:
    """The first doubling of each measure that gains less than `threshold`, and the first that loses."""
    fitting = [point for point in points if point.fits]
    # Steps of fewer requests are shorter for that reason alone, so that they are compared with nothing.
    full = [point for point in fitting if point.running >= running]
    return tuple(
        turn
        for measure in _MEASURES
        for turn in _of_measure(way, full if measure == "decode" else fitting, measure, threshold)
    )


def _doublings(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """Each point after the largest one of at most half its GPUs."""
    for after in points:
        smaller = [point for point in points if 2 * point.gpus <= after.gpus]
        if smaller:
            yield smaller[-1], after


def _of_measure(way: Way, points: Sequence[Point], measure: Measure, threshold: float) -> Iterator[Turn]:
    steps = list(_doublings(points))
    lost = next((step for step in steps if _speed_ratio(*step, measure) < 1 - _SAME), None)
    small = next((step for step in steps if gain_per_gpu(*step, measure) < threshold), None)
    if small is not None and small != lost:
        yield _turn(way, measure, "diminishing", *small)
    if lost is not None:
        yield _turn(way, measure, "negative", *lost)


def _turn(way: Way, measure: Measure, kind: Literal["diminishing", "negative"], before: Point, after: Point) -> Turn:
    old, new = before.costs_ms(measure), after.costs_ms(measure)
    left = 1.0 if kind == "negative" else before.gpus / after.gpus  # of each part, had nothing gone wrong
    cause = max(new, key=lambda part: new[part] - left * old[part])
    helped = max(new, key=lambda part: old[part] - new[part])
    saved = old[helped] - new[helped]
    crosses = " crosses islands" if before.islands == 1 < after.islands else ""
    why = _change(PARTS[cause], old[cause], new[cause], _PER[measure])
    if kind == "negative" and saved > _SAME * sum(old.values()):
        why += f" and eat the {_time(saved)} saved on {PARTS[helped]}"
    return Turn(
        measure=measure,
        kind=kind,
        before=before,
        after=after,
        gain_per_gpu=gain_per_gpu(before, after, measure),
        cause=cause,
        sentence=f"{_NAMES[way]} {before.gpus} -> {after.gpus}{crosses}: {why}; {_result(before, after, measure)}.",
    )


def _change(part: str, old_ms: float, new_ms: float, per: str) -> str:
    if abs(new_ms - old_ms) <= _STILL * old_ms:
        return f"{part} stay at {_time(new_ms)} a {per}"
    how = "grow" if new_ms > old_ms else "only shrink"
    return f"{part} {how} from {_time(old_ms)} to {_time(new_ms)} a {per}"


def _result(before: Point, after: Point, measure: Measure) -> str:
    old, new = before.speed(measure), after.speed(measure)
    is_time = measure in ("decode", "prefill")
    if is_time:
        numbers = f"{_time(1e3 / old)} -> {_time(1e3 / new)} a {'token' if measure == 'decode' else 'prompt'}"
    else:
        numbers = f"{old:,.0f} -> {new:,.0f} {'output' if measure == 'tokens' else 'prompt'} tokens/s"
    ratio = _speed_ratio(before, after, measure)
    if abs(ratio - 1) <= _SAME:
        return f"{numbers}, the added GPUs bring nothing"
    if ratio < 1:
        return f"{numbers}, {1 / ratio - 1:.0%} slower" if is_time else f"{numbers}, {1 - ratio:.0%} less"
    return f"{numbers}, an added GPU brings {gain_per_gpu(before, after, measure):.0%} of a perfect one"


def _speed_ratio(before: Point, after: Point, measure: Measure) -> float:
    return after.speed(measure) / before.speed(measure)


def _time(time_ms: float) -> str:
    """With its unit, to the digits that one reads."""
    if time_ms >= 100:
        return f"{time_ms:,.0f} ms"
    if time_ms >= 1 or time_ms == 0:
        return f"{time_ms:.1f} ms"
    return f"{time_ms:.2f} ms" if time_ms >= 0.1 else f"{time_ms * 1e3:.1f} us"
