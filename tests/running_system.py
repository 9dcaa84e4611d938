"""What the tests of a running system share: a deployed fleet and how to talk to it."""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import httpx
import ray

from deployments import fleet
from deployments.control.client import ControlClient
from deployments.control.wire import FleetView, PoolsTarget

GPU_BYTES = 2**30
MAX_TOKENS = 24
START_TIMEOUT_S = 400
LONG_TOKENS = 1900  # at a few milliseconds each: seconds during which something can happen
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 * 2**20,
}


@dataclass
class Deployed:
    """A fleet that serves, and how to reach it."""

    model: str
    url: str
    controller: Any
    control: ControlClient

    def complete(self, prompt: list[int], **changes: Any) -> dict[str, Any]:
        body = {"model": self.model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True, "logprobs": 0} | changes
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)
        answer.raise_for_status()
        return answer.json()["choices"][0]

    def view(self) -> FleetView:
        return self.control.fleet(self.model)

    def set_pools(self, pools: dict[str, int], **target: Any) -> None:
        """Ask for pools, and wait until they serve."""
        accepted = self.control.set_pools(self.model, PoolsTarget(pools=pools, reason="test", **target))
        until(lambda: self.is_steady(accepted.version), f"{pools} serves", timeout_s=START_TIMEOUT_S)

    def is_steady(self, version: int) -> bool:
        view = self.view()
        assert view.phase != "rolling-back", self.control.events().events[-20:]
        return view.version == version and view.phase == "steady"

    def reports(self) -> dict[str, Any]:
        """What every replica says of itself."""
        return fleet.reports(ray.get(self.controller.names.remote(self.model)))

    def report(self) -> Any:
        """What the only replica says of itself."""
        (report,) = self.reports().values()
        return report


def until(condition: Callable[[], Any], what: str, timeout_s: float = 120, every_s: float = 0.2) -> Any:
    """Poll; the value of the condition once it is true."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)
    return value


def prompts(count: int = 6) -> list[list[int]]:
    """Token ids of varied prompts, some longer than a KV block."""
    rng = random.Random(7)
    return [[rng.randrange(20, 2000) for _ in range(length)] for length in (3, 9, 17, 40, 70, 130)][:count]


def stream(deployed: Deployed, client: httpx.Client) -> AbstractContextManager[httpx.Response]:
    """A long streamed completion."""
    body = {"model": deployed.model, "prompt": prompts(1)[0], "max_tokens": LONG_TOKENS, "temperature": 0}
    return client.stream("POST", f"{deployed.url}/v1/completions", json=body | {"stream": True}, timeout=60)
