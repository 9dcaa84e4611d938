"""How well one worker of the load client keeps time: python tests/benchmarks/load_client.py [EVENTS_PER_S [SECONDS]]

A server in a process and on a core of its own streams answers with known delays and writes down when it received each
request and when it sent each first token. Printed beside the bars: events per second, lag, and the error of the TTFT.
"""

import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loadtests.plan import milliseconds
from loadtests.prompts import token_prompts
from loadtests.records import read_run
from loadtests.run import run
from loadtests.scenario import Scenario

TTFT_S, TPOT_S, TOKENS, PROMPT_TOKENS = 0.2, 0.02, 100, 20
EVENTS_BAR, LAG_BAR_MS, TTFT_BAR_MS = 10_000, 5.0, 3.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(Path(sys.argv[2])))
        return
    given = [float(argument) for argument in sys.argv[1:3]]
    events_per_s, seconds = given + [10_000.0, 20.0][len(given) :]
    cores = sorted(os.sched_getaffinity(0))
    _print(f"{len(cores)} cores, load average {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "server.json")
        server = subprocess.Popen([sys.executable, __file__, "--serve", told], stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(server.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})  # Locust inherits it
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            records = run(scenario(url, events_per_s, seconds), Path(folder, "run"))
            used = resource.getrusage(resource.RUSAGE_CHILDREN)  # only Locust has come to its end by now
            cpu_s = used.ru_utime + used.ru_stime
        finally:
            server.terminate()
            server.wait()
        report(read_run(records), json.loads(told.read_text()), seconds)
        _print(f"the client used {cpu_s:.1f} s of processor time, its start included")


def scenario(url: str, events_per_s: float, seconds: float) -> Scenario:
    """Enough requests, at random, for so many events."""
    lengths = {"input": {"kind": "fixed", "tokens": PROMPT_TOKENS}, "output": {"kind": "fixed", "tokens": TOKENS}}
    arrivals = {"kind": "poisson", "rate": events_per_s / TOKENS}
    fields = {"name": "bench", "url": url, "duration_s": seconds, "drain_s": 20.0}
    return Scenario.model_validate({**fields, "arrivals": arrivals, "lengths": lengths})


def report(found: Any, told: dict[str, list[float]], seconds: float) -> None:
    """Each figure, and its ratio to the bar (below 1 is better; for events, above)."""
    ok = [record for record in found.records if record.outcome == "ok"]
    _print(f"{len(ok)} of {len(found.records)} requests ok; invalid: {found.header['invalid'] or 'no'}")
    steady = [record for record in ok if record.scheduled_s > TTFT_S + TOKENS * TPOT_S]
    events_per_s = len(steady) * TOKENS / (seconds - TTFT_S - TOKENS * TPOT_S)
    client = found.header["client"][0]
    prompts = token_prompts(0)
    plain, own = [], []
    for record in ok:
        received_s, sent_s = told[prompts.of(record.id, PROMPT_TOKENS).decode()]
        plain.append(record.first_s - record.scheduled_s - TTFT_S)
        own.append(record.first_s - record.scheduled_s - (sent_s - received_s))
    own_ms, plain_ms = (milliseconds([abs(error) for error in errors]) for errors in (own, plain))
    _print(f"events/s            {events_per_s:8.0f}  bar {EVENTS_BAR}  ratio {events_per_s / EVENTS_BAR:.2f}")
    for name, value, bar in (
        ("lag p99, ms", client["lag_ms"]["p99"], LAG_BAR_MS),
        ("waking p99, ms", client["loop_lag_ms"]["p99"], LAG_BAR_MS),
        ("TTFT error p50, ms", own_ms["p50"], TTFT_BAR_MS),
        ("TTFT error p99, ms", own_ms["p99"], TTFT_BAR_MS),
    ):
        _print(f"{name:<20}{value:8.2f}  bar {bar:g}  ratio {value / bar:.2f}")
    tpot_ms = statistics.median(1e3 * (record.last_s - record.first_s) / (TOKENS - 1) for record in ok)
    _print(f"against {1e3 * TTFT_S:g} ms, the server's own lateness included: {plain_ms}; TPOT p50 {tpot_ms:.2f} ms")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


class Connection(asyncio.Protocol):
    """One connection of the server: answers each request after TTFT_S, then one event every TPOT_S."""

    def __init__(self, told: dict[str, list[float]]) -> None:
        self.told = told
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self.buffer = b""
            models = b'{"data": [{"id": "tiny"}]}'
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(models), models))
            return
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        if len(body) < length:
            return
        self.buffer = b""
        self.transport.write(HEAD)
        prompt = body.partition(b"[")[2].partition(b"]")[0].decode()
        self.loop.call_at(now_s + TTFT_S, self.send, prompt, now_s, 0)

    def send(self, prompt: str, received_s: float, number: int) -> None:
        """Send one token, and say when the next is due."""
        if number == 0:
            self.told[prompt] = [received_s, time.perf_counter()]
        self.transport.write(EVENTS[number])
        if number + 1 < TOKENS:
            self.loop.call_at(received_s + TTFT_S + (number + 1) * TPOT_S, self.send, prompt, received_s, number + 1)


def _event(number: int) -> bytes:
    reason = '"length"' if number == TOKENS - 1 else "null"
    choice = f'{{"index":0,"text":" word","finish_reason":{reason},"stop_reason":null,"token_ids":[{number}]}}'
    same = '"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,"model":"tiny"'
    parts = [f'data: {{{same},"choices":[{choice}],"usage":null}}\n\n'.encode()]
    if number == TOKENS - 1:
        usage = f'{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{TOKENS}}}'
        parts += [f'data: {{{same},"choices":[],"usage":{usage}}}\n\n'.encode(), b"data: [DONE]\n\n", b""]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


EVENTS = [_event(number) for number in range(TOKENS)]


async def serve(path: Path) -> None:
    """Serve until SIGTERM; then write down when what was received and sent."""
    told: dict[str, list[float]] = {}
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    listener = await loop.create_server(lambda: Connection(told), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await over.wait()
    path.write_text(json.dumps(told))  # noqa: ASYNC240  (nobody is served any more)


if __name__ == "__main__":
    main()
