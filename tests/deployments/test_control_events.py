import asyncio
from itertools import count
from typing import Any

import pytest
from control_builders import FIRST_NUMBER, MODEL, READ, START, MemoryFleet, until
from hypothesis import given
from hypothesis import strategies as st

from deployments.control import api
from deployments.control.api import control_app
from deployments.control.events import EventLog
from deployments.control.gate import Caller, known_tokens
from deployments.control.wire import Event, EventPage, Gap

TIMEOUT_S = 20


def log(capacity: int = 3, first_number: int = 1) -> EventLog:
    return EventLog(capacity=capacity, first_number=first_number, now=lambda: START)


def read(events: EventLog, after: int | None, model: str | None = None, wait_s: float = 0) -> EventPage:
    return asyncio.run(events.read(after, model, wait_s))


@given(
    capacity=st.integers(1, 6),
    bursts=st.lists(st.integers(0, 12), max_size=8),
    first_number=st.integers(1, 2**45),
)
def test_a_reader_sees_every_event_once_or_is_told_that_it_is_gone(
    capacity: int, bursts: list[int], first_number: int
) -> None:
    events = log(capacity, first_number)
    texts = count()
    seen: list[int] = []
    after = first_number - 1
    for burst in bursts:
        for _ in range(burst):
            events.add(MODEL, "step", str(next(texts)))
        page = events.page(after, None)
        if page.gap:
            seen += range(page.gap.first, page.gap.last + 1)
        seen += [event.number for event in page.events]
        assert [event.number - first_number for event in page.events] == [int(event.text) for event in page.events]
        after = page.newest
    assert seen == list(range(first_number, first_number + next(texts)))


def test_a_new_reader_gets_what_is_held_and_no_gap() -> None:
    events = log(capacity=2)
    for text in "abc":
        events.add(MODEL, "step", text)
    page = read(events, None)
    assert ([event.text for event in page.events], page.newest, page.gap) == (["b", "c"], 3, None)
    assert read(events, 0).gap == Gap(first=1, last=1)


def test_a_page_of_one_model_goes_on_after_the_events_of_others() -> None:
    events = log()
    events.add(MODEL, "step", "mine")
    events.add("other", "step", "not mine")
    page = read(events, None, MODEL)
    assert [event.text for event in page.events] == ["mine"]
    assert page.newest == 2


def test_waiting_ends_with_the_first_event_of_the_model() -> None:
    async def scenario() -> EventPage:
        events = log()
        reader = asyncio.create_task(events.read(None, MODEL, TIMEOUT_S))
        await asyncio.sleep(0)
        events.add("other", "step", "not mine")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not reader.done()
        events.add(MODEL, "step", "mine")
        return await asyncio.wait_for(reader, TIMEOUT_S)

    assert [event.text for event in asyncio.run(scenario()).events] == ["mine"]


def test_waiting_ends_with_its_time() -> None:
    assert read(log(first_number=7), None, wait_s=0.01) == EventPage(events=(), newest=6)


def test_a_reader_that_waits_is_told_of_a_gap_at_once() -> None:
    events = log(capacity=1)
    for text in "abc":
        events.add("other", "step", text)
    page = read(events, 1, MODEL, wait_s=TIMEOUT_S)
    assert page.gap == Gap(first=2, last=2)


class Stream:
    """One open request to the stream of events, read as it comes."""

    def __init__(self, fleet: MemoryFleet, query: str, headers: dict[str, str]) -> None:
        app = control_app(fleet, known_tokens({READ: Caller(name="tail", role="read")}))
        self.messages: list[Any] = []
        self._gone = asyncio.Event()
        self._is_asked = False
        pairs = {"Authorization": f"Bearer {READ}", **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/v1/events/stream",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in pairs.items()],
            "app": app,
        }
        self._task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def frames(self) -> list[str]:
        body = b"".join(message.get("body", b"") for message in self.messages)
        return body.decode().split("\n\n")[:-1]

    async def leave(self) -> None:
        self._gone.set()
        await asyncio.wait_for(self._task, TIMEOUT_S)


def streamed(query: str = "", *, model: str = MODEL, **headers: str) -> list[str]:
    """The frames of a stream that was opened after three events, with a fourth while it is open."""

    async def scenario() -> list[str]:
        fleet = MemoryFleet()
        for text in "abc":
            fleet.log.add(model, "step", text)
        stream = Stream(fleet, query, headers)
        await asyncio.wait_for(until(lambda: stream.frames), TIMEOUT_S)
        fleet.log.add(model, "reached", "d", replica="r-0")
        await asyncio.wait_for(until(lambda: "event: reached" in "".join(stream.frames)), TIMEOUT_S)
        await stream.leave()
        return stream.frames

    return asyncio.run(scenario())


def numbers(frames: list[str]) -> list[int]:
    return [int(frame.split("\n")[0].removeprefix("id: ")) for frame in frames if frame.startswith("id: ")]


def test_a_stream_has_what_was_and_what_comes() -> None:
    frames = streamed()
    assert numbers(frames) == [FIRST_NUMBER + n for n in range(4)]
    number, kind, data = frames[-1].split("\n")
    assert (number, kind) == (f"id: {FIRST_NUMBER + 3}", "event: reached")
    event = Event.model_validate_json(data.removeprefix("data: "))
    assert (event.text, event.replica) == ("d", "r-0")


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        (f"after={FIRST_NUMBER + 1}", {}, 2),
        # A browser comes back to the same address, and says in a header how far it was.
        (f"after={FIRST_NUMBER}", {"Last-Event-ID": str(FIRST_NUMBER + 1)}, 2),
        ("", {"Last-Event-ID": "9" * 5000}, 0),
    ],
)
def test_a_stream_goes_on_where_its_reader_was(query: str, headers: dict[str, str], first: int) -> None:
    assert numbers(streamed(query, **headers)) == [FIRST_NUMBER + n for n in range(first, 4)]


def test_a_stream_says_what_is_gone() -> None:
    frames = streamed(f"after={FIRST_NUMBER - 3}")
    assert frames[0] == f'event: gap\ndata: {{"first":{FIRST_NUMBER - 2},"last":{FIRST_NUMBER - 1}}}'


def test_a_silent_stream_shows_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "ALIVE_S", 0.01)

    async def scenario() -> list[str]:
        stream = Stream(MemoryFleet(), "", {})
        await asyncio.wait_for(until(lambda: len(stream.frames) > 2), TIMEOUT_S)
        await stream.leave()
        return stream.frames

    assert set(asyncio.run(scenario())) == {": alive"}


def test_nobody_waits_for_a_reader_that_left() -> None:
    finished: list[str] = []

    class Watched(MemoryFleet):
        async def events(self, after: int | None, model: str | None, wait_s: float) -> EventPage:
            try:
                return await super().events(after, model, wait_s)
            finally:
                finished.append("waited" if wait_s else "at once")

    async def scenario() -> None:
        stream = Stream(Watched(), "", {})
        await asyncio.wait_for(until(lambda: stream.frames), TIMEOUT_S)
        await stream.leave()

    asyncio.run(scenario())
    assert finished == ["at once", "waited"]
