"""What happened lately: the last events, in memory, for readers that come back for more."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from deployments.control.wire import Event, EventKind, EventPage, Gap


class EventLog:
    """The last `capacity` events. For one event loop.

    Numbers are never used twice, over restarts too if `first_number` (at least 1) is above all of earlier logs;
    milliseconds since 1970 at the start of the controller are, while it logs less than 1000 events a second.
    """

    def __init__(self, *, capacity: int, first_number: int, now: Callable[[], datetime]) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._next_number = first_number
        self._now = now
        self._arrival = asyncio.Event()

    def add(self, model: str, kind: EventKind, text: str, *, replica: str | None = None) -> Event:
        """Note what happens now, and wake those who wait for it."""
        event = Event(number=self._next_number, at=self._now(), model=model, kind=kind, replica=replica, text=text)
        self._next_number += 1
        self._events.append(event)
        self._arrival.set()
        self._arrival = asyncio.Event()
        return event

    async def read(self, after: int | None, model: str | None, wait_s: float) -> EventPage:
        """The events after number `after` (None: all that are held) of one model or all; waits for one if none is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self.page(after, model).events and not self._gap(after):
                    await self._arrival.wait()
        return self.page(after, model)

    def page(self, after: int | None, model: str | None) -> EventPage:
        """As `read`, at once."""
        events = (event for event in self._events if after is None or event.number > after)
        wanted = tuple(event for event in events if model is None or event.model == model)
        return EventPage(events=wanted, newest=self._next_number - 1, gap=self._gap(after))

    def _gap(self, after: int | None) -> Gap | None:
        oldest = self._events[0].number if self._events else self._next_number
        if after is None or after + 1 >= oldest:
            return None
        return Gap(first=after + 1, last=oldest - 1)
