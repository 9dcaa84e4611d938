"""One worker's part of a run: sends each of its requests at its time, waits for the last answers, counts what remains.

No request waits for another: each is a greenlet of its own, started at an absolute time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import gevent  # type: ignore[import-untyped]
import gevent.pool  # type: ignore[import-untyped]

from loadtests.client import StreamClient
from loadtests.records import Record
from loadtests.scenario import Scenario
from loadtests.schedule import Request, drawn_request

_PROBE_S = 0.020


@dataclass(slots=True, kw_only=True)
class Dispatcher:
    """Drives one client; `start_s` on the clock of `perf_counter` is the start of the run, `keep` takes each record.

    `loop_lags_s` is how late a greenlet woke that had nothing to do but wake: above a few milliseconds this process was
    too busy to time anything.
    """

    scenario: Scenario
    client: StreamClient
    start_s: float
    keep: Callable[[Record], None]
    loop_lags_s: list[float] = field(default_factory=list)
    _under_way: dict[int, tuple[Request, float]] = field(default_factory=dict)
    _senders: gevent.pool.Group = field(default_factory=gevent.pool.Group)

    def open_loop(self, requests: Sequence[Request]) -> None:
        """Send requests when they are due, whatever became of the ones before."""
        self._run(lambda: self._send_when_due(requests))

    def closed_loop(self, clients: Sequence[int], all_clients: int) -> None:
        """Let each of `clients` send one request after the other, until the time for arrivals is over."""

        def start() -> None:
            for client in clients:
                self._senders.spawn(self._send_in_turn, client, all_clients)
            self._sleep_until(self.scenario.duration_s)

        self._run(start)

    def _run(self, arrivals: Callable[[], None]) -> None:
        probe = gevent.spawn(self._probe)
        try:
            self._sleep_until(0.0)
            arrivals()
            self._senders.join(timeout=self.scenario.drain_s)
        finally:
            probe.kill()
            self._senders.kill()
            for request, due_s in list(self._under_way.values()):  # greenlets that were killed before they ran
                self.keep(self.client.unsent(request, due_s, "never sent"))
            self.client.close()

    def _send_when_due(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._sleep_until(request.at_s)
            self._under_way[request.id] = (request, request.at_s)
            self._senders.spawn(self._send, request, request.at_s)
        self._sleep_until(self.scenario.duration_s)

    def _send_in_turn(self, client: int, all_clients: int) -> None:
        number = client
        while (free_s := self._now_s()) < self.scenario.duration_s:
            request = drawn_request(self.scenario, number, free_s)
            self._under_way[number] = (request, free_s)
            if self._send(request, free_s).outcome == "unfinished":
                return
            number += all_clients

    def _send(self, request: Request, due_s: float) -> Record:
        record = self.client.send(request, due_s)
        del self._under_way[request.id]
        self.keep(record)
        return record

    def _probe(self) -> None:
        due_s = max(0.0, self._now_s())
        while True:
            self._sleep_until(due_s)
            now_s = self._now_s()
            self.loop_lags_s.append(now_s - due_s)
            due_s = max(due_s + _PROBE_S, now_s)

    def _sleep_until(self, at_s: float) -> None:
        gevent.sleep(max(0.0, at_s - self._now_s()))

    def _now_s(self) -> float:
        return perf_counter() - self.start_s
