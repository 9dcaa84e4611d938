"""What the autoscaler's settings are made of: each reads what people write, and says what it accepts."""

import re
from datetime import time
from typing import Annotated, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from placement import Shape, ShapeError
from placement.promised import promised_latency_s, promised_share
from placement.quantities import QuantityError, seconds

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Value = TypeVar("Value")
_URL = re.compile(r"https?://[^\s/@?#]+(/[^\s?#]*)?")
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def _url(text: str) -> str:
    # A password in an address would end in logs; a token has a variable of its own.
    if not _URL.fullmatch(text):
        raise ValueError("give http:// or https://, a host, and nothing of a user or a query")
    return text.rstrip("/")


def _length_s(value: object) -> float:
    try:
        return seconds(value, unit="s", zero_ok=True)
    except QuantityError as error:
        raise ValueError("give a time such as 15s, 500ms or 10min") from error


def _clock(value: object) -> time:
    found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("give a time of day from 00:00 to 23:59")
    return time(int(found[1]), int(found[2]))


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("give an IANA time zone such as UTC or Europe/Berlin") from error
    return value


def _shape(value: object) -> Shape:
    if isinstance(value, Shape):
        return value
    try:
        return Shape.parse(value if isinstance(value, str) else "")
    except ShapeError as error:
        raise ValueError("give a shape such as tp4, tp2pp2 or tp8ep8") from error


def _some(values: tuple[Value, ...]) -> tuple[Value, ...]:
    if not values:
        raise ValueError("give at least one")
    return values


Url = Annotated[str, AfterValidator(_url)]
Length = Annotated[float, BeforeValidator(_length_s)]
Positive = Annotated[float, BeforeValidator(_length_s), Field(gt=0)]
Latency = Annotated[float, BeforeValidator(promised_latency_s)]
Clock = Annotated[time, BeforeValidator(_clock)]
Share = Annotated[float, BeforeValidator(promised_share)]
Zone = Annotated[str, AfterValidator(_zone)]
Days = Annotated[tuple[Day, ...], Field(strict=False), AfterValidator(_some)]
Shapes = Annotated[tuple[Annotated[Shape, BeforeValidator(_shape)], ...], Field(strict=False)]


class Section(BaseModel):
    """A part of the settings: frozen, and refuses names it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
