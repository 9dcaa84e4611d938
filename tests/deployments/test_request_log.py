"""What is told of a request that went through an ingress: to its client, to the log, and to the SLO's counters."""

import asyncio
import json
from typing import Any

import pytest
from link_builders import member, passed, settled
from telemetry_builders import MODEL, NOW, PATH, PROMPT, Ingress, play
from vllm.v1.engine import FinishReason

from deployments.config import parse_config
from deployments.config_messages import ConfigError
from deployments.routing import Limits
from deployments.telemetry.journey import Journey, Leg
from loadtests.client import REPLICA_HEADER


def test_a_request_that_moves_is_one_line_with_all_that_became_of_it() -> None:
    async def scenario(ingress: Ingress) -> None:
        answering = asyncio.ensure_future(ingress.post(x_request_id="mine-1"))
        await passed(0.5)
        await ingress.step("a", "r0", 7)
        ingress.fleet.add(member("b", shape="tp4"))
        await settled()
        ingress.fleet.change("a", leaves=True)
        await settled()
        await passed(0.1)
        await ingress.step("b", "r0~1", 8, 9, finish=FinishReason.LENGTH)
        answer = await answering
        assert answer.headers[REPLICA_HEADER] == "a"
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["content-type"] == "text/event-stream"
        assert dict(ingress.scopes[0]["headers"])[b"x-request-id"] == b"mine-1"
        line = ingress.line
        assert line.pop("ttft_ms") == pytest.approx(500, abs=5)
        assert line.pop("tpot_ms") == pytest.approx(50, abs=5)
        assert line.pop("duration_ms") == pytest.approx(600, abs=5)
        assert line == {
            "at": NOW,
            "event": "request",
            "request_id": "mine-1",
            "model": MODEL,
            "path": PATH,
            "status": 200,
            "finish_reason": "length",
            "input_tokens": len(PROMPT),
            "output_tokens": 3,
            "replica": "a",
            "shape": "tp4",
            "migrations": 1,
            "key": None,
        }
        assert ingress.fleet.link.asked.slo == {"met": 1}

    play(scenario, "a")


def test_nothing_of_a_prompt_or_an_answer_is_written() -> None:
    async def scenario(ingress: Ingress) -> None:
        answering = asyncio.ensure_future(ingress.post(authorization="Bearer key-of-alice"))
        await settled()
        await ingress.step("a", "r0", 4711, finish=FinishReason.STOP)
        await answering
        assert not [word for word in ("secret", "alice", "4711") if word in ingress.lines[0]]

    play(scenario, "a")


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "line\x0bbreak", "umläut"])
def test_an_id_that_would_spoil_a_header_or_a_log_is_replaced(given: str) -> None:
    async def scenario(ingress: Ingress) -> None:
        answering = asyncio.ensure_future(ingress.client.post(PATH, headers=[(b"x-request-id", given.encode())]))
        await settled()
        await ingress.step("a", "r0", 7, finish=FinishReason.STOP)
        made = (await answering).headers["x-request-id"]
        assert len(made) == 32
        assert ingress.line["request_id"] == made

    play(scenario, "a")


def test_headers_wait_for_the_first_token_and_no_longer() -> None:
    async def scenario(ingress: Ingress) -> None:
        told: list[Any] = []

        async def send(message: Any) -> None:
            told.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "state": {"api_key": "alice"}}
        answering = asyncio.ensure_future(ingress.app(scope, receive, send))
        await settled()
        assert told == []
        await ingress.step("a", "r0", 7)
        assert [message["type"] for message in told] == ["http.response.start", "http.response.body"]
        assert told[1]["body"] == b"[7]"
        await ingress.step("a", "r0", 8, finish=FinishReason.STOP)
        await answering
        assert [message.get("body") for message in told[2:]] == [b"[8]"]
        assert ingress.line["key"] == "alice"

    play(scenario, "a")


def test_a_client_that_leaves_is_an_abort_and_a_miss_only_where_it_had_waited_too_long() -> None:
    async def scenario(ingress: Ingress) -> None:
        for waited_s, slo in ((0.2, {}), (3.0, {"missed": 1})):
            answering = asyncio.ensure_future(ingress.post())
            await passed(waited_s)
            answering.cancel()
            await settled()
            line = json.loads(ingress.lines.pop())
            assert (line["finish_reason"], line["status"], line["ttft_ms"]) == ("abort", None, None)
            assert ingress.fleet.link.asked.slo == slo

    play(scenario, "a")


def test_refused_and_lost_requests_are_lines_and_misses() -> None:
    async def scenario(ingress: Ingress) -> None:
        ingress.fleet.traffic.stepped("a", running=64, waiting=9, kv_usage=0.0, now_s=0.0)
        refused = await ingress.post()
        assert refused.status_code == ingress.line["status"] == 429
        assert ingress.line["request_id"] == refused.headers["x-request-id"]
        ingress.lines.clear()
        ingress.fleet.traffic.stepped("a", running=0, waiting=0, kv_usage=0.0, now_s=0.0)
        answering = asyncio.ensure_future(ingress.post())
        await settled()
        ingress.fleet["a"].die()
        await passed(ingress.fleet.membership.hold_s + 5)
        await answering
        assert ingress.line["finish_reason"] == "error"
        assert ingress.fleet.link.asked.slo == {"missed": 2}

    play(scenario, "a", limits=Limits(max_queued_requests=4))


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", ""])
def test_an_endpoint_for_traces_that_is_no_address_is_refused_by_name(endpoint: str) -> None:
    document = f"models: [{{source: tiny-llama}}]\ntelemetry: {{otlp_endpoint: '{endpoint}'}}"
    with pytest.raises(ConfigError) as refused:
        parse_config(document)
    (problem,) = refused.value.problems
    assert problem.startswith(f"telemetry.otlp_endpoint: {endpoint!r} is not accepted; ")
    assert "begins with http:// or https://" in problem


def journey(*legs: Leg, **changes: Any) -> Journey:
    usual = {"request_id": "r", "path": PATH, "arrived_at_s": 10.0, "status": 200, "is_complete": True}
    return Journey(**{**usual, "ended_at_s": 13.0, "legs": {str(i): leg for i, leg in enumerate(legs)}, **changes})


def leg(tokens: int, first_at_s: float = 10.5, last_at_s: float = 10.5, **changes: Any) -> Leg:
    usual = {"wire_id": "w", "finish_reason": "stop"}
    found = Leg(**{**usual, **changes})
    found.output_tokens, found.first_at_s, found.last_at_s = tokens, first_at_s, last_at_s
    return found


@pytest.mark.parametrize(
    ("one", "slo", "outcome"),
    [
        (journey(leg(11, 10.5, 11.4), first_at_s=10.5), "met", "answered"),
        (journey(leg(11, 10.5, 11.6), first_at_s=10.5), "missed", "answered"),  # 110 ms a token
        (journey(leg(11, 10.5, 11.4), leg(11, 10.5, 11.6), first_at_s=10.5), "missed", "answered"),  # the slower choice
        (journey(leg(1, 11.5, 11.5), first_at_s=11.5), "missed", "answered"),  # its only token came too late
        (journey(status=400), None, "invalid"),
        (journey(status=404), None, "invalid"),
        (journey(status=429), "missed", "refused"),
        (journey(status=503), "missed", "refused"),
        (journey(status=500), "missed", "failed"),
        (journey(leg(1), first_at_s=10.5, is_failed=True), "missed", "failed"),
        (journey(leg(1), first_at_s=10.5, is_complete=False), None, "abandoned"),
        (journey(leg(1, 11.5), first_at_s=11.5, is_complete=False), "missed", "abandoned"),  # after it had waited
        (journey(status=0, is_complete=False, ended_at_s=10.5), None, "abandoned"),
    ],
)
def test_a_request_keeps_the_slo_when_its_client_got_all_of_it_in_time(
    one: Journey, slo: str | None, outcome: str
) -> None:
    assert one.slo(ttft_s=1.0, tpot_s=0.1) == slo
    assert one.outcome == outcome


def test_choices_share_a_prompt_and_prompts_add_up() -> None:
    one = journey()
    for engine_id, prompt in (("0_r", PROMPT), ("1_r", PROMPT), ("of another prompt", [1, 2])):
        one.sent(engine_id, engine_id, prompt)
    one.sent("1_r", "1_r~1", PROMPT)  # it has moved
    assert one.input_tokens == len(PROMPT) + 2
    assert journey(leg(2), leg(3)).output_tokens == 5


@pytest.mark.parametrize(
    ("reasons", "reason"),
    [(("stop", "length"), "length"), (("stop", ""), "stop"), (("length", "error"), "error"), ((), "")],
)
def test_the_worst_end_of_several_choices_is_told(reasons: tuple[str, ...], reason: str) -> None:
    assert journey(*(leg(1, finish_reason=each) for each in reasons)).finish_reason == reason
