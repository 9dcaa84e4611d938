"""Fleets of any size behind a real control API on a port, ingresses that tell their load, what an autoscaler says."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any

import httpx
import uvicorn
from control_builders import CALLERS, FIRST_NUMBER, START, WRITE, MemoryFleet
from fastapi import FastAPI, Response

from deployments.control.api import control_app
from deployments.control.events import EventLog
from deployments.control.gate import known_tokens
from deployments.control.wire import ClusterView, FleetView, NodeView, Overview, RepartitionView, ReplicaView, SeatView
from deployments.ingress import listening_socket
from deployments.metrics.counting import BOUNDS_S
from placement import Shape

DECIDED_S = 1_790_000_000.0
CHAT, CODER, EVIL = "acme/chat-70b", "acme/coder-32b", "<img src=x onerror=window.hurt=1>"


class PageFleet(MemoryFleet):
    """A fleet whose nodes are given."""

    def __init__(self, nodes: tuple[NodeView, ...], *views: FleetView) -> None:
        super().__init__(*views)
        self.nodes = nodes
        self.log = EventLog(capacity=100, first_number=FIRST_NUMBER, now=lambda: START)

    async def read(self) -> Overview:
        found = await super().read()
        return Overview(cluster=ClusterView(nodes=self.nodes), fleets=found.fleets)


def islands(count: int, *, gpus: int = 8) -> tuple[NodeView, ...]:
    """So many islands of one node each."""
    return tuple(NodeView(name=f"node-{i}", island=f"island-{i}", gpus=gpus, free_gpus=0) for i in range(count))


def replica(
    model: str, shape: str, number: int, seats: Iterator[tuple[int, int]], phase: Any = "serving"
) -> ReplicaView:
    places = itertools.islice(seats, Shape.parse(shape).gpus)
    return ReplicaView(
        name=f"{model.split('/')[-1]}-{shape}-{number}",
        shape=shape,
        phase=phase,
        in_phase_s=61.4,
        seats=tuple(
            SeatView(rank=rank, island=f"island-{island}", node=f"node-{island}", slot=slot)
            for rank, (island, slot) in enumerate(places)
        ),
        unfinished_requests=3,
        cause="CUDA error: an illegal memory access was encountered" if phase == "failed" else None,
    )


def view(model: str, replicas: list[ReplicaView], **changes: Any) -> FleetView:
    pools: dict[str, int] = {}
    for one in replicas:
        pools[one.shape] = pools.get(one.shape, 0) + 1
    fields: dict[str, Any] = {
        "model": model,
        "version": 7,
        "phase": "steady",
        "desired_pools": pools,
        "effective_pools": pools,
    }
    fields["ingress"] = f"{model}--ingress--0"
    return FleetView(**fields, replicas=tuple(replicas), **changes)


def small() -> PageFleet:
    """Four islands of eight GPUs; a repartition is under way, one replica has failed, one node will go."""
    seats = itertools.product(range(4), range(8))
    chat = [replica(CHAT, "tp4", 0, seats), replica(CHAT, "tp4", 1, seats, "draining")]
    chat += [replica(CHAT, "tp8", 0, seats, "starting")]
    coder = [replica(CODER, "tp2", number, seats, "failed" if number == 2 else "serving") for number in range(3)]
    now = RepartitionView(
        way="rolling", step=2, steps=5, doing="chat-70b-tp8-0 is starting", announced_stall_s=0.8, running_s=42
    )
    wanted = {"tp8": 2}
    nodes = [*islands(4)]
    nodes[2] = nodes[2].model_copy(update={"free_gpus": 2})
    nodes[3] = nodes[3].model_copy(update={"free_gpus": 8, "draining": True})
    changing = view(CHAT, chat, repartition=now).model_copy(update={"phase": "repartitioning", "desired_pools": wanted})
    short = "node-5 is gone, and nothing else holds a tp2"
    fleet = PageFleet(
        tuple(nodes),
        changing,
        view(CODER, coder, shortfall=short).model_copy(update={"phase": "degraded", "effective_pools": {"tp2": 2}}),
    )
    fleet.log.add("", "controller", "The fleet controller has started.")
    fleet.log.add(CODER, "failure", "CUDA error: an illegal memory access was encountered", replica="coder-32b-tp2-2")
    fleet.log.add(CHAT, "target", "autoscaler wants 2 x tp8: TTFT at p95 would be 1.9 s with what runs")
    fleet.log.add(CHAT, "step", "drain chat-70b-tp4-1: tp8 takes its place", replica="chat-70b-tp4-1")
    fleet.log.add(CHAT, "step", "start chat-70b-tp8-0 on island-1", replica="chat-70b-tp8-0")
    return fleet


def large() -> PageFleet:
    """1,024 GPUs in 128 islands, under three models."""
    seats = itertools.product(range(128), range(8))
    wide = [replica(CHAT, "tp8", number, seats) for number in range(64)]
    half = [replica(CHAT, "tp4", number, seats, "draining" if number % 9 == 4 else "serving") for number in range(48)]
    coder = [
        replica(CODER, "tp2", number, seats, "starting" if number % 11 == 5 else "serving") for number in range(96)
    ]
    tiny = [replica("acme/embed-7b", "tp1", number, seats) for number in range(40)]
    nodes = tuple(
        node.model_copy(update={"free_gpus": 8 if number > 116 else 0}) for number, node in enumerate(islands(128))
    )
    return PageFleet(nodes, view(CHAT, [*wide, *half]), view(CODER, coder), view("acme/embed-7b", tiny))


def nothing() -> PageFleet:
    """Before the first node has joined."""
    fleet = PageFleet(())
    fleet.views = {}
    return fleet


def option(kind: str, pools: dict[str, int], why: str, **changes: float) -> dict[str, Any]:
    known = {"attainment": 0.981, "final_attainment": 0.993, "gpu_s": 14_400.0, "transition_gpu_s": 620.0}
    return {
        "kind": kind,
        "pools": pools,
        "why": why,
        "price": {**known, "transition_s": 74.0, "stall_s": 0.8, **changes},
    }


WON = option("repartition", {"tp8": 2}, "keeps the SLO for the fewest GPU-seconds")
DEARER = option("replicas", {"tp4": 4}, "33 % more GPU-seconds", attainment=0.972, gpu_s=19_200.0, stall_s=0.0)
TOO_SLOW = option("hold", {"tp4": 2}, "misses the 95 % of the SLO", attainment=0.741, transition_s=0.0, stall_s=0.0)
EXPECTED = {"horizon_s": 900.0, "requests_per_s": 6.2, "mean_requests_per_s": 5.1}
GOOD = {"verdict": "as predicted", "why": "97.9 % kept the SLO, 98.2 % were predicted.", "is_regretted": False}


def entry(number: int = 12, **changes: Any) -> dict[str, Any]:
    """A proposal, as an autoscaler posts it."""
    proposal = {
        "number": number,
        "at_s": DECIDED_S + number,
        "state": "waiting",
        "since_s": DECIDED_S + number,
        "kind": "repartition",
        "cause": "cheapest",
        "reason": "6.2 requests/s are expected; 2 x tp8 keeps 98.1 % of them within the SLO for 14,400 GPU-s.",
        "before": {"tp4": 2},
        "target": {"tp8": 2},
        "expected": {**EXPECTED, "input_tokens": 812.0, "output_tokens": 231.0},
        "options": (WON, DEARER, TOO_SLOW),
        "options_left_out": 3,
    }
    return proposal | changes


def posted(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """All that an autoscaler says of one model."""
    slo = {"ttft_s": 1.0, "tpot_s": 0.05, "percentile": 0.95}
    said = {"holder": "autoscaler on head", "mode": "approve", "slo": slo, "entries": entries or (entry(),)}
    return said | changes


def held(number: int, pools: dict[str, int], cause: str, reason: str) -> dict[str, Any]:
    changes = {"target": pools, "cause": cause, "reason": reason, "options": (), "options_left_out": 0}
    return entry(number, state="noted", kind="hold", **changes)


def history() -> tuple[dict[str, Any], ...]:
    """Decisions with their fates, the oldest first."""
    grown = {"kind": "replicas", "before": {"tp4": 1}, "target": {"tp4": 2}}
    return (
        entry(9, state="acted", by="alice", why="Version 6 of the fleet.", outcome=GOOD, **grown),
        entry(10, state="rejected", by="bob", why="not during the demo", cause="least-bad"),
        held(11, {"tp4": 2}, "cooldown", "The last change was 40 s ago; the next may be 300 s after it."),
        entry(12),
    )


def series(model: str, replicas: dict[str, str], *, requests: float = 0.0, **changes: float) -> str:
    """What an ingress tells of replicas (name -> shape); each has served so many requests, all alike."""
    known = {"ttft_s": 0.3, "tpot_s": 0.03, "running": 6.0, "waiting": 1.0, "kv": 0.42, **changes}
    lines = ['vllm:num_requests_running{engine="0"} 3', "# HELP archipelago_arrivals_total Requests."]
    for name, shape in replicas.items():
        labels = f'model="{model}",replica="{name}",shape="{shape}"'
        plain = {
            "running_requests": known["running"],
            "waiting_requests": known["waiting"],
            "kv_cache_usage_ratio": known["kv"],
            "requests_total": requests,
            "generated_tokens_total": requests * 200,
        }
        lines += [f"archipelago_replica_{what}{{{labels}}} {value}" for what, value in plain.items()]
        for what, took_s in (("to_first", known["ttft_s"]), ("per_output", known["tpot_s"])):
            for bound_s in (*BOUNDS_S, inf):
                bound = f'le="{"+Inf" if bound_s == inf else f"{bound_s:g}"}"'
                count = requests if took_s <= bound_s else 0.0
                lines.append(f"archipelago_replica_time_{what}_token_seconds_bucket{{{labels},{bound}}} {count}")
    return "\n".join(lines) + "\n"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An application at a free port; gives its host:port."""
    listener = listening_socket("127.0.0.1", 0, is_shared=False)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


class RunningPage:
    """A control API with the page over `fleet`, and one ingress for each of its models, in use since it began."""

    def __init__(self, fleet: MemoryFleet, stack: ExitStack) -> None:
        self.fleet, self._began_s = fleet, time.monotonic()
        fleet.addresses = {model: (stack.enter_context(serving(self._ingress(model))),) for model in fleet.views}
        self.url = f"http://{stack.enter_context(serving(control_app(fleet, known_tokens(CALLERS))))}"
        self.http = stack.enter_context(httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {WRITE}"}))

    def post(self, model: str, said: dict[str, Any]) -> None:
        self.http.put(f"/v1/decisions/{model}", json=said).raise_for_status()

    def _ingress(self, model: str) -> FastAPI:
        async def metrics() -> Response:
            serving_now = {one.name: one.shape for one in self.fleet.views[model].replicas if one.phase == "serving"}
            return Response(series(model, serving_now, requests=2.0 * (time.monotonic() - self._began_s)))

        app = FastAPI()
        app.add_api_route("/metrics", metrics)
        return app


@contextmanager
def running_page(fleet: MemoryFleet) -> Iterator[RunningPage]:
    with ExitStack() as stack:
        yield RunningPage(fleet, stack)
