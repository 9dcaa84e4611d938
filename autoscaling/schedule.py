"""Times of the week in a time zone, and the bounds that hold for a fleet in them. Pure.

A time that the clock shows twice, as it is set back, is meant the first time; one that it skips, when it skips it. So
windows that follow each other on the clock do so every day of the year, and those that do not overlap there never do.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)  # as datetime.weekday: 0 is Monday
_DAY = timedelta(days=1)
_DAY_S, _WEEK_S = 86_400, 7 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A time of day on some days of the week; one that does not close after it opens closes the day after.

    `days` are those on which it opens, 0 for Monday. `zone` is an IANA time zone.
    """

    opens: time
    closes: time
    days: tuple[int, ...] = EVERY_DAY
    zone: str = "UTC"

    def is_open(self, at_s: float) -> bool:
        """Whether `at_s` (seconds since the epoch) is in it."""
        return any(True for _ in self.spans(at_s, at_s))

    def spans(self, from_s: float, until_s: float) -> Iterator[tuple[float, float]]:
        """When it opens and closes, each time that it is open at some moment from `from_s` to `until_s`."""
        zone = ZoneInfo(self.zone)
        day = datetime.fromtimestamp(from_s, zone).date() - _DAY
        last = datetime.fromtimestamp(until_s, zone).date()
        while day <= last:
            if day.weekday() in self.days:
                opens_s = _shown_s(day, self.opens, zone)
                closes_s = _shown_s(day if self.closes > self.opens else day + _DAY, self.closes, zone)
                if opens_s <= until_s and max(from_s, opens_s) < closes_s:
                    yield opens_s, closes_s
            day += _DAY

    def may_overlap(self, other: "Window") -> bool:
        """Whether both are open at a time. Time zones move against each other: windows of two are taken to overlap."""
        if self.zone != other.zone:
            return True
        mine_s, its_s = self._lasts_s, other._lasts_s
        return any(
            (there_s - here_s) % _WEEK_S < mine_s or (here_s - there_s) % _WEEK_S < its_s
            for here_s in self._openings_s
            for there_s in other._openings_s
        )

    @property
    def _openings_s(self) -> tuple[int, ...]:
        """From the beginning of the week, on the clock."""
        return tuple(day * _DAY_S + _since_midnight_s(self.opens) for day in self.days)

    @property
    def _lasts_s(self) -> int:
        return (_since_midnight_s(self.closes) - _since_midnight_s(self.opens)) % _DAY_S or _DAY_S


ALWAYS = Window(opens=time(), closes=time())


def _since_midnight_s(clock: time) -> int:
    return (clock.hour * 60 + clock.minute) * 60 + clock.second


def _shown_s(day: date, clock: time, zone: ZoneInfo) -> int:
    """When the clock first shows this time, or a later one."""
    shown = datetime.combine(day, clock, zone)
    first_s, second_s = int(shown.timestamp()), int(shown.replace(fold=1).timestamp())
    if first_s <= second_s:
        return first_s
    # Skipped: read by the offset after the change it would be before that, and the other way round.
    between = range(second_s, first_s)
    return second_s + bisect_left(between, True, key=lambda at_s: datetime.fromtimestamp(at_s, zone) >= shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Bounds that hold while `window` is open, beside those that always do."""

    window: Window
    min_gpus: int = 0
    max_gpus: int | None = None
    min_replicas: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Scheduled bounds, and one time from and until which they hold."""

    bounds: Scheduled
    opens_s: float
    closes_s: float

    def shown(self, at_s: float) -> str:
        """`from 08:00 (Europe/Berlin)`, and once it has begun `until 18:00 (Europe/Berlin)`."""
        window = self.bounds.window
        when = f"until {window.closes:%H:%M}" if self.opens_s <= at_s else f"from {window.opens:%H:%M}"
        return f"{when} ({window.zone})"


def due(schedule: Iterable[Scheduled], from_s: float, until_s: float) -> tuple[Due, ...]:
    """What holds at some moment from `from_s` to `until_s`."""
    return tuple(
        Due(bounds=bounds, opens_s=opens_s, closes_s=closes_s)
        for bounds in schedule
        for opens_s, closes_s in bounds.window.spans(from_s, until_s)
    )
