"""What clients are told while a request moves, at every cut: vLLM's application over replicas that write a script.

Which tokens another engine goes on with is for tests/engine/test_resuming.py; here is what the ingress makes of them.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from link_builders import FakeConnection, FakeReplica, Fleet
from transformers import AutoTokenizer
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments import peer
from deployments.engine import packed
from deployments.fleet_engine import openai_app
from deployments.resuming import carried_token_ids
from deployments.tiny_models import cache_root, make_model

MODEL = "tiny-llama"
TEXT = "Twelve islands, zwölf Inseln, 十二の島 🏝 and more"
COURSE = {"island": "Ærø", "knots": 12}
COURSE_CALL = json.dumps({"name": "set_course", "arguments": COURSE}, ensure_ascii=False)
TOOL = {
    "type": "function",
    "function": {
        "name": "set_course",
        "parameters": {
            "type": "object",
            "properties": {"island": {"type": "string"}, "knots": {"type": "integer"}},
            "required": ["island", "knots"],
        },
    },
}
QUESTION = [{"role": "user", "content": "Where to?"}]
STREAMED = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 400}


@dataclass(frozen=True)
class Case:
    """A request, and what the engines write in answer."""

    path: str
    body: Mapping[str, Any]
    script: str


CASES = {
    "characters of several bytes": Case("/v1/completions", {"prompt": "Once", "return_token_ids": True}, TEXT),
    "a stop string": Case("/v1/completions", {"prompt": "Once", "stop": ["の島"]}, TEXT),
    "two choices": Case("/v1/completions", {"prompt": "Once", "n": 2, "seed": 1}, TEXT),
    "an answer that is a schema's": Case(
        "/v1/chat/completions",
        {"messages": QUESTION, "response_format": {"type": "json_object"}},
        json.dumps(COURSE, ensure_ascii=False),
    ),
    "a tool call that is required": Case(
        "/v1/chat/completions",
        {"messages": QUESTION, "tools": [TOOL], "tool_choice": "required"},
        f"<tool_call>\n{COURSE_CALL}\n</tool_call>",
    ),
    "a tool call of a parser": Case(
        "/v1/chat/completions",
        {"messages": QUESTION, "tools": [TOOL], "tool_choice": "auto"},
        "Now.\n<tool_call>\n"
        + json.dumps({"name": "set_course", "arguments": COURSE}, ensure_ascii=False)
        + "\n</tool_call>",
    ),
}


class Writer:
    """Writes a token of the script a step for each request of the connection that is open."""

    def __init__(self, replica: FakeReplica) -> None:
        self.replica = replica
        self.script: list[int] = []
        self._connection: FakeConnection | None = None
        self._taken = 0
        self.written: dict[str, int] = {}  # tokens by wire id
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def take(self) -> None:
        """Read the mail; a new connection begins with nothing."""
        if self.replica.connection is not self._connection:
            self._connection, self._taken, self.written = self.replica.connection, 0, {}
        for batch in self._connection.sent[self._taken :] if self._connection else ():
            self._taken += 1
            for frames in batch.requests:
                request: EngineCoreRequest = self._decoder.decode(frames)
                known = carried_token_ids(request.sampling_params)
                assert known == self.script[: len(known)]
                self.written[request.request_id] = len(known)
            for wire_id in batch.aborts:
                self.written.pop(wire_id, None)

    def step(self) -> None:
        """The next token of each request."""
        outputs = []
        for wire_id, written in list(self.written.items()):
            is_last = written + 1 == len(self.script)
            reason = FinishReason.STOP if is_last else None
            outputs.append(EngineCoreOutput(wire_id, [self.script[written]], finish_reason=reason))
            self.written[wire_id] += 1
            if is_last:
                del self.written[wire_id]
        if outputs:
            step = EngineCoreOutputs(outputs=outputs, scheduler_stats=SchedulerStats(), timestamp=time.monotonic())
            self.replica.say(*packed(self._encoder.encode(step)))


class Server:
    """The application of an ingress with two replicas."""

    def __init__(self, fleet: Fleet, app: FastAPI) -> None:
        self._writers = [Writer(replica) for replica in fleet.replicas.values()]
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ingress", timeout=60)

    async def ask(self, case: Case, script: list[int], cut: int | None) -> list[Any]:
        """What the client is told when the replica dies that has written so many tokens; None: none dies."""
        for writer in self._writers:
            writer.script = script
        asking = asyncio.create_task(self._http.post(case.path, json={**STREAMED, **case.body}))
        steps = 0
        while not asking.done():
            await asyncio.sleep(0)
            for writer in self._writers:
                writer.take()
            if cut is not None and (full := [one for one in self._writers if cut in one.written.values()]):
                full[0].replica.die()
                full[0].replica.come_back()
                cut = None
                continue
            for writer in self._writers:
                writer.step()
            steps += 1
            assert steps < 100_000, "it does not end"
        assert cut is None, "the cut was never reached"
        return list(chunks_of(asking.result()))


def chunks_of(response: httpx.Response) -> Iterator[Any]:
    assert response.status_code == httpx.codes.OK, response.text
    *events, done = [line for line in response.text.split("\n") if line]
    assert done == "data: [DONE]"
    for event in events:
        yield json.loads(event.removeprefix("data: "))


def told(chunks: list[Any]) -> dict[str, Any]:
    """All that a client makes of a stream, however it was cut into pieces."""
    parts: dict[str, Any] = {"usage": [chunk["usage"] for chunk in chunks if chunk.get("usage")]}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index, delta = choice["index"], choice.get("delta") or {"content": choice.get("text")}
        for call in delta.get("tool_calls") or ():
            for what, piece in call["function"].items():
                parts[f"{index} {what}"] = parts.get(f"{index} {what}", "") + (piece or "")
        parts[f"{index} text"] = parts.get(f"{index} text", "") + (delta.get("content") or "")
        parts[f"{index} ids"] = parts.get(f"{index} ids", []) + (choice.get("token_ids") or [])
        parts[f"{index} ends"] = parts.get(f"{index} ends", []) + [choice["finish_reason"]] * bool(
            choice["finish_reason"]
        )
    return parts


@pytest.mark.slow
def test_no_client_is_told_of_a_cut_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "RECONNECT_S", 0.0)
    path = str(make_model(MODEL, cache_root(os.environ)))
    tokenizer = AutoTokenizer.from_pretrained(path)
    serve_args = {
        "model": path,
        "served_model_name": MODEL,
        "dtype": "float32",
        "max_model_len": 2048,
        "tool_call_parser": "hermes",
        "enable_auto_tool_choice": True,
        "chat_template": None,
    }

    async def every_cut() -> None:
        fleet = Fleet("a", "b")
        server = Server(fleet, await openai_app(serve_args, fleet.link, fleet.traffic))
        fleet.update()
        for name, case in CASES.items():
            script = [*tokenizer.encode(case.script, add_special_tokens=False), tokenizer.eos_token_id]
            expected = told(await server.ask(case, script, None))
            check_script(name, expected)
            last = len(script) - 1 if "stop string" not in name else script_tokens_before(tokenizer, script, "の")
            for cut in range(1, last):
                assert told(await server.ask(case, script, cut)) == expected, f"{name}, cut after {cut} tokens"
        fleet.assert_nothing_is_left()
        fleet.link.close()

    asyncio.run(every_cut())


def check_script(name: str, expected: dict[str, Any]) -> None:
    """The undisturbed answer is what it is meant to be."""
    if "tool call" in name:
        assert expected["0 name"] == "set_course", name
        assert json.loads(expected["0 arguments"]) == COURSE, name
    else:
        text = {"a stop string": TEXT.partition("の島")[0], "an answer that is a schema's": None}.get(name, TEXT)
        assert text in (None, expected["0 text"]), name
    assert len(expected["0 ends"]) == len(expected["usage"]) == 1, name


def script_tokens_before(tokenizer: Any, script: list[int], text: str) -> int:
    return next(n for n in range(len(script)) if text in tokenizer.decode(script[:n]))
