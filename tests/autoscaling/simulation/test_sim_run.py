"""Whole runs of small fleets: every request ends once, the same seed the same way, and changes do what they say."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fleet_runs import PLAIN, TP2, TP4, TP8, Scripted, even, plain, scenario, site
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.capacity.seating import islands_of
from autoscaling.capacity.transitions import transition
from autoscaling.observation import Blind, Observation, gpus_of
from autoscaling.simulation.fleet import Fleet
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.records import records_of
from autoscaling.simulation.result import Result
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import ScenarioError
from autoscaling.simulation.synthetic import Load, constant, made
from autoscaling.simulation.traces import Trace, TraceError
from placement import Lengths, Shape, Slo
from placement.cost.simulation import lengths, poisson_arrivals, simulate

# 8 at once of 100 + 11 tokens: about 8 / 0.11 s = 70 requests/s of 11 tokens.
NARROW = {"max_running": 8}


def _run(trace: Trace, script: dict[float, Any] | None = None, seed: int = 0, **changes: Any) -> Result:
    engine_for = changes.pop("engine_for", plain())
    return run(trace, scenario(**changes), Scripted(script=script or {}), seed, engine_for=engine_for)


def _random(seed: int, count: int = 300) -> Trace:
    generator = np.random.default_rng(seed)
    return Trace(
        arrivals_s=poisson_arrivals(3.0, count, generator),
        input_tokens=lengths(Lengths(mean_tokens=300, spread=1), count, generator),
        output_tokens=lengths(Lengths(mean_tokens=100, spread=1), count, generator),
    )


class TestEveryRequest:
    def test_a_lone_request_is_timed_as_worked_out_by_hand(self) -> None:
        result = _run(even(0.1, 100))
        assert (result.arrivals, result.good) == (10, 10)
        assert result.ttft_s.p99 == pytest.approx(0.001)
        assert result.tpot_s.p99 == pytest.approx(0.010)

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 10**6),
        room=st.sampled_from([1500.0, 1e6]),
        changes=st.dictionaries(
            st.sampled_from([15.0, 30.0, 45.0, 75.0]),
            st.sampled_from([{TP4: 2}, {TP8: 1}, {TP2: 4}, {TP4: 1, TP2: 2}, {TP2: 1}]),
            max_size=3,
        ),
    )
    def test_each_ends_in_one_way_whatever_happens(self, seed: int, room: float, changes: dict[float, Any]) -> None:
        script = dict(sorted(changes.items()))
        result = _run(_random(seed), script, engine_for=plain(room_tokens=room, max_running=8), max_ttft_s=5.0)
        assert result.good + result.late + result.refused + result.unfinished == result.arrivals == 300
        assert max(map(sum, zip(*result.series.gpus.values(), strict=True))) <= 8 + 1e-9

    def test_the_seed_decides(self) -> None:
        script = {30.0: {TP4: 2}, 60.0: {TP8: 1}}
        texts = [_run(_random(1), script, seed, start_spread=0.5).text() for seed in (1, 1, 2)]
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]

    def test_one_replica_does_what_the_planners_simulation_does(self) -> None:
        trace = _random(7, 2000)
        ours = _run(trace, slo=Slo(ttft_s=0.02, tpot_s=0.012), engine_for=plain(max_running=1024))
        theirs = simulate(
            PLAIN,
            trace.arrivals_s,
            trace.input_tokens,
            trace.output_tokens,
            room_tokens=1e6,
            max_running=1024,
            slo=Slo(ttft_s=0.02, tpot_s=0.012),
        )
        assert ours.attainment == pytest.approx(theirs.attainment, abs=0.002)
        assert ours.ttft_s.p99 == pytest.approx(theirs.ttft_s.p99_s, rel=0.02)
        assert ours.tpot_s.p99 == pytest.approx(theirs.tpot_s.p99_s, rel=0.02)

    def test_with_the_cost_model_too(self) -> None:
        load = Load(
            requests_per_s=constant(3.0), input_tokens=constant(1000), output_tokens=constant(200), duration_s=300
        )
        trace = made(load, seed=1)
        policy = POLICIES["static"](scenario(), trace)
        model = run(trace, scenario(), policy, 0)
        slower = run(trace, scenario(truth={TP4: 1.5}), policy, 0)
        assert model.attainment > 0.99
        assert slower.tpot_s.p50 > 1.4 * model.tpot_s.p50

    def test_one_that_would_wait_too_long_is_refused(self) -> None:
        # 820,000 prompt tokens come a second, and 100,000 are read.
        result = _run(even(100, 30, prompt=8192, answer=2), max_ttft_s=2.0)
        assert result.refused > 0.8 * result.arrivals
        assert result.unfinished == 0
        assert result.ttft_s.p99 < 2.5
        assert result.attainment < 0.2

    def test_a_client_leaves_when_its_patience_is_over(self) -> None:
        result = _run(
            even(100, 30, prompt=8192, answer=2), max_ttft_s=math.inf, max_queued_requests=10**6, patience_s=5.0
        )
        assert result.refused == 0
        assert result.unfinished > 0.5 * result.arrivals

    def test_a_trace_without_requests_is_told(self) -> None:
        empty = Trace(arrivals_s=np.empty(0), input_tokens=np.empty(0), output_tokens=np.empty(0))
        with pytest.raises(TraceError, match="no requests"):
            _run(empty)


class TestChanges:
    def test_a_new_replica_costs_gpus_at_once_and_serves_after_its_start(self) -> None:
        result = _run(even(100, 600), {60.0: {TP4: 2}}, engine_for=plain(**NARROW))
        gpus = result.series.gpus["tp4"]
        assert gpus[0] == 4
        assert gpus[1:] == (8,) * (len(gpus) - 1)
        kept = [share for share in result.series.attainment if share is not None]
        assert max(kept[:2]) < 0.5 < 0.9 < min(kept[4:]), "70 of 100 a second, then all"
        assert result.actions == {"up": 1, "down": 0, "repartition": 0}

    def test_gpu_hours_are_those_held(self) -> None:
        result = _run(even(1, 3600), {900.0: {TP4: 2}, 1800.0: {TP4: 1}})
        # The second is held from 900 s until it has drained and stopped; the last arrival is at 3600 s.
        assert result.gpu_hours == pytest.approx((3600 * 4 + (900 + 5 + 1) * 4) / 3600, abs=0.002)
        assert result.actions == {"up": 1, "down": 1, "repartition": 0}
        assert result.reversals == 0

    def test_a_change_taken_back_soon_is_a_reversal(self) -> None:
        result = _run(even(1, 1200), {300.0: {TP4: 2}, 600.0: {TP4: 1}})
        assert result.reversals == 1

    def test_a_swap_holds_streams_and_loses_none(self) -> None:
        result = _run(even(2, 300, answer=1001), {60.0: {TP8: 1}}, slo=Slo(ttft_s=1.0, tpot_s=0.02))
        assert result.unfinished == result.refused == 0
        assert [one.way for one in result.decisions if one.accepted and one.way != "none"] == ["swap"]
        assert result.moved_requests == pytest.approx(20, abs=2), "10 s of answers at 2 a second"
        assert result.longest_stall_s == pytest.approx(65, abs=0.5), "5 s to free the GPUs, 60 s to start, and reading"
        assert result.recomputed_tokens == pytest.approx(20 * 600, rel=0.2), "the prompt, and half of the answer"
        assert result.series.attainment[3] == 1.0

    def test_rolling_keeps_some_serving(self) -> None:
        result = _run(even(20, 400), {60.0: {TP4: 2}}, initial={TP2: 4}, slo=Slo(ttft_s=1.0))
        assert [one.way for one in result.decisions if one.way != "none"] == ["rolling"]
        assert result.attainment == 1.0
        assert result.series.gpus["tp4"][-1] == 8
        assert result.longest_stall_s == 0

    def test_a_drain_that_takes_too_long_moves_its_streams(self) -> None:
        result = _run(even(0.5, 200, answer=10_001), {60.0: {TP4: 1}}, initial={TP4: 2})
        assert result.moved_requests > 5
        assert result.unfinished == 0
        assert result.longest_stall_s < 1

    def test_raising_the_target_again_does_not_restart_what_starts(self) -> None:
        one_at_a_time = plain(max_running=1)  # 9 a second
        result = _run(
            even(15, 300),
            {30.0: {TP2: 2}, 75.0: {TP2: 3}},
            initial={TP2: 1},
            engine_for=one_at_a_time,
            max_ttft_s=0.5,
        )
        kept = [share for share in result.series.attainment if share is not None]
        assert kept[0] < 0.7
        assert kept[1] > kept[0] + 0.1, "the second serves from 90 s on"

    @pytest.mark.parametrize(
        ("initial", "target", "machines"),
        [
            ({TP4: 1}, {TP4: 2}, 1),
            ({TP4: 2}, {TP4: 1}, 1),
            ({TP4: 2}, {TP8: 1}, 2),
            ({TP2: 4}, {TP4: 2}, 1),
            ({TP4: 2}, {TP8: 1}, 1),
            ({TP8: 1}, {TP2: 3}, 1),
        ],
    )
    def test_changes_go_as_they_are_priced(self, initial: Any, target: Any, machines: int) -> None:
        settings = scenario(initial=initial, site=site(machines), max_gpus=8 * machines)
        priced = transition(
            initial,
            target,
            gpus=8 * machines,
            times=settings.times,
            floor=0.0,
            islands=islands_of(settings.site.cluster),
        )
        assert priced is not None
        # Streams that never end, so that drains take as long as they may.
        result = run(even(0.2, 600, answer=60_000), settings, Scripted(script={60.0: target}), 0, engine_for=plain())
        assert [one.way for one in result.decisions if one.kind != "hold"] == [priced.way]
        held_gpu_s = 600 * gpus_of(target) + sum(
            (stage.gpus - gpus_of(target)) * (after.from_s - stage.from_s) for stage, after in pairwise(priced.stages)
        )
        ours_gpu_s = result.gpu_hours * 3600 - 60 * gpus_of(initial) + 60 * gpus_of(target)
        assert ours_gpu_s == pytest.approx(held_gpu_s, rel=0.02)

    @pytest.mark.parametrize(
        ("target", "why"),
        [
            ({TP8: 2}, "16 GPUs are more than the 8"),
            ({}, "at least one replica"),
            ({Shape(tp=16): 1}, "16 GPUs are more"),
            ({Shape(tp=1): 1}, "not among"),
        ],
    )
    def test_what_cannot_be_had_is_refused_and_the_old_target_stays(self, target: Any, why: str) -> None:
        records = records_of(even(1, 10))
        fleet = Fleet(scenario(), records, plain(), (100.0, 100.0), np.random.default_rng(0))
        way, answer = fleet.want(target, 1.0)
        assert (way, why in answer) == ("none", True), answer
        assert fleet.desired == {TP4: 1}

    def test_initial_pools_that_do_not_fit_are_told(self) -> None:
        with pytest.raises(ScenarioError, match=r"max_gpus is 8; .* take 12"):
            scenario(initial={TP4: 3})

    def test_islands_bound_what_can_start(self) -> None:
        # 2 x tp4 and 4 x tp2 fill both machines, so that a tp8 needs one of them whole: never 16 GPUs at once.
        result = _run(
            even(5, 400), {30.0: {TP8: 2}}, site=site(2), max_gpus=16, initial={TP4: 2, TP2: 4}, slo=Slo(ttft_s=100.0)
        )
        assert result.series.gpus["tp8"][-1] == 16
        assert result.attainment == 1.0


class TestObservations:
    def _seen(self, trace: Trace, **changes: Any) -> list[Observation | Blind]:
        policy = Scripted(script={})
        run(trace, scenario(**changes), policy, 0, engine_for=plain())
        return policy.seen

    def test_they_are_as_old_as_the_scrape(self) -> None:
        trace = Trace(
            arrivals_s=np.concatenate([np.arange(1, 101), 100 + np.arange(1, 501) / 10]),
            input_tokens=np.full(600, 200.0),
            output_tokens=np.full(600, 5.0),
        )
        seen = {one.at_s: one for one in self._seen(trace) if isinstance(one, Observation)}
        assert seen[105.0].demand.requests_per_s == pytest.approx(1.0), "of 30 to 90 s"
        assert seen[120.0].demand.requests_per_s == pytest.approx((55 + 50) / 60), "of 45 to 105 s"
        assert seen[120.0].demand.input_tokens == Lengths(mean_tokens=200, spread=0)
        assert seen[135.0].history.end_s == 120
        assert seen[135.0].history.requests_per_s.tolist() == pytest.approx([59 / 60, (41 + 199) / 60])
        assert seen[135.0].history.output_tokens_per_s[0] == pytest.approx(5 * 59 / 60)

    def test_nothing_is_known_before_the_first_answer(self) -> None:
        first = self._seen(even(1, 60))[0]
        assert isinstance(first, Observation)
        assert (first.ttft_s, first.tpot_s, first.attainment) == (None, None, None)
        assert first.demand.requests_per_s == 0

    def test_an_outage_is_blind(self) -> None:
        seen = self._seen(even(1, 120), outages=((40.0, 70.0),))
        assert [one.at_s for one in seen if isinstance(one, Blind)] == [45.0, 60.0]

    def test_starting_replicas_and_refusals_are_seen(self) -> None:
        policy = Scripted(script={15.0: {TP4: 2}})
        run(even(100, 60, prompt=8192, answer=2), scenario(max_ttft_s=2.0), policy, 0, engine_for=plain())
        last = policy.seen[-1]
        assert isinstance(last, Observation)
        assert last.fleet.starting == {TP4: 1}
        assert last.fleet.changing
        assert last.demand.requests_per_s > 90  # most of them refused
        assert last.attainment is not None
        assert last.attainment < 0.3
        assert last.pools[0].shape == TP4
        assert last.pools[0].waiting > 0
        assert gpus_of(last.fleet.serving) == 4


class TestResult:
    def test_settling_is_left_out(self) -> None:
        result = _run(even(1, 600), settling_s=300.0)
        assert result.arrivals == 301
        assert result.gpu_hours == pytest.approx(4 * 300 / 3600)

    def test_holds_are_merged_and_decisions_kept(self) -> None:
        result = _run(even(1, 300), {60.0: {TP4: 2}})
        assert [(one.kind, one.ticks) for one in result.decisions] == [("hold", 3), ("replicas", 1), ("hold", 16)]

    def test_classes_are_told_apart(self) -> None:
        trace = Trace(
            arrivals_s=np.array([1.0, 2.0, 3.0, 4.0]),
            input_tokens=np.array([100.0, 5000, 100, 5000]),
            output_tokens=np.full(4, 2.0),
            classes=("short", "long", "short", "long"),
        )
        result = _run(trace, slo=Slo(ttft_s=0.01))
        assert result.attainment_by_class == {"short": 1.0, "long": 0.0}

    def test_json_has_no_infinities(self) -> None:
        result = _run(even(100, 30, prompt=8192, answer=2), max_ttft_s=math.inf, patience_s=5.0)
        assert result.ttft_s.p99 == math.inf
        assert result.as_json()["ttft_s"]["p99"] is None
