"""What the system exports at two moments, written by the collectors that a running system has: to try queries on."""

from collections import Counter
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from access_builders import Echo, Hands, key_file, made_key
from control_builders import UNDER_WAY, fleet_view
from link_builders import Fleet, member, passed, request, run, settled
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from vllm.config import VllmConfig
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, SchedulerStats

from autoscaling.capacity.corrections import Correction
from autoscaling.decision import Decision, Expected
from autoscaling.ledger.entries import Entry, Figures, Outcome
from autoscaling.live.exported import Metrics
from deployments.access.admission import Admission
from deployments.access.keyring import Keyring
from deployments.access.quotas import Quotas
from deployments.control.wire import ClusterView, NodeView, Overview, Transitions
from deployments.membership import UNKNOWN_SPEED
from deployments.metrics.counting import Asked, KeyUse
from deployments.metrics.fleet_series import exposition
from deployments.metrics.ingress_series import IngressSeries
from deployments.metrics.key_series import KeySeries
from placement import Shape

MODEL = "acme/tiny"


def of_an_ingress() -> tuple[str, str]:
    """Before and after: requests answered, moved, lost and refused on replicas of two shapes."""
    texts: list[str] = []

    async def scenario(fleet: Fleet) -> None:
        registry = CollectorRegistry()
        registry.register(IngressSeries(MODEL, fleet.link, fleet.traffic))
        fleet.change("a", speed=UNKNOWN_SPEED)
        fleet.add(member("b", shape="tp2pp2"))
        await settled()
        texts.append(generate_latest(registry).decode())
        fleet.link.asked.arrivals += 9
        fleet.link.asked.refused.update({429: 2, 503: 1})
        fleet.link.asked.slo.update({"met": 5, "missed": 1})
        for name in ("r1", "r2", "r3", "r4"):
            fleet.link.submit(request(name, unmovable="it must not" if name == "r4" else None))
        await passed(0.2)
        for name in ("r1", "r2", "r3", "r4"):
            fleet.settle(*fleet.where(name), 1, 2)
            fleet.traffic.prefilled(fleet.where(name)[0], computed_tokens=6, cached_tokens=4)
            await passed(0.1)
            fleet.settle(*fleet.where(name), 3, is_finished=name == "r1")
        for name in ("a", "b"):
            fleet.traffic.stepped(name, running=2, waiting=1, kv_usage=0.5, now_s=fleet.link.now())
            fleet.traffic.preempted(name, 1)
        fleet[fleet.where("r4")[0]].break_connection()
        await settled()
        texts.append(generate_latest(registry).decode())

    run(scenario, "a")
    before, after = texts
    return before, after


def of_its_keys() -> tuple[str, str]:
    """Before and after: a key with quotas is used up to them, and somebody tries without a key."""
    registry, asked = CollectorRegistry(), Asked()
    alices = made_key("alice", requests_per_minute=60, tokens_per_minute=6000)[1]
    with TemporaryDirectory() as folder:
        keyring = Keyring(key_file(Path(folder) / "keys", alices), now_s=Hands())
        admission = Admission(Echo(), keyring, Quotas(Hands()))
        registry.register(KeySeries(MODEL, asked.by_key, admission))
        texts = [generate_latest(registry).decode()]
    asked.by_key["alice"] = KeyUse(Counter(answered=5, refused=1), input_tokens=60, output_tokens=40)
    admission.refused.update({("alice", HTTPStatus.TOO_MANY_REQUESTS): 3, ("", HTTPStatus.UNAUTHORIZED): 2})
    texts.append(generate_latest(registry).decode())
    before, after = texts
    return before, after


def of_vllm() -> tuple[str, str]:
    """Before and after one answer, by vLLM's own logger, which an ingress has (fleet_engine, StatLoggerManager)."""
    config: Any = VllmConfig()
    config.model_config = SimpleNamespace(served_model_name=MODEL, max_model_len=2048, is_diffusion=False)
    logger = PrometheusStatLogger(config)
    texts = [generate_latest(REGISTRY).decode()]
    for _ in range(5):
        stats = IterationStats()  # type: ignore[no-untyped-call]
        stats.num_generation_tokens = 20
        stats.inter_token_latencies_iter = [0.02, 0.03]
        stats.finished_requests = [
            FinishedRequestStats(
                finish_reason=FinishReason.STOP,
                request_id="r",
                num_prompt_tokens=100,
                num_generation_tokens=20,
                queued_time=0.1,
                prefill_time=0.2,
                decode_time=0.5,
            )
        ]
        logger.record(SchedulerStats(), stats)
    texts.append(generate_latest(REGISTRY).decode())
    before, after = (_lines_of(text, "vllm:") for text in texts)
    return before, after


def of_the_controller() -> tuple[str, str]:
    """Before and after a repartition that was rolled back, on an island with GPUs that are of no use."""

    def text(version: int, count: int) -> str:
        nodes = (
            NodeView(name="n0", island="island-0", gpus=3, free_gpus=1),
            NodeView(name="n1", island="island-1", gpus=2, free_gpus=0, draining=True),
        )
        view = fleet_view(
            MODEL,
            version=version,
            phase="repartitioning",
            desired_pools={"tp2pp2": 1, "tp2": 1},
            effective_pools={"tp2pp2": 1},
            repartition=UNDER_WAY,
            start_s={"tp2pp2": 40},
            transitions=(Transitions(way="swap", outcome="rolled-back", count=count),),
        )
        return exposition(Overview(cluster=ClusterView(nodes=nodes), fleets=(view,)))[0].decode()

    return text(3, 0), text(4, 2)


def of_the_autoscaler() -> tuple[str, str]:
    """Before and after a change that did worse than predicted."""
    metrics, shape = Metrics(), Shape(tp=2)
    decision = Decision(
        at_s=100.0,
        kind="replicas",
        cause="cheapest",
        target={shape: 2},
        reason="more",
        expected=Expected(horizon_s=60, requests_per_s=3, mean_requests_per_s=2, input_tokens=100, output_tokens=20),
    )
    entry = Entry(
        number=1, at_s=100.0, model=MODEL, mode="auto", version=3, before={shape: 1}, decision=decision,
        state="acted", since_s=100.0,
    )  # fmt: skip
    texts = []
    for _ in range(2):
        metrics.ticked(may_act=True, is_frozen=False)
        metrics.decided(MODEL, decision, entry)
        metrics.waiting(MODEL, 1)
        metrics.blind(MODEL, "stale")
        metrics.failed(MODEL)
        predicted = Figures(requests_per_s=2, gpus=4, attainment=0.99, ttft_s=0.5, tpot_s=0.02)
        realised = Figures(requests_per_s=2, gpus=4, attainment=0.8, ttft_s=2.5, tpot_s=0.03)
        metrics.judged(MODEL, Outcome(verdict="worse", why="it did"))
        metrics.compared(MODEL, predicted, realised)
        metrics.learnt(MODEL, {shape: Correction(step_factor=1.2)})
        texts.append(generate_latest(metrics.registry).decode())
    before, after = texts
    return before, after


def _lines_of(text: str, prefix: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith(prefix))
