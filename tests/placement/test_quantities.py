import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.quantities import (
    QuantityError,
    bandwidth_bytes_per_s,
    flops_per_s,
    fraction,
    percentile,
    rate_per_s,
    seconds,
    size_bytes,
    tokens,
)

Read = Callable[..., float]


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (seconds, "500ms", 0.5),
        (seconds, "2 s", 2.0),
        (seconds, "50us", 50e-6),
        (seconds, "50 \N{MICRO SIGN}s", 50e-6),
        (seconds, "1.5min", 90.0),
        (seconds, " 1e3 ns ", 1e-6),
        (seconds, "2 hours", 7200.0),
        (bandwidth_bytes_per_s, "25 GB/s", 25e9),
        (bandwidth_bytes_per_s, "400Gbit/s", 50e9),
        (bandwidth_bytes_per_s, "400 Gbps", 50e9),
        (bandwidth_bytes_per_s, "10gbps", 1.25e9),
        (bandwidth_bytes_per_s, "400 Gb/s", 50e9),
        (bandwidth_bytes_per_s, "3.35 TB/s", 3.35e12),
        (bandwidth_bytes_per_s, "100mbit", 12.5e6),
        (bandwidth_bytes_per_s, "64 GiB/s", 64 * 2**30),
        (bandwidth_bytes_per_s, "1 Gibit/s", 2**27),
        (bandwidth_bytes_per_s, "8 bytes/s", 8.0),
        (size_bytes, "80GiB", 80 * 2**30),
        (size_bytes, "80 GB", 80 * 10**9),
        (size_bytes, "80Gi", 80 * 2**30),
        (size_bytes, "80G", 80 * 10**9),
        (size_bytes, "512 mb", 512 * 10**6),
        (size_bytes, "81559 MiB", 85_520_809_984),
        (flops_per_s, "989 TFLOPS", 989e12),
        (flops_per_s, "1.979 PFLOP/s", 1.979e15),
        (flops_per_s, "624 TOPS", 624e12),
        (rate_per_s, "10/s", 10.0),
        (rate_per_s, "600/min", 10.0),
        (rate_per_s, "36000 requests/hour", 10.0),
        (rate_per_s, "10 rps", 10.0),
        (rate_per_s, "10 per second", 10.0),
        (fraction, "50%", 0.5),
        (fraction, "0.5", 0.5),
        (fraction, 1, 1.0),
        (fraction, "0%", 0.0),
        (percentile, "p99.9", 0.999),
        (percentile, "P95%", 0.95),
        (percentile, "95 %", 0.95),
        (percentile, 95, 0.95),
        (percentile, 0.95, 0.95),
        (tokens, "4096", 4096),
        (tokens, "8k", 8000),
        (tokens, "128K", 128_000),
        (tokens, "8Ki", 8192),
        (tokens, "4.1k", 4100),
        (tokens, "1.5M tokens", 1_500_000),
        (tokens, 4096.0, 4096),
    ],
)
def test_what_people_write_is_read(read: Read, text: object, expected: float) -> None:
    assert read(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [20, 20.0, "20"])
def test_a_number_without_a_unit_is_in_the_unit_of_the_field(value: object) -> None:
    assert seconds(value, unit="ms") == 0.02
    assert bandwidth_bytes_per_s(value) == 20
    assert size_bytes(value) == 20
    assert rate_per_s(value) == 20
    assert seconds("2s", unit="ms") == 2  # a unit that is given wins


TIME = "give a number with us, ms, s or min, such as '500ms'."


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (seconds, "500 parsecs", f"ttft: '500 parsecs' is not a time; {TIME}"),
        (seconds, "", f"ttft: '' is not a time; {TIME}"),
        (seconds, "ms", f"ttft: 'ms' is not a time; {TIME}"),
        (seconds, "1,5 s", f"ttft: '1,5 s' is not a time; {TIME}"),
        (seconds, "1_0 s", f"ttft: '1_0 s' is not a time; {TIME}"),
        (seconds, "nan s", f"ttft: 'nan s' is not a time; {TIME}"),
        (seconds, "1e400 s", f"ttft: '1e400 s' is not a time; {TIME}"),
        (seconds, math.inf, f"ttft: inf has no unit; {TIME}"),
        (seconds, True, f"ttft: True is not a time; {TIME}"),
        (seconds, None, f"ttft: None is not a time; {TIME}"),
        (seconds, 500, f"ttft: 500 has no unit; {TIME}"),
        (seconds, "500", f"ttft: '500' has no unit; {TIME}"),
        (seconds, "0 ms", f"ttft: '0 ms' is not accepted; {TIME[:-1]}, above 0."),
        (seconds, "-5ms", f"ttft: '-5ms' is not accepted; {TIME[:-1]}, above 0."),
        (
            bandwidth_bytes_per_s,
            "25 gb/s",
            "ttft: '25 gb/s' is not a bandwidth; give a number with GB/s, GiB/s or Gbit/s, "
            "such as '25 GB/s' or '200 Gbit/s'.",
        ),
        (
            size_bytes,
            "80Gb",
            "ttft: '80Gb' is not a size; give a number with MB, GB or GiB, such as '80 GiB'.",
        ),
        (
            fraction,
            "50",
            "ttft: '50' is more than the whole; give a number from 0 to 1 or a percentage, such as '50%'.",
        ),
        (
            tokens,
            "1.5",
            "ttft: '1.5' is not a whole number of tokens; "
            "give a whole number such as 4096 or '8k' (k and K are 1000, Ki is 1024).",
        ),
    ],
)
def test_what_is_refused_says_why_and_what_to_give(read: Read, value: object, message: str) -> None:
    with pytest.raises(QuantityError) as error:
        read(value, field="ttft")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (bandwidth_bytes_per_s, "25GB"),
        (bandwidth_bytes_per_s, "25 knots"),
        (bandwidth_bytes_per_s, math.nan),
        (size_bytes, "80 GB/s"),
        (size_bytes, "80 mib of memory"),
        (size_bytes, 10**400),
        (flops_per_s, "5 TiFLOPS"),
        (rate_per_s, "5/fortnight"),
        (rate_per_s, "5 ms"),
        (rate_per_s, math.inf),
        (fraction, "-1%"),
        (fraction, "101%"),
        (percentile, "p200"),
        (percentile, "median"),
        (percentile, True),
        (tokens, "8kB"),
        (tokens, 0),
        (tokens, 10**400),
        (tokens, False),
        (tokens, [1]),
    ],
)
def test_another_quantity_is_refused(read: Read, value: object) -> None:
    with pytest.raises(QuantityError):
        read(value)


def test_zero_is_accepted_where_it_is_allowed() -> None:
    assert seconds("0s", zero_ok=True) == 0
    with pytest.raises(QuantityError, match="at least 0"):
        seconds("-1s", zero_ok=True)


READERS: list[Any] = [bandwidth_bytes_per_s, flops_per_s, fraction, percentile, rate_per_s, seconds, size_bytes, tokens]


@given(st.sampled_from(READERS), st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans()))
def test_anything_is_read_or_refused(read: Read, value: object) -> None:
    try:
        number = read(value)
    except QuantityError:
        return
    assert math.isfinite(number)
    assert number >= 0


@given(st.floats(min_value=1e-3, max_value=1e6))
def test_bits_are_eighths_of_bytes_and_units_agree(number: float) -> None:
    assert bandwidth_bytes_per_s(f"{number} Gbit/s") * 8 == pytest.approx(bandwidth_bytes_per_s(f"{number} GB/s"))
    assert seconds(f"{number} s") == pytest.approx(seconds(f"{number * 1000} ms"))
    assert rate_per_s(f"{number}/s") == pytest.approx(rate_per_s(f"{number * 60}/min"))
