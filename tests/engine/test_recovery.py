"""What goes wrong in a running system: clients that leave, workers that die."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from running_system import LONG_TOKENS, Deployed, prompts, stream, until

pytestmark = pytest.mark.engine


def tokens_generated(deployed: Deployed) -> float:
    lines = httpx.get(f"{deployed.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total{"))


def test_a_client_that_disconnects_has_its_generation_aborted(
    plan_of: Callable[..., Any], deploy: Callable[..., Any]
) -> None:
    deployed = deploy(plan_of("tiny-llama", "tp2pp2"))
    before = tokens_generated(deployed)
    with httpx.Client() as client, stream(deployed, client) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert deployed.report().unfinished_requests == 1
    until(lambda: deployed.report().unfinished_requests == 0, "the replica has dropped the request", timeout_s=5)
    assert 0 < tokens_generated(deployed) - before < LONG_TOKENS


def test_a_killed_worker_ends_its_streams_and_the_replica_comes_back(
    plan_of: Callable[..., Any], deploy: Callable[..., Any], expected_tokens: Callable[[str], list[dict[str, Any]]]
) -> None:
    deployed = deploy(plan_of("tiny-llama", "tp2pp2"))
    before = deployed.report()
    with httpx.Client() as client, stream(deployed, client) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(before.found.workers[3].pid, signal.SIGKILL)  # the second stage, on the other node
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "error" in rest[-1]
    refusal = httpx.get(f"{deployed.url}/v1/models")
    assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "5")
    assert "0 of 1 replicas are up" in refusal.json()["error"]["message"]

    until(lambda: httpx.get(f"{deployed.url}/health").status_code == 200, "serving again", timeout_s=240)
    assert deployed.complete(prompts()[0])["token_ids"] == expected_tokens("tiny-llama")[0]["token_ids"]
    after = deployed.report()
    assert {worker.pid for worker in after.found.workers}.isdisjoint(worker.pid for worker in before.found.workers)
