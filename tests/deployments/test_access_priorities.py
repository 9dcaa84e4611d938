"""Whose request goes first: from what a client and its key say to what a replica is sent."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from access_builders import Hands, key_file, made_key
from fastapi import FastAPI
from link_builders import Fleet
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.access.admission import Admission
from deployments.access.keyring import Keyring
from deployments.access.priorities import current_least_priority, granted
from deployments.access.quotas import Quotas
from deployments.engine import packed
from deployments.fleet_engine import openai_app
from deployments.tiny_models import cache_root, make_model

MODEL = "tiny-llama"
MESSAGES = {"messages": [{"role": "user", "content": "Where to?"}]}
LEAST = {"alice": 0, "batch": 2, "boss": -5}  # by key
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Once", "max_tokens": 1},
    "/v1/chat/completions": {**MESSAGES, "max_completion_tokens": 1},
    "/v1/responses": {"input": "Where to?", "max_output_tokens": 1},
}
CHOICES = {"prompt": ["Once", "Twice"], "max_tokens": 1, "n": 2}
BEAMS = {"prompt": "Once", "max_tokens": 1, "n": 2, "use_beam_search": True}


@pytest.mark.parametrize(
    ("asked", "least", "expected"),
    [(0, 0, 0), (1, 0, 1), (-1, 0, 0), (-(2**63), 0, 0), (0, 2, 2), (2, 2, 2), (7, 2, 7), (-9, -5, -5), (-3, -5, -3)],
)
def test_no_request_goes_before_the_place_of_its_key(asked: int, least: int, expected: int) -> None:
    assert granted(asked, least) == expected


class Server:
    """The application of an ingress, behind its keys or open to anybody, and the one replica that it has."""

    def __init__(self, app: FastAPI, fleet: Fleet, keys: Path) -> None:
        self._replica = fleet["a"]
        self._taken = 0
        self._admission = Admission(app, Keyring(keys, now_s=Hands()), Quotas(Hands()))
        self._app = app

    async def priorities(self, path: str, body: dict[str, Any], key: str | None, header: str | None = None) -> set[int]:
        """Those that the replica is sent for one HTTP request, which it answers with a token each."""
        headers = ({} if key is None else {"Authorization": f"Bearer {key}"}) | (
            {} if header is None else {"X-Vllm-Priority": header}
        )
        transport = httpx.ASGITransport(app=self._app if key is None else self._admission)
        found: set[int] = set()
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress", timeout=60) as http:
            asking = asyncio.create_task(http.post(path, json={"model": MODEL, **body}, headers=headers))
            while not asking.done():
                await asyncio.sleep(0)
                found |= self._answer()
        assert asking.result().status_code == 200, asking.result().text
        return found

    def _answer(self) -> set[int]:
        batches, self._taken = self._replica.sent[self._taken :], len(self._replica.sent)
        decode = MsgpackDecoder(EngineCoreRequest).decode
        requests: list[EngineCoreRequest] = [decode(frames) for batch in batches for frames in batch.requests]
        if requests:
            step = EngineCoreOutputs(
                outputs=[token_for(one) for one in requests], scheduler_stats=SchedulerStats(), timestamp=0.0
            )
            self._replica.say(*packed(MsgpackEncoder().encode(step)))
        return {one.priority for one in requests}


def token_for(request: EngineCoreRequest) -> EngineCoreOutput:
    assert request.sampling_params is not None
    is_beam = request.sampling_params.logprobs is not None
    likely = LogprobsLists(np.array([[5, 6]]), np.array([[-0.5, -1.0]]), np.array([1])) if is_beam else None
    return EngineCoreOutput(request.request_id, [5], new_logprobs=likely, finish_reason=FinishReason.LENGTH)


def test_what_a_replica_is_sent_is_never_before_the_place_of_the_key(tmp_path: Path) -> None:
    made = {name: made_key(name, priority=least) for name, least in LEAST.items()}
    keys: dict[str | None, str | None] = {None: None, **{name: key for name, (key, _) in made.items()}}
    file = key_file(tmp_path / "keys.json", *(record for _, record in made.values()))
    serve_args = {
        "model": str(make_model(MODEL, cache_root(os.environ))),
        "served_model_name": MODEL,
        "dtype": "float32",
        "max_model_len": 2048,
    }

    async def scenario() -> None:
        fleet = Fleet("a")
        server = Server(await openai_app(serve_args, fleet.link, fleet.traffic), fleet, file)
        fleet.update()
        for path, body in ENDPOINTS.items():
            for name, asked, expected in (
                (None, None, 0),
                (None, 3, 3),
                (None, -1_000_000, 0),
                ("alice", -1_000_000, 0),
                ("batch", None, 2),
                ("batch", -1_000_000, 2),
                ("batch", 7, 7),
                ("boss", None, 0),
                ("boss", -1_000_000, -5),
            ):
                told = body if asked is None else {**body, "priority": asked}
                assert await server.priorities(path, told, keys[name]) == {expected}, (path, name, asked)
                if asked is not None:
                    found = await server.priorities(path, body, keys[name], header=str(asked))
                    assert found == {expected}, (path, name, asked)
        anthropic = {**MESSAGES, "max_tokens": 1, "priority": -1}
        assert await server.priorities("/v1/messages", anthropic, keys["batch"]) == {2}
        for body in (CHOICES, BEAMS):
            assert await server.priorities("/v1/completions", {**body, "priority": -1}, keys["alice"]) == {0}
            assert await server.priorities("/v1/completions", {**body, "priority": -1}, keys["batch"]) == {2}
        fleet.assert_nothing_is_left()
        fleet.link.close()

    asyncio.run(scenario())
    assert current_least_priority.get() == 0
