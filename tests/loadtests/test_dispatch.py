import statistics
from functools import partial
from time import perf_counter
from typing import Any

from sse_servers import HEAD, Server, obliging, serving, token

from loadtests.client import StreamClient, wording
from loadtests.dispatch import Dispatcher
from loadtests.records import Record
from loadtests.scenario import Scenario
from loadtests.schedule import requests_of

LENGTHS = {"input": {"kind": "fixed", "tokens": 3}, "output": {"kind": "fixed", "tokens": 2}}
EARLY_S = 0.005  # the resolution of the clocks


def scenario(url: str, **changes: Any) -> Scenario:
    """One for two tokens of answer, changed."""
    return Scenario.model_validate({"name": "t", "url": url, "duration_s": 1.0, "lengths": LENGTHS, **changes})


def dispatched(given: Scenario) -> list[Record]:
    """What one worker writes down."""
    kept: list[Record] = []
    start_s = perf_counter() + 0.1
    client = StreamClient(given, wording(given, "tiny", "", None), worker=0, start_s=start_s)
    dispatcher = Dispatcher(scenario=given, client=client, start_s=start_s, keep=kept.append)
    if given.closed_loop:
        dispatcher.closed_loop(range(given.closed_loop.clients), given.closed_loop.clients)
    else:
        dispatcher.open_loop(tuple(requests_of(given)))
    return kept


def test_more_than_ten_are_under_way_at_once() -> None:
    """Locust's FastHttpUser would let ten through and count the others' wait in the client as the server's."""
    with serving(partial(obliging, ttft_s=0.5)) as server:
        records = dispatched(scenario(server.url, duration_s=0.5, arrivals={"kind": "constant", "rate": 200}))
    assert len(records) == 100
    waits = [record.first_s - record.scheduled_s for record in records if record.first_s is not None]
    assert len(waits) == 100
    assert statistics.median(waits) < 0.5 + 0.2


def test_what_is_under_way_at_the_end_is_counted() -> None:
    with serving(lambda body: [HEAD, token("a", 7), 30.0]) as server:
        given = scenario(server.url, duration_s=0.4, drain_s=0.2, arrivals={"kind": "constant", "rate": 50})
        records = dispatched(given)
    assert [record.outcome for record in records] == ["unfinished"] * 20
    assert sorted(record.id for record in records) == list(range(20))
    assert all(record.first_s is not None and record.ended_s >= 0.6 - EARLY_S for record in records)


def stalled(server: Server, **changes: Any) -> tuple[int, int]:
    """How many requests a stall of 1.5 s made wait for more than half a second, and how many there were."""
    records = dispatched(scenario(server.url, duration_s=4.0, drain_s=5.0, **changes))
    starts = [(record.scheduled_s, record.first_s) for record in records]
    return sum(first_s is not None and first_s - due_s > 0.5 for due_s, first_s in starts), len(records)


def test_an_open_loop_sees_the_misses_that_a_closed_loop_hides() -> None:
    """Two clients that wait are two misses; the users who would have come in that time are forty."""
    slow = partial(obliging, ttft_s=0.05, tpot_s=0.05)
    with serving(slow, stall_at_s=1.0, stall_s=1.5) as server:
        open_misses, open_requests = stalled(server, arrivals={"kind": "constant", "rate": 20})
    with serving(slow, stall_at_s=1.0, stall_s=1.5) as server:
        closed_misses, closed_requests = stalled(server, arrivals=None, closed_loop={"clients": 2})
    assert closed_misses == 2
    assert closed_requests > 20
    assert open_requests == 80
    assert open_misses >= 15
    assert open_misses / open_requests > 3 * closed_misses / closed_requests
