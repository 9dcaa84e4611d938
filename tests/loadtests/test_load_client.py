import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from sse_servers import DONE, HEAD, LAST_CHUNK, Piece, answer, chunk, event, obliging, serving, token, usage

from loadtests.client import StreamClient, _chunks, wording
from loadtests.records import Record
from loadtests.scenario import Scenario
from loadtests.schedule import Request

END = [usage(3, 2), chunk(DONE), LAST_CHUNK]
LENGTHS = {"input": {"kind": "fixed", "tokens": 3}, "output": {"kind": "fixed", "tokens": 2}}
# A timer or a scheduler on a busy machine is late, never early (but for the resolution of the clocks).
EARLY_S, LATE_S = 0.005, 2.0
CLIENTS: list[StreamClient] = []


def scenario(url: str, **changes: Any) -> Scenario:
    """One for two tokens of answer, changed."""
    given = {
        "name": "t",
        "url": url,
        "duration_s": 1.0,
        "timeout_s": 20.0,
        "lengths": LENGTHS,
        "arrivals": {"kind": "constant", "rate": 1},
    }
    return Scenario.model_validate({**given, **changes})


@pytest.fixture(autouse=True)
def _close_connections() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def client_of(given: Scenario, *, start_s: float | None = None) -> StreamClient:
    """A client whose times begin now, or at `start_s`."""
    start_s = perf_counter() if start_s is None else start_s
    CLIENTS.append(StreamClient(given, wording(given, "tiny", "", None), worker=0, start_s=start_s))
    return CLIENTS[-1]


def request(number: int = 0, tokens: int = 2) -> Request:
    return Request(id=number, at_s=0.0, class_name=None, input_tokens=3, output_tokens=tokens)


def sent(script: Sequence[Piece], **changes: Any) -> Record:
    """The record of one request to a server that answers by a script."""
    with serving(lambda body: script) as server:
        return client_of(scenario(server.url, **changes)).send(request(), 0.0)


def http(status: str, body: bytes = b"", *headers: str) -> list[Piece]:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
    return [head.encode() + b"\r\n\r\n" + body]


# --- times -----------------------------------------------------------------------------------------------------------


def test_the_first_token_is_timed_when_it_arrives_not_with_the_headers_nor_with_an_empty_event() -> None:
    record = sent([HEAD, 0.1, token(""), 0.1, token("a", 7), 0.3, token("b", 8, reason="length"), *END])
    assert (record.outcome, record.events, record.output_tokens) == ("ok", 2, 2)
    assert record.sent_s is not None
    assert record.first_s is not None
    assert record.last_s is not None
    assert record.longest_gap_s is not None
    assert 0.2 - EARLY_S <= record.first_s - record.sent_s < 0.2 + LATE_S
    assert 0.3 - EARLY_S <= record.longest_gap_s < 0.3 + LATE_S
    assert record.last_s <= record.ended_s


def test_an_event_is_seen_before_the_next_is_sent() -> None:
    """Locust's own `iter_lines` waits until it has 1024 bytes: it would see both at once."""
    script = [HEAD, token("a", 7), 0.5, token("b", 8, reason="length"), *END]
    with serving(lambda body: script) as server:
        record = client_of(scenario(server.url), start_s=0.0).send(request(), 0.0)
        second_sent_s = server.sent_s[2]
    assert record.first_s is not None
    assert record.last_s is not None
    assert record.first_s < second_sent_s <= record.last_s


def test_the_time_to_the_first_token_is_right_to_a_few_milliseconds() -> None:
    with serving(partial(obliging, ttft_s=0.05, tpot_s=0.01)) as server:
        client = client_of(scenario(server.url))
        records = [client.send(request(number, tokens=3), 0.0) for number in range(15)]
    waits = [record.first_s - record.sent_s for record in records if record.first_s and record.sent_s is not None]
    assert len(waits) == 15
    assert 0.05 - EARLY_S <= statistics.median(waits) < 0.06


def test_a_chat_that_begins_with_its_role_has_not_answered_yet() -> None:
    def delta(values: dict[str, object], reason: str | None = None) -> bytes:
        return event({"choices": [{"index": 0, "delta": values, "finish_reason": reason}]})

    role, text = (
        delta({"role": "assistant", "content": ""}),
        [delta({"content": "a"}), delta({"content": "b"}, "length")],
    )
    record = sent([HEAD, role, 0.1, *text, *END], endpoint="chat")
    assert (record.outcome, record.events) == ("ok", 2)
    assert record.first_s is not None
    assert record.sent_s is not None
    assert record.first_s - record.sent_s >= 0.1 - EARLY_S


# --- what goes wrong -------------------------------------------------------------------------------------------------

GOOD = [token("a", 7), token("b", 8, reason="length")]
ERROR = {"error": {"message": "the engine died", "code": 500}}
BODY = json.dumps(ERROR).encode()
DEEP = b"data: " + b"[" * 100_000 + b"\n\n"
ENDLESS_USAGE = chunk(b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1e999}}\n\n')
SECOND_CHOICE = event({"choices": [{"index": 1, "text": "a", "token_ids": []}]})
BAD: list[tuple[str, list[Piece], str, str]] = [
    ("too busy", http("429 Too Many Requests", BODY), "refused", "the engine died"),
    ("nobody ready", http("503 Service Unavailable", b"wait"), "refused", "wait"),
    ("a bad request", http("400 Bad Request", BODY), "http-error", "HTTP 400: the engine died"),
    ("a broken server", http("500 Internal Server Error"), "http-error", "HTTP 500"),
    ("nothing at all", http("204 No Content"), "http-error", "HTTP 204"),
    ("a redirect", http("307 Temporary Redirect", b"", "Location: https://x/"), "redirect", "https://x/"),
    ("an error with 200", http("200 OK", BODY, "Content-Type: application/json"), "error-body", "the engine died"),
    ("a page with 200", http("200 OK", b"<html>\n<p>hello"), "garbage", "<html>"),
    ("an answer that is no stream", http("200 OK", b'{"choices": []}'), "garbage", "choices"),
    ("an empty answer", http("200 OK"), "cut", "[DONE]"),
    ("no HTTP", [b"SSH-2.0-OpenSSH_9.6\r\n"], "garbage", "HTTPParseError"),
    ("closed without a word", [b""], "cut", "closed before"),
    ("closed in the headers", [b"HTTP/1.1 200 OK\r\nContent-"], "cut", "before the end"),
    ("cut in the stream", [HEAD, GOOD[0]], "cut", "before the end"),
    ("ended without [DONE]", [HEAD, *GOOD, usage(3, 2), LAST_CHUNK], "cut", "[DONE]"),
    ("no finish reason", [HEAD, token("a", 7, 8), *END], "cut", "finish reason"),
    ("aborted", [HEAD, token("a", 7, 8, reason="abort"), *END], "error-event", "abort"),
    ("an error in the stream", [HEAD, GOOD[0], event(ERROR), *END], "error-event", "the engine died"),
    ("no usage", [HEAD, *GOOD, chunk(DONE), LAST_CHUNK], "no-usage", "usage"),
    ("a token too few", [HEAD, GOOD[1], *END], "gap-or-repeat", "1 tokens came, usage says 2"),
    ("a token twice", [HEAD, GOOD[0], *GOOD, *END], "gap-or-repeat", "3 tokens came, usage says 2"),
    ("shorter than asked", [HEAD, GOOD[1], usage(3, 1), chunk(DONE), LAST_CHUNK], "gap-or-repeat", "2 were asked for"),
    ("a line without end", [HEAD, *([chunk(b"x" * 65536)] * 200)], "garbage", "a line of more than 4194304 bytes"),
    ("no JSON", [HEAD, chunk(b"data: {oops\n\n"), *GOOD, *END], "garbage", "oops"),
    ("a number", [HEAD, chunk(b"data: 7\n\n"), *END], "garbage", "no part of a completion"),
    ("choices of another kind", [HEAD, event({"choices": [3]}), *END], "garbage", "no part of a completion"),
    ("deeper than JSON is read", [HEAD, chunk(DEEP), *GOOD, *END], "garbage", "not JSON"),
    ("an error body as deep", http("500 Internal Server Error", b"[" * 100_000), "http-error", "HTTP 500: [["),
    ("a page as deep", http("200 OK", b"[" * 100_000), "garbage", "not a stream of events"),
    ("text of another kind", [HEAD, event({"choices": [{"text": ["a"]}]}), *END], "garbage", "no part of a completion"),
    ("endless usage", [HEAD, *GOOD, ENDLESS_USAGE, *END], "garbage", "1e999"),
    ("less than no tokens", [HEAD, *GOOD, usage(3, -2), chunk(DONE), LAST_CHUNK], "garbage", "-2"),
    ("two answers", [HEAD, SECOND_CHOICE, *GOOD, *END], "gap-or-repeat", "a second choice"),
    ("an event that does not end", [HEAD, chunk(b'data: {"choices":\ndata: [\n'), *END], "garbage", "not JSON"),
    (
        "usage of another kind",
        [HEAD, *GOOD, event({"choices": [], "usage": {"prompt_tokens": "x"}})],
        "garbage",
        "usage",
    ),
    ("bytes that are no text", [HEAD, chunk(b'data: {"choices": "\xff\xfe"}\n\n'), *END], "garbage", "not JSON"),
    (
        "half a character at the end",
        [HEAD, chunk('data: {"choices": "漢'.encode()[:-1] + b"\n\n"), *END],
        "garbage",
        "JSON",
    ),
]


@pytest.mark.parametrize(("script", "outcome", "detail"), [pytest.param(*rest, id=name) for name, *rest in BAD])
def test_whatever_goes_wrong_has_a_name_and_a_reason(script: list[Piece], outcome: str, detail: str) -> None:
    record = sent(script, greedy=True)
    assert record.outcome == outcome
    assert detail in str(record.detail)
    assert len(str(record.detail)) <= 400


def _lines(*lines: bytes) -> bytes:
    return chunk(b"".join(line + b"\r\n" for line in (*lines, b"")))


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([_lines(b": ping"), _lines(b"event: x", b"id: 1", b"retry: 9"), *GOOD], id="comments"),
        pytest.param([_lines(b'data:{"choices": [{"text": "a", "token_ids": [7]}]}'), GOOD[1]], id="no space, CRLF"),
        pytest.param(
            [_lines(b'data: {"choices":', b'data: [{"text": "a", "token_ids": [7]}]}'), GOOD[1]], id="two lines of data"
        ),
        pytest.param([event({"choices": []}), *GOOD], id="no choices yet"),
        pytest.param([event({"choices": [{"text": "a", "token_ids": [7]}], "usage": None}), GOOD[1]], id="usage null"),
        pytest.param([event({"choices": [{"text": "a", "token_ids": [7]}], "error": None}), GOOD[1]], id="error null"),
    ],
)
def test_what_event_streams_may_hold_is_no_damage(script: list[Piece]) -> None:
    record = sent([HEAD, *script, *END])
    assert (record.outcome, record.detail, record.events) == ("ok", None, 2)


def test_a_character_cut_between_two_packets_does_no_harm() -> None:
    data = token("漢🏝", 7, 8, reason="length")
    packets: list[Piece] = list(itertools.chain.from_iterable((bytes([byte]), 0.0005) for byte in data))
    assert sent([HEAD, *packets, *END]).outcome == "ok"


def test_nobody_there_is_unreachable() -> None:
    with serving(lambda body: []) as server:
        url = server.url
    record = client_of(scenario(url)).send(request(), 0.0)
    assert (record.outcome, record.status) == ("unreachable", None)


def test_an_answer_that_takes_too_long_is_a_timeout_wherever_it_stops() -> None:
    for script in ([30.0], [HEAD, 30.0], [HEAD, GOOD[0], 30.0]):
        record = sent(script, timeout_s=0.2)
        assert record.outcome == "timeout"
        assert 0.2 - EARLY_S <= record.ended_s < 0.2 + LATE_S


def test_an_answer_that_comes_faster_than_it_is_read_holds_up_nobody_else() -> None:
    body, other = bytearray(), gevent.spawn(lambda: None)
    endless = SimpleNamespace(recv=lambda size: b"x" * size)
    response = SimpleNamespace(_body_buffer=body, _sock=endless, feed=body.extend, message_complete=False)
    next(_chunks(response))
    assert other.ready()


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_request_asks_for_the_stream_its_usage_and_its_length() -> None:
    with serving(obliging) as server:
        client_of(scenario(server.url, greedy=True)).send(request(5), 0.0)
        body = server.bodies[0]
    prompt = body.pop("prompt")
    assert isinstance(prompt, list)
    assert len(prompt) == 3
    assert body == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "max_tokens": 2,
    }


def test_a_chat_is_sent_as_words() -> None:
    with serving(lambda body: [HEAD, *END]) as server:
        given = scenario(server.url, endpoint="chat", ignore_eos=False, token_ids=False)
        client_of(given).send(request(5), 0.0)
        body = server.bodies[0]
    messages = body["messages"]
    assert isinstance(messages, list)
    assert messages[0]["role"] == "user"
    assert len(messages[0]["content"].split()) == 3
    assert {"ignore_eos", "return_token_ids", "temperature", "prompt"}.isdisjoint(body)


def test_connections_are_used_again_after_whole_answers_only() -> None:
    with serving(obliging) as server:
        client = client_of(scenario(server.url))
        assert [client.send(request(number), 0.0).outcome for number in range(5)] == ["ok"] * 5
        assert server.connections == 1
    with serving(lambda body: [HEAD, GOOD[0], 30.0]) as server:
        client = client_of(scenario(server.url, timeout_s=0.1))
        assert [client.send(request(number), 0.0).outcome for number in range(2)] == ["timeout"] * 2
        assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # A server ends idle ones when it likes: a request that crosses with the end is lost, as if the server had cut it.
    monkeypatch.setattr("loadtests.client._IDLE_S", 0.2)
    with serving(obliging) as server:
        client = client_of(scenario(server.url))
        assert client.send(request(0), 0.0).outcome == "ok"
        gevent.sleep(0.3)
        assert client.send(request(1), 0.0).outcome == "ok"
        assert server.connections == 2


def test_equal_texts_have_equal_hashes_however_they_were_cut() -> None:
    one = sent([HEAD, token("ab", 1), token("c", 2, reason="length"), *END], greedy=True)
    same = sent([HEAD, token("a", 1), token("bc", 2, reason="length"), *END], greedy=True)
    other = sent([HEAD, token("ab", 1), token("d", 2, reason="length"), *END], greedy=True)
    assert one.text_sha == same.text_sha != other.text_sha
    assert sent([HEAD, *GOOD, *END]).text_sha is None


def test_the_answer_of_the_test_server_is_whole() -> None:
    assert sent(answer(2, prompt=3)).outcome == "ok"
