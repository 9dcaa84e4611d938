"""A run over time: what falls into which window."""

import math

import pytest
from record_builders import columns, record, refused

from loadtests.windows import by_minute, over_time, window_width_s


def test_over_time() -> None:
    """A stream of 40 tokens from 2 s to 6 s, and one refused at 3 s, in windows of half a second."""
    stream = record(1.9, id=0, sent_s=2.0, first_s=2.0, last_s=6.0, ended_s=6.1, output_tokens=40, input_tokens=8)
    time = over_time(columns(stream, refused(3.0, id=1)))
    assert (time.window_s, len(time.from_s)) == (0.5, 13)
    assert time.output_tokens_per_s[:5] == pytest.approx((0, 0, 0, 0, 10))
    assert math.fsum(value or 0 for value in time.output_tokens_per_s) * time.window_s == pytest.approx(40)
    assert time.input_tokens_per_s[4] == pytest.approx(16)
    assert [index for index, value in enumerate(time.ttft_p50_s) if value is not None] == [3]  # when it was scheduled
    assert (time.scheduled_per_s[3], time.sent_per_s[3], time.sent_per_s[4]) == (2, 0, 2)
    assert (time.failed_per_s[6], time.in_flight[5]) == pytest.approx((2, 1))
    assert time.answered_per_s[6] == 0  # refused
    assert time.answered_per_s[-1] is None  # of the last window the run saw nothing but its beginning


def test_attainment_by_minute() -> None:
    minutes = by_minute(columns(record(0.0), refused(59.9), record(180.0), record(181.0)))
    assert [(minute.from_s, minute.arrivals, minute.attainment) for minute in minutes] == [
        (0.0, 2, 0.5),
        (60.0, 0, None),
        (120.0, 0, None),
        (180.0, 2, 1.0),
    ]


@pytest.mark.parametrize(
    ("span_s", "arrivals", "expected"),
    [(60, 6000, 0.5), (60, 60, 2), (1200, 10**5, 10), (1200, 240, 60), (10**6, 9, 3600)],
)
def test_windows_are_narrow_but_hold_enough_requests(span_s: float, arrivals: int, expected: float) -> None:
    assert window_width_s(span_s, arrivals) == expected
