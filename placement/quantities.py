"""Quantities as people write them: "500ms", "400 Gbit/s", "80 GiB", "50%", "600/min", "8k".

Each function takes text or a plain number, and the name of the field for its error. A plain number is in `unit`; where
that is None a number without a unit is refused, since 500 may be meant as seconds or milliseconds.

    prefixes   k, M, G, T, P are powers of 1000, Ki, Mi, Gi, Ti, Pi of 1024, also for tokens: 128K is 128,000
    bits       b and bit are bits, B and byte are bytes; "gb/s" could be either and is refused
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

_NUMBER_AND_UNIT = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(.*?)\s*")
_PREFIXED = re.compile(r"([kKmMgGtTpP]?)(i?)(.*)")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {
    **dict.fromkeys(("ns",), 1e-9),
    **dict.fromkeys(("us", "\N{MICRO SIGN}s", "\N{GREEK SMALL LETTER MU}s"), 1e-6),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
_RATE = re.compile(r"(?:r|q|req|request|requests|query|queries)?\s*(?:/|per)\s*([a-z]+)")


class QuantityError(ValueError):
    """Text that is not the quantity a field takes. The message names the field, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    """What a kind of quantity is called, what to give, and the factor of a unit (None where it is none)."""

    name: str
    accepted: str
    factor: Callable[[str], float | None]


def seconds(value: object, *, field: str = "", unit: str | None = None, zero_ok: bool = False) -> float:
    """A time in seconds: ns, us, ms, s, min, h. Raises `QuantityError`."""
    return _read(value, _TIME, field=field, unit=unit, zero_ok=zero_ok)


def bandwidth_bytes_per_s(value: object, *, field: str = "", unit: str | None = "B/s") -> float:
    """A data rate in bytes per second: GB/s, GiB/s, Gbit/s, Gbps, mbit. Raises `QuantityError`."""
    return _read(value, _BANDWIDTH, field=field, unit=unit)


def size_bytes(value: object, *, field: str = "", unit: str | None = "B") -> int:
    """A size in bytes, rounded to a whole one: GB, GiB, Gi, G, MB. Raises `QuantityError`."""
    return round(_read(value, _SIZE, field=field, unit=unit))


def flops_per_s(value: object, *, field: str = "") -> float:
    """Floating-point (or integer) operations per second: TFLOPS, PFLOPS, TFLOP/s, TOPS. Raises `QuantityError`."""
    return _read(value, _FLOPS, field=field, unit=None)


def rate_per_s(value: object, *, field: str = "") -> float:
    """Requests per second: 10/s, 600/min, 36000/h, 10 rps. Raises `QuantityError`."""
    return _read(value, _RATE_OF, field=field, unit="/s")


def fraction(value: object, *, field: str = "") -> float:
    """A share from 0 to 1: 50% or 0.5. Raises `QuantityError`."""
    share = _read(value, _FRACTION, field=field, unit="", zero_ok=True)
    if share > 1:
        raise QuantityError(f"{_prefix(field)}{value!r} is more than the whole; {_FRACTION.accepted}.")
    return share


def percentile(value: object, *, field: str = "") -> float:
    """A percentile as a share of all, from 0 to 1: p95, 95, 95% and 0.95 are the same. Raises `QuantityError`."""
    text = str(value).strip().lower()
    bare = text.removeprefix("p").removesuffix("%")
    try:
        hundredths = fraction(f"{bare}%")
        share = fraction(bare) if bare == text and hundredths <= 0.01 else hundredths
    except QuantityError as error:
        raise _refused(value, _PERCENTILE, field) from error
    return round(share, 9)  # 99.9 / 100 is above 0.999


def tokens(value: object, *, field: str = "") -> int:
    """A whole number of tokens: 4096, 8k = 8K = 8,000, 8Ki = 8,192, 1M. Raises `QuantityError`."""
    number = _read(value, _TOKENS, field=field, unit="")
    # A thousandth of a thousandth: 4.1k is 4100 although 4.1 * 1000 may not be, in floating point.
    if not math.isclose(number, round(number), rel_tol=1e-9):
        raise QuantityError(f"{_prefix(field)}{value!r} is not a whole number of tokens; {_TOKENS.accepted}.")
    return round(number)


def _read(value: object, quantity: _Quantity, *, field: str, unit: str | None, zero_ok: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _refused(value, quantity, field)
    found = _NUMBER_AND_UNIT.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and not found:
        raise _refused(value, quantity, field)
    number_text, given = found.groups() if found else (value, "")
    if not given and unit is None:
        raise QuantityError(f"{_prefix(field)}{value!r} has no unit; {quantity.accepted}.")
    factor = quantity.factor(given or unit or "")
    try:
        number = float(number_text) * factor if factor is not None else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise _refused(value, quantity, field)
    if number < 0 or (number == 0 and not zero_ok):
        least = "at least 0" if zero_ok else "above 0"
        raise QuantityError(f"{_prefix(field)}{value!r} is not accepted; {quantity.accepted}, {least}.")
    return number


def _refused(value: object, quantity: _Quantity, field: str) -> QuantityError:
    return QuantityError(f"{_prefix(field)}{value!r} is not {quantity.name}; {quantity.accepted}.")


def _prefix(field: str) -> str:
    return f"{field}: " if field else ""


def _time_factor(unit: str) -> float | None:
    return _SECONDS.get(unit.lower())


def _bandwidth_factor(unit: str) -> float | None:
    for suffix in ("/sec", "/s", "ps"):
        body = unit.removesuffix(suffix)
        if body != unit:
            return _data_factor(body, lower_b_is_bits=suffix == "ps")
    # Traffic shapers write 100mbit for 100 Mbit/s; bytes without a time are a size.
    return _data_factor(unit, lower_b_is_bits=False) if "bit" in unit.lower() else None


def _data_factor(unit: str, *, lower_b_is_bits: bool) -> float | None:
    """Bytes in a unit of data."""
    letter, binary, base = _split(unit)
    scale = _scale(letter, binary)
    if base == "B" or base.lower() in ("byte", "bytes"):
        return scale
    if base.lower() in ("bit", "bits") or (base == "b" and (lower_b_is_bits or letter.isupper())):
        return scale / 8
    return None


def _size_factor(unit: str) -> float | None:
    letter, binary, base = _split(unit)
    # Nobody writes memory in bits, but "80Gb" is said of memory chips and means them.
    if (base == "" and letter) or base == "B" or base.lower() in ("byte", "bytes") or (base == "b" and unit.islower()):
        return _scale(letter, binary)
    return None


def _flops_factor(unit: str) -> float | None:
    letter, binary, base = _split(unit)
    return _scale(letter, binary) if not binary and base.lower() in ("flops", "flop/s", "ops", "op/s") else None


def _rate_factor(unit: str) -> float | None:
    if unit.lower() in ("rps", "qps"):
        return 1.0
    found = _RATE.fullmatch(unit.lower())
    period_s = _SECONDS.get(found[1]) if found else None
    return 1 / period_s if period_s else None


def _fraction_factor(unit: str) -> float | None:
    return {"": 1.0, "%": 0.01}.get(unit)


def _tokens_factor(unit: str) -> float | None:
    letter, binary, base = _split(unit.removesuffix("tokens").removesuffix("token").rstrip())
    return _scale(letter, binary) if not base else None


def _split(unit: str) -> tuple[str, str, str]:
    """Prefix letter, "i" of a binary prefix, and the rest: "GiB" is G, i, B. No letter: the whole unit is the rest."""
    found = _PREFIXED.fullmatch(unit)
    if not found or not found[1]:
        return "", "", unit
    return found[1], found[2], found[3]


def _scale(letter: str, binary: str) -> float:
    return float((1024 if binary else 1000) ** _POWERS[letter.lower()])


_TIME = _Quantity(name="a time", accepted="give a number with us, ms, s or min, such as '500ms'", factor=_time_factor)
_BANDWIDTH = _Quantity(
    name="a bandwidth",
    accepted="give a number with GB/s, GiB/s or Gbit/s, such as '25 GB/s' or '200 Gbit/s'",
    factor=_bandwidth_factor,
)
_SIZE = _Quantity(name="a size", accepted="give a number with MB, GB or GiB, such as '80 GiB'", factor=_size_factor)
_FLOPS = _Quantity(name="a speed", accepted="give a number with TFLOPS, such as '989 TFLOPS'", factor=_flops_factor)
_RATE_OF = _Quantity(name="a rate", accepted="give a number with /s, /min or /h, such as '10/s'", factor=_rate_factor)
_FRACTION = _Quantity(
    name="a fraction", accepted="give a number from 0 to 1 or a percentage, such as '50%'", factor=_fraction_factor
)
_PERCENTILE = _Quantity(
    name="a percentile", accepted="give p50 to p99.9, or a share such as 0.95 or 95%", factor=_fraction_factor
)
_TOKENS = _Quantity(
    name="a number of tokens",
    accepted="give a whole number such as 4096 or '8k' (k and K are 1000, Ki is 1024)",
    factor=_tokens_factor,
)
