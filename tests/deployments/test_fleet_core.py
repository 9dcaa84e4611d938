"""Steps of many replicas as vLLM's front half takes them for one engine's, and what its statistics make of them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from link_builders import Fleet, member, passed, request, run, settled
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, PrefillStats, RequestStateStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackEncoder

from deployments.engine import packed
from deployments.fleet_engine import FleetCore

QUEUED, SCHEDULED, PREEMPTED = EngineCoreEventType
CLOCKS_S = {"a": 1e6, "b": 5.0}  # each machine counts from its own start


class Core:
    """A fleet's core, and replicas that send it steps."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.core = FleetCore(fleet.link, fleet.traffic, speculative=False)

    async def step(
        self, replica: str, *outputs: EngineCoreOutput, stats: SchedulerStats | None = None
    ) -> EngineCoreOutputs:
        """Have a replica send a step, and take it."""
        sent_at_s = CLOCKS_S[replica] + self.fleet.link.now()
        step = EngineCoreOutputs(
            outputs=list(outputs), scheduler_stats=stats or SchedulerStats(), timestamp=sent_at_s, engine_index=0
        )
        self.fleet.link.stepped(replica, packed(MsgpackEncoder().encode(step)))
        return await self.core.get_output_async()

    def output(
        self, replica: str, wire_id: str, *token_ids: int, ago_s: Sequence[float] = (), **more: Any
    ) -> EngineCoreOutput:
        """One with the events of a beginning, so long ago, if there are any."""
        now_s = CLOCKS_S[replica] + self.fleet.link.now()
        events = [EngineCoreEvent(kind, now_s - age_s) for kind, age_s in zip((QUEUED, SCHEDULED), ago_s, strict=False)]
        return EngineCoreOutput(wire_id, list(token_ids), events=events or None, **more)


def play(scenario: Callable[[Core], Awaitable[None]], *names: str) -> None:
    async def opened(fleet: Fleet) -> None:
        await scenario(Core(fleet))

    run(opened, *names)


def prefilled(prompt_tokens: int, cached_tokens: int = 0) -> PrefillStats:
    stats = PrefillStats()
    stats.set(prompt_tokens, cached_tokens, 0)
    return stats


class Watched:
    """What vLLM's statistics make of one request (vllm/v1/engine/output_processor.py, _update_stats_from_output)."""

    def __init__(self) -> None:
        self.request = RequestStateStats(arrival_time=0.0)
        self.seen = IterationStats()  # type: ignore[no-untyped-call]
        self._is_prefilling = True

    def take(self, step: EngineCoreOutputs) -> None:
        (output,) = step.outputs
        lora = LoRARequestStates()
        self.seen.update_from_output(output, step.timestamp, self._is_prefilling, self.request, lora, None)
        self._is_prefilling = False
        if output.finish_reason is not None:
            self.seen.update_from_finished_request(output.finish_reason, "r1", 10, 90, self.request)


def test_a_request_that_moves_between_machines_keeps_its_times() -> None:
    async def scenario(core: Core) -> None:
        vllm = Watched()
        core.fleet.link.submit(request("r1"))
        await passed(0.5)
        vllm.take(await core.step("a", core.output("a", "r1", 7, ago_s=(0.5, 0.3), prefill_stats=prefilled(10))))
        core.fleet.add(member("b"))
        await settled()
        core.fleet.change("a", leaves=True)
        await passed(2.0)
        wire_id = core.fleet.where("r1")[1]
        vllm.take(await core.step("b", core.output("b", wire_id, 8, ago_s=(1.9, 1.0))))
        await passed(1.0)
        last = core.output("b", wire_id, 9, finish_reason=FinishReason.LENGTH)
        vllm.take(await core.step("b", last))
        (ended,) = vllm.seen.finished_requests
        assert ended.queued_time == pytest.approx(0.2)
        assert ended.prefill_time == pytest.approx(0.3)
        assert ended.mean_time_per_output_token == pytest.approx(1.5, abs=0.02)
        assert vllm.seen.inter_token_latencies_iter == pytest.approx([2.0, 1.0], abs=0.02)
        assert vllm.seen.prompt_token_stats.total == 10

    play(scenario, "a")


def test_a_request_that_moves_before_its_first_token_was_queued_where_it_went() -> None:
    async def scenario(core: Core) -> None:
        vllm = Watched()
        core.fleet.link.submit(request("r1"))
        core.fleet.add(member("b"))
        await settled()
        core.fleet.change("a", leaves=True)
        await passed(1.0)
        output = core.output("b", core.fleet.where("r1")[1], 7, ago_s=(0.9, 0.4), finish_reason=FinishReason.LENGTH)
        vllm.take(await core.step("b", output))
        (ended,) = vllm.seen.finished_requests
        assert ended.queued_time == pytest.approx(0.5)

    play(scenario, "a")


def test_prompts_and_preemptions_are_counted_by_replica_and_once() -> None:
    """The scheduler's own numbers go to all ingresses that have a request in the step: here they would count twice."""

    async def scenario(core: Core) -> None:
        for name in ("r1", "r2", "gone"):
            core.fleet.link.submit(request(name))
        core.fleet.link.abort(["gone"])
        stats = SchedulerStats()
        stats.prefix_cache_stats.record(500, 300, preempted=False)  # with those of other ingresses
        again = core.output("a", "r2", 1, prefill_stats=prefilled(20))
        again.events = [
            EngineCoreEvent(PREEMPTED, 1.0),
            EngineCoreEvent(SCHEDULED, 2.0),
            EngineCoreEvent(PREEMPTED, 3.0),
        ]
        step = await core.step(
            "a",
            core.output("a", "r1", 1, prefill_stats=prefilled(10, 4)),
            again,
            core.output("a", "gone", 1, prefill_stats=prefilled(1000)),
            stats=stats,
        )
        assert step.scheduler_stats is not None
        told = step.scheduler_stats.prefix_cache_stats
        assert (told.requests, told.queries, told.hits) == (2, 30, 4)
        (load,) = core.fleet.traffic.loads()
        assert (load.served.prompt_tokens, load.served.prefix_hit_tokens, load.served.preemptions) == (26, 4, 2)

    play(scenario, "a")


def test_what_vllm_says_of_running_requests_is_of_all_replicas() -> None:
    async def scenario(core: Core) -> None:
        for name in ("r1", "r2"):
            core.fleet.link.submit(request(name))
        await settled()
        where = {core.fleet.where(name)[0]: name for name in ("r1", "r2")}
        for replica, running, kv_usage in (("a", 3, 0.7), ("b", 2, 0.2)):
            stats = SchedulerStats(num_running_reqs=running, num_waiting_reqs=1, num_skipped_waiting_reqs=1)
            stats.kv_cache_usage = kv_usage
            step = await core.step(replica, core.output(replica, where[replica], 1), stats=stats)
        assert step.scheduler_stats is not None
        told = step.scheduler_stats
        assert (told.num_running_reqs, told.num_waiting_reqs, told.num_skipped_waiting_reqs) == (5, 4, 0)
        assert told.kv_cache_usage == 0.7
        last = core.output("a", where["a"], 1, finish_reason=FinishReason.STOP)
        step = await core.step("a", last, stats=SchedulerStats(num_running_reqs=2))  # of another ingress
        assert step.scheduler_stats is not None
        assert step.scheduler_stats.num_running_reqs == 2, "those on b; nobody would say here when those on a end"

    play(scenario, "a", "b")
