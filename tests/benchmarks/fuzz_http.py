"""Bytes that no client should send, at both of our HTTP servers, for as long as asked.

    python tests/benchmarks/fuzz_http.py --minutes 10 [--seed 1]

What must hold all the time: the server answers proper requests; nothing is answered with 500, and no exception gets to
the log; nobody reaches the model without a key; neither memory nor open files grow. Ends with 1 and the bytes that did
it where one of these does not.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from access_builders import Echo, key_file, made_key, served
from control_builders import CALLERS, MODEL, WRITE, MemoryFleet

from deployments.access.admission import OPEN_PATHS
from deployments.access.settings import Access, EdgeLimits
from deployments.control.api import control_app
from deployments.control.gate import known_tokens

LIMITS = EdgeLimits(
    max_connections=256,
    max_header_bytes=8192,
    max_headers=50,
    max_body_bytes=20_000,
    header_timeout_s=1.0,
    body_timeout_s=1.0,
    request_timeout_s=5.0,
)
WORKERS = 24
READ_TIMEOUT_S = 0.2
PROBE_EVERY_S = 0.5
WARM_AFTER = 1000  # answers
MAX_GROWTH_BYTES = 200 * 2**20
NEVER = frozenset({500, 501, 502})

METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"BREW",
    b"get",
    b"",
]
PATHS = [
    *(
        b"/",
        b"/health",
        b"/ping",
        b"//health",
        b"/health/..",
        b"/%68ealth",
        b"/health%00",
        b"/health?x=1",
        b"/health#a",
    ),
    *(b"/v1/models", b"/v1/chat/completions", b"/v1/messages", b"/metrics", b"/tokenize", b"*", b"http://evil/health"),
    *(b"/%", b"/%zz", b"/%ff%fe", b"/\xc3\xa9", b"/\x00", b"/a b", b"/" + b"a" * 9000, b"/../../etc/passwd", b"?", b""),
]
CONTROL_PATHS = [
    *(b"/v1/fleet", b"/v1/fleet/" + MODEL.encode(), b"/v1/fleet/" + MODEL.encode() + b"/pools", b"/v1/events"),
    *(b"/v1/events?after=-1&wait_s=1e400", b"/v1/events?after=9999999999999999999999", b"/v1/events?model=%00"),
    *(b"/v1/audit?limit=1", b"/v1/audit?limit=NaN", b"/v1/audit?limit=" + b"9" * 5000, b"/v1/leases/autoscaler"),
    *(
        b"/v1/leases/%2e%2e",
        b"/v1/leases/x?holder=",
        b"/v1/metrics-targets",
        b"/openapi.json",
        b"/healthz",
        b"/metrics",
    ),
]
SOUND_HEADERS = [
    *(b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Upgrade: websocket", b"Host: y"),
    *(b"Expect: 100-continue", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Content-Type: application/json"),
    *(b"Authorization: Bearer ak-000000000000-" + b"A" * 43, b"Authorization: Bearer", b"Authorization: \xff\xfe"),
    *(b"Authorization: Basic eA==", b"x-api-key: \x80", b"Origin: https://a.test", b"X:", b"Cookie: a=b; a=c"),
    *(b"Content-Type: multipart/form-data; boundary=", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13"),
    *(b"Last-Event-ID: x", b"Accept-Encoding: *;q=0", b"Range: bytes=0-", b"X-Forwarded-For: 1.1.1.1"),
    *(b"HTTP2-Settings: AAMA", b"Access-Control-Request-Method: POST", b"X: " + b"a" * 2000),
]
BROKEN_HEADERS = [
    *(b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: 1e3", b"Content-Length: 99999999999999999999"),
    *(
        b"Content-Length: 30000",
        b"Content-Length: 0",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
    ),
    *(b"X: " + b"a" * 9000, b": x", b"X", b" folded", b"X: a\tb", b"X: \x00", b"Expect: x"),
]
BODIES = [
    *(
        b"",
        b"hello",
        b"{",
        b"[" * 5000,
        b'{"priority": 1e999}',
        b'{"a": "\\ud800"}',
        b"\xff" * 100,
        b"x" * 30_000,
        b"null",
    ),
    *(
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"5;x=y\r\nhello\r\n0\r\nT: t\r\n\r\n",
        b"-1\r\n",
        b"5\r\nhel",
    ),
]
PIECES: Sequence[object] = [
    *({}, [], "", "x" * 3000, 0, -1, 10**30, 1.5, None, True, MODEL, "tp2", "\x00", "\ud800"),
    *({"tp4": 1}, {"tp0": 1}, {"x": -1}, {"tp4": 10**9}, {"tp4": 1.5}, {"name": "a", "holder": "b"}),
]
FIELDS = ["pools", "reason", "way", "if_version", "dry_run", "limits", "lease", "holder", "ttl_s", "floor", "x"]


class BrokenError(Exception):
    """Something that must hold does not."""


@dataclass
class Complaints(logging.Handler):
    """Everything that is logged as an error."""

    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.ERROR)

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


def mangled(choose: random.Random, data: bytes) -> bytes:
    """The same with a few bytes changed, lost, doubled or added."""
    changed = bytearray(data)
    for _ in range(choose.choice((0, 0, 0, 0, 0, 0, 1, 3))):
        at = choose.randrange(len(changed) + 1)
        match choose.randrange(4):
            case 0:
                changed[at:at] = choose.choice((b"\r\n", b"\n", b"\r", b"\x00", b"\xff", b" ", b":", b"\r\n\r\n"))
            case 1:
                del changed[at : at + choose.randrange(1, 10)]
            case 2:
                changed[at:at] = changed[at : at + 20]
            case _:
                changed[at : at + 1] = bytes([choose.randrange(256)])
    return bytes(changed)


def request(choose: random.Random, paths: Sequence[bytes], token: bytes | None) -> bytes:
    """One request, or something like it."""
    method, path = choose.choice(METHODS if choose.random() < 0.2 else METHODS[:7]), choose.choice(paths)
    version = choose.choice((*[b"HTTP/1.1"] * 9, b"HTTP/1.0", b"HTTP/9", b""))
    if token is not None and choose.random() < 0.8:
        document = {name: choose.choice(PIECES) for name in choose.sample(FIELDS, choose.randrange(4))}
        body = json.dumps(document).encode()
        headers = [b"Host: x", b"Authorization: Bearer " + token, b"Content-Type: application/json"]
        headers.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join((b" ".join((choose.choice(METHODS[:5]), path, b"HTTP/1.1")), *headers, b"", body))
    headers = [b"Host: x", *choose.sample(SOUND_HEADERS, choose.choice((0, 1, 2, 4)))]
    if choose.random() < 0.3:
        headers += choose.sample(BROKEN_HEADERS, choose.choice((1, 1, 2, 5)))
    if token is not None:
        headers.append(b"Authorization: Bearer " + token)
    return b"\r\n".join((b" ".join((method, path, version)), *headers, b"", choose.choice(BODIES)))


def parts_of(choose: random.Random, data: bytes) -> Iterator[bytes]:
    """The same in as many writes as it happens to be."""
    cuts = sorted(choose.randrange(len(data) + 1) for _ in range(choose.choice((0, 0, 1, 5))))
    for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        yield data[begin:end]


def exchange(port: int, parts: Sequence[bytes]) -> bytes:
    """Send them, and take what comes back at once."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
        connection.settimeout(READ_TIMEOUT_S)
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                answer += data
    return answer


@dataclass
class Target:
    """One server: what is tried on it, and what is asked properly in between."""

    name: str
    port: int
    paths: Sequence[bytes]
    tokens: Sequence[bytes | None]
    probe: str
    probe_headers: dict[str, str]

    def answers(self) -> bool:
        url = f"http://127.0.0.1:{self.port}{self.probe}"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(url, headers=self.probe_headers, timeout=10, trust_env=False).status_code == 200
        return False


@dataclass
class Attack:
    """What has been tried and what came of it, of all workers together."""

    targets: Sequence[Target]
    until_s: float
    statuses: Counter[str] = field(default_factory=Counter)
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=2 * WORKERS))
    broken: list[str] = field(default_factory=list)

    def work(self, seed: int) -> None:
        """Try one thing after another."""
        choose = random.Random(seed)
        while time.monotonic() < self.until_s and not self.broken:
            target = choose.choice(self.targets)
            made = (
                request(choose, target.paths, choose.choice(target.tokens)) for _ in range(choose.choice((1, 1, 3)))
            )
            tried = b"".join(mangled(choose, one) for one in made)
            self.recent.append(tried)
            try:
                answer = exchange(target.port, list(parts_of(choose, tried)))
            except OSError as error:
                self.broken.append(f"{target.name}: no connection: {error!r}")
                return
            found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
            self.statuses.update(f"{target.name} {status}" for status in found or [0])
            self.broken += [f"{target.name}: status {status} after {tried!r}" for status in found if status in NEVER]


def fuzz(seconds: float, seed: int) -> Counter[str]:
    """Fuzz both servers; returns how often each status was answered. Raises `BrokenError`."""
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    app = Echo()
    key, record = made_key()
    control = control_app(MemoryFleet(), known_tokens(CALLERS))
    try:
        with tempfile.TemporaryDirectory() as directory:
            keys = key_file(Path(directory) / "keys.json", record)
            with (
                served(app, Access(keys=str(keys), limits=LIMITS)) as endpoint_port,
                served(control, Access(limits=LIMITS), is_endpoint=False) as control_port,
            ):
                headers = {"Authorization": f"Bearer {key}"}
                every = [*CONTROL_PATHS, *PATHS]
                targets = [
                    Target("endpoint", endpoint_port, PATHS, [None], "/v1/models", headers),
                    Target("control", control_port, every, [None, WRITE.encode()], "/healthz", {}),
                ]
                attack = Attack(targets, time.monotonic() + seconds)
                with ThreadPoolExecutor(WORKERS) as pool:
                    working = [pool.submit(attack.work, seed * 1000 + worker) for worker in range(WORKERS)]
                    _watch(attack, app, complaints)
                for one in working:
                    one.result()
    finally:
        logging.getLogger().removeHandler(complaints)
    if attack.broken:
        raise BrokenError("\n".join((*attack.broken[:3], "after one of", *map(repr, attack.recent))))
    return attack.statuses


def _watch(attack: Attack, app: Echo, complaints: Complaints) -> None:
    """See that what must hold does."""
    started: tuple[int, int] | None = None
    while time.monotonic() < attack.until_s and not attack.broken:
        time.sleep(PROBE_EVERY_S)
        scopes, app.scopes = app.scopes, []
        attack.broken += [f"reached without a key: {scope['path']}" for scope in scopes if not _may_reach(scope)]
        attack.broken += complaints.found
        attack.broken += [
            f"{one.name}: a proper request is not answered" for one in attack.targets if not one.answers()
        ]
        bytes_now, files_now = _memory_bytes(), _open_files()
        if started is None and sum(attack.statuses.values()) > WARM_AFTER:
            started = bytes_now, files_now
        if started is not None and bytes_now - started[0] > MAX_GROWTH_BYTES:
            attack.broken.append(f"memory has grown by {bytes_now - started[0]} bytes")
        if started is not None and files_now - started[1] > 2 * LIMITS.max_connections:
            attack.broken.append(f"{files_now - started[1]} more files are open")


def _may_reach(scope: dict[str, Any]) -> bool:
    """It is open to all, or it is our own probe, which alone has a key."""
    return scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS" or "api_key" in scope["state"]


def _memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> int:
    """Run for as long as asked; 1 where something broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        statuses = fuzz(arguments.minutes * 60, arguments.seed)
    except BrokenError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name, count in sorted(statuses.items()):
        sys.stdout.write(f"{name.replace(' 0', ' (closed)')}: {count}\n")
    sys.stdout.write(f"{sum(statuses.values())} answers in {arguments.minutes:g} minutes, nothing broke\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
