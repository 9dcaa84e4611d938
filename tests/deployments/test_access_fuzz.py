"""Requests that nobody would make on purpose, or only on purpose."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from access_builders import Echo, Hands, key_file, made_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from fuzz_http import fuzz

from deployments.access.admission import OPEN_PATHS, Admission
from deployments.access.bounds import Bounds
from deployments.access.keyring import Keyring
from deployments.access.quotas import Quotas
from deployments.access.settings import EdgeLimits

KEY, RECORD = made_key()
DIRECTORY = tempfile.TemporaryDirectory()  # for all examples: a file for each would be most of the test
KEYS = key_file(Path(DIRECTORY.name) / "keys.json", RECORD)
LIMITS = EdgeLimits(max_body_bytes=50, request_timeout_s=5.0, body_timeout_s=5.0)
STATUSES = {200, 401, 413, 429}
names = st.sampled_from(
    [b"authorization", b"x-api-key", b"content-length", b"origin", b"access-control-request-method"]
)
values = st.sampled_from(
    [b"", b"5", b"-5", b"51", b"9" * 30, "\N{ARABIC-INDIC DIGIT FIVE}".encode(), f"Bearer {KEY}".encode(), KEY.encode()]
) | st.binary(max_size=20)
paths = st.sampled_from([*sorted(OPEN_PATHS), "/v1/messages", "/v1/models", "/health/", ""]) | st.text(max_size=10)
parts = st.lists(st.binary(max_size=40), max_size=4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    headers=st.lists(st.tuples(names, values), max_size=5),
    path=paths,
    method=st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "BREW"]),
    body=parts,
    leaves=st.booleans(),
)
def test_any_request_gets_one_whole_answer_and_no_key_no_entry(
    headers: list[tuple[bytes, bytes]], path: str, method: str, body: list[bytes], leaves: bool
) -> None:
    app, sent = Echo(), []
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": one, "more_body": True} for one in body]
    messages.append({"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b""})

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    keyring = Keyring(KEYS, now_s=Hands())
    guard = Bounds(Admission(app, keyring, Quotas(Hands())), LIMITS)
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(guard(scope, receive, send))
    if sent:
        start, *rest = sent
        assert start["type"] == "http.response.start"
        assert start["status"] in STATUSES
        assert [message["type"] for message in rest] == ["http.response.body"] * len(rest)
        assert [message.get("more_body", False) for message in rest][-1:] == [False]
        assert KEY.encode() not in b"".join(message["body"] for message in rest)
    else:
        assert leaves, "only who has gone may be left without an answer"
    if app.scopes:
        has_key = any(KEY.encode() in value for _, value in headers)
        assert has_key or path in OPEN_PATHS or method == "OPTIONS"
        assert sum(map(len, body)) <= LIMITS.max_body_bytes or start["status"] == 413


@pytest.mark.slow
def test_twenty_seconds_of_bytes_break_nothing() -> None:
    statuses = fuzz(20.0, seed=20)
    assert sum(statuses.values()) > 100
    assert {"endpoint 401", "endpoint 400", "control 200"} <= statuses.keys()
