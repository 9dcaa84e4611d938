"""The simulation against hand-made schedules, the fluid model and measured closed loops."""

import csv
import math
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_data import measured

from placement.calibration.rows import case_of, read_rows
from placement.clusters.machines import cluster_of
from placement.clusters.terrain import Region, regions
from placement.cost.constants import shipped
from placement.cost.prediction import Question, factors_for, predict, work_in
from placement.cost.serving import Demand, Served, open_loop
from placement.cost.simulation import (
    Tails,
    answerable_per_s,
    lengths,
    poisson_arrivals,
    simulate,
    simulate_clients,
    step_table,
)
from placement.cost.simulation_replica import Replica, Requests, StepTable
from placement.cost.step import last_stage_s, lookup, overhead_s, step
from placement.cost.step_table import table_of
from placement.cost.work import Array, stack
from placement.models import catalogue
from placement.models.model import ModelSpec
from placement.shape import Shape
from placement.workload import Lengths, Slo, Workload, WorkloadError

# A pass takes 10 ms with decodes, and 1 ms more for each 100 prompt tokens, at most 16 writing.
PLAIN = StepTable(
    stages=1,
    ranks=1,
    decodes=(1.0, 16.0),
    prompt_tokens=(0.0, 8192.0),
    decode_s=(0.01, 0.01),
    added_s=((0.0, 0.0), (0.08192, 0.08192)),
    prompt_only_s=(0.0, 0.08192),
    http_s=0.005,
    request_s=0.0,
    computed_share=1.0,
)
ROOMY = {"room_tokens": 1e6, "max_running": 256, "slo": None}


def _of(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


def _region() -> Region:
    return regions(cluster_of("dgx-h100", 4))[0]


def _question(model_id: str = "meta-llama/Llama-3.1-70B", **workload: float) -> Question:
    config = catalogue.config(model_id)
    assert config is not None
    return Question(
        model=ModelSpec.from_hf_config(config, name=model_id),
        workload=Workload(input_tokens=Lengths(mean_tokens=1000), output_tokens=Lengths(mean_tokens=300), **workload),
        constants=shipped(),
    )


def _loaded(shape: Shape, load: float, count: int, settling: int = 0) -> tuple[Tails, float, Demand]:
    """A run at a share of what the replica can answer; also that rate, and the same for the fluid model."""
    question = _question()
    table = step_table(question, shape, _region())
    room = predict(question, [(shape, _region())])[0].room.tokens
    limits = {"room_tokens": room, "max_running": 1024}
    rate = load * answerable_per_s(table, 1000, 300, **limits)
    arrivals_s = poisson_arrivals(rate, count, np.random.default_rng(7))
    tails = simulate(
        table, arrivals_s, np.full(count, 1000.0), np.full(count, 300.0), slo=None, settling=settling, **limits
    )
    return tails, rate, Demand(_of(1000), _of(300), _of(min(1024.0, room / 1150)))


class TestSchedules:
    """What each request gets, worked out by hand on `PLAIN`."""

    def test_one_request_alone(self) -> None:
        tails = simulate(PLAIN, _of(3.0), _of(1000), _of(11), **ROOMY)
        assert tails.ttft_s.mean_s == pytest.approx(0.005 + 0.010)
        assert tails.tpot_s.mean_s == pytest.approx(0.010)
        assert tails.requests_per_s == pytest.approx(1 / (0.015 + 0.100))

    def test_a_prompt_longer_than_a_step_is_read_in_chunks(self) -> None:
        tails = simulate(replace(PLAIN, prompt_only_s=(0.02, 0.10)), _of(0.0), _of(2 * 8192), _of(2), **ROOMY)
        assert tails.ttft_s.mean_s == pytest.approx(0.005 + 2 * 0.10)

    def test_a_prompt_waits_for_the_running_step_and_lengthens_the_next(self) -> None:
        # The first reads from 5 to 15 ms and writes until 25, 35, ...; the second comes at 27 and joins at 35.
        tails = simulate(PLAIN, _of(0.0, 0.022), _of(1000, 1000), _of(11, 11), **ROOMY)
        assert tails.ttft_s.p50_s == pytest.approx(0.015)
        assert tails.ttft_s.p99_s == pytest.approx(0.035 + 0.020 - 0.022)
        assert tails.tpot_s.p99_s == pytest.approx(0.011), "one of ten steps took 20 ms"

    def test_prompts_share_a_step(self) -> None:
        tails = simulate(PLAIN, _of(0.0, 0.0, 0.0), _of(1000, 1000, 1000), _of(2, 2, 2), **ROOMY)
        assert tails.ttft_s.p50_s == tails.ttft_s.p99_s == pytest.approx(0.005 + 0.030)

    @pytest.mark.parametrize("limit", [{"room_tokens": 1500.0}, {"max_running": 1}])
    def test_without_room_a_request_waits_for_the_one_before(self, limit: dict[str, float]) -> None:
        tails = simulate(PLAIN, _of(0.0, 0.0), _of(1000, 1000), _of(11, 11), **(ROOMY | limit))
        assert tails.ttft_s.p50_s == pytest.approx(0.015)
        assert tails.ttft_s.p99_s == pytest.approx(0.015 + 0.100 + 0.010)

    def test_a_request_longer_than_the_cache_never_finishes(self) -> None:
        tails = simulate(PLAIN, _of(0.0, 0.1), _of(5000, 100), _of(10, 10), **(ROOMY | {"room_tokens": 4000.0}))
        assert tails.unfinished_share == 0.5
        assert tails.ttft_s.p99_s == math.inf
        assert tails.ttft_s.p50_s < 0.1

    def test_with_two_stages_a_first_token_leaves_half_a_pass_later(self) -> None:
        tails = simulate(replace(PLAIN, stages=2), _of(0.0), _of(1000), _of(11), **ROOMY)
        assert tails.ttft_s.mean_s == pytest.approx(0.005 + 0.010), "both stages, one after the other"
        assert tails.tpot_s.mean_s == pytest.approx(0.010)

    def test_with_two_stages_chunks_follow_each_other(self) -> None:
        tails = simulate(replace(PLAIN, stages=2), _of(0.0), _of(4 * 8192), _of(2), **ROOMY)
        assert tails.ttft_s.mean_s == pytest.approx(0.005 + 0.08192 * (4 + 1) / 2)

    def test_two_ranks_have_room_for_twice_as_much(self) -> None:
        two = simulate(
            replace(PLAIN, ranks=2), _of(0.0, 0.0), _of(1000, 1000), _of(9, 9), **(ROOMY | {"max_running": 1})
        )
        assert two.ttft_s.p99_s == pytest.approx(0.005 + 0.020)

    def test_a_cached_prefix_is_not_read(self) -> None:
        tails = simulate(replace(PLAIN, computed_share=0.25), _of(0.0), _of(1000), _of(2), **ROOMY)
        assert tails.ttft_s.mean_s == pytest.approx(0.005 + 0.0025)

    def test_attainment_counts_requests_that_meet_both(self) -> None:
        arguments = (PLAIN, _of(0.0, 0.022), _of(1000, 1000), _of(11, 11))
        for slo, share in [
            (Slo(ttft_s=0.02), 0.5),
            (Slo(tpot_s=0.0105), 0.5),
            (Slo(ttft_s=0.02, tpot_s=0.0105), 0.0),
            (Slo(), 1.0),
        ]:
            assert simulate(*arguments, **(ROOMY | {"slo": slo})).attainment == share

    def test_clients_send_again_when_answered(self) -> None:
        tails = simulate_clients(PLAIN, 1, np.full(5, 1000.0), np.full(5, 11.0), **ROOMY)
        assert tails.ttft_s.p99_s == pytest.approx(0.015)
        assert tails.requests_per_s == pytest.approx(1 / 0.115)

    def test_all_clients_start_at_once(self) -> None:
        tails = simulate_clients(PLAIN, 8, np.full(80, 8000.0), np.full(80, 300.0), **ROOMY)
        assert tails.ttft_s.p99_s > 7 * 0.08 > tails.ttft_s.p50_s

    def test_replicas_take_the_next_request_in_turn(self) -> None:
        one, two = (
            simulate(PLAIN, _of(0.0, 0.001), _of(8000, 8000), _of(50, 50), replicas=replicas, **ROOMY)
            for replicas in (1, 2)
        )
        assert two.ttft_s.p99_s == pytest.approx(0.085)
        assert one.ttft_s.p99_s > 0.16


class TestEveryRun:
    @settings(max_examples=60)
    @given(
        seed=st.integers(0, 10**6),
        count=st.integers(2, 80),
        rate=st.floats(0.01, 1e5),
        stages=st.sampled_from([1, 2, 3]),
        replicas=st.sampled_from([1, 3]),
        room=st.floats(200, 50_000),
    )
    def test_every_request_is_answered_or_counted(
        self, seed: int, count: int, rate: float, stages: int, replicas: int, room: float
    ) -> None:
        generator = np.random.default_rng(seed)
        arguments = (
            replace(PLAIN, stages=stages),
            poisson_arrivals(rate, count, generator),
            lengths(Lengths(mean_tokens=2000, spread=2), count, generator),
            lengths(Lengths(mean_tokens=100, spread=2), count, generator),
        )
        limits = {"room_tokens": room, "max_running": 8, "slo": Slo(), "replicas": replicas}
        tails = simulate(*arguments, **limits)
        too_long = np.mean(arguments[2] + arguments[3] > room)
        assert tails.unfinished_share == pytest.approx(too_long), "80 requests never wait for 600 s"
        assert tails.attainment == pytest.approx(1 - too_long)
        assert tails == simulate(*arguments, **limits), "the same again"

    @settings(max_examples=30)
    @given(seed=st.integers(0, 10**6), stages=st.sampled_from([1, 4]), room=st.sampled_from([4000.0, 1e6]))
    def test_jumping_over_steps_changes_nothing(self, seed: int, stages: int, room: float) -> None:
        jumping, walking = (self._run(seed, stages, room, slice_s) for slice_s in (math.inf, 0.003))
        assert walking.first_s == pytest.approx(jumping.first_s)
        assert walking.ended_s == pytest.approx(jumping.ended_s)

    @staticmethod
    def _run(seed: int, stages: int, room: float, slice_s: float) -> Requests:
        generator = np.random.default_rng(seed)
        count = 30
        prompts = lengths(Lengths(mean_tokens=800, spread=0.5), count, generator).clip(1, 2000).tolist()
        answers = lengths(Lengths(mean_tokens=40, spread=1), count, generator).clip(1, 1000).tolist()
        never = [math.inf] * count
        requests = Requests(prompts=prompts, answers=answers, sent_s=[*never], first_s=[*never], ended_s=[*never])
        replica = Replica(
            # An odd slope, so that no two events fall together and rounding cannot swap them.
            table=replace(PLAIN, stages=stages, added_s=((0.0, 0.0), (0.08192 / math.sqrt(2), 0.07 * math.sqrt(3)))),
            requests=requests,
            room_tokens=room,
            free_tokens=room,
            free_places=8,
            following=count,
        )
        for index, sent_s in enumerate(poisson_arrivals(20, count, generator).tolist()):
            replica.send(sent_s, index)
        until_s = slice_s
        while replica.outstanding:
            replica.run(until_s)
            until_s += slice_s
        return requests

    def test_who_waits_too_long_gives_up(self) -> None:
        tails = simulate(
            PLAIN, np.zeros(2000), np.full(2000, 100.0), np.full(2000, 1000.0), **(ROOMY | {"max_running": 8})
        )
        # Eight at a time take 10 s; after 600 s some 490 have been taken in.
        assert tails.unfinished_share == pytest.approx(1 - 490 / 2000, abs=0.01)
        assert tails.overloaded
        assert tails.ttft_s.p99_s == math.inf


class TestInputs:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"arrivals_s": _of(1, 0)}, "arrivals_s has 2 times"),
            ({"arrivals_s": _of(0)}, "arrivals_s has 1 times for 2"),
            ({"input_tokens": _of(5, 0)}, "input_tokens has 0 to 5"),
            ({"output_tokens": _of(5, math.inf)}, "output_tokens has 5 to inf"),
            ({"output_tokens": _of(5)}, "output_tokens 1 and settling"),
            ({"settling": 2}, "settling is 2"),
            ({"room_tokens": 0.0}, "room_tokens is 0"),
            ({"max_running": 0}, "max_running 0"),
            ({"replicas": 0}, "replicas is 0"),
        ],
    )
    def test_what_does_not_belong_together_is_named(self, change: dict[str, object], message: str) -> None:
        good = {"arrivals_s": _of(0, 1), "input_tokens": _of(5, 5), "output_tokens": _of(5, 5)}
        with pytest.raises(WorkloadError, match=message):
            simulate(PLAIN, **(good | ROOMY | change))

    def test_a_rate_and_clients_must_be_positive(self) -> None:
        with pytest.raises(WorkloadError, match="requests_per_s is 0"):
            poisson_arrivals(0, 5, np.random.default_rng(0))
        with pytest.raises(WorkloadError, match="clients is 0"):
            simulate_clients(PLAIN, 0, _of(5), _of(5), **ROOMY)

    def test_arrivals_and_lengths_have_the_asked_means(self) -> None:
        generator = np.random.default_rng(3)
        assert poisson_arrivals(4, 20_000, generator)[-1] == pytest.approx(5000, rel=0.03)
        drawn = lengths(Lengths(mean_tokens=500, spread=0.8), 50_000, generator)
        assert drawn.mean() == pytest.approx(500, rel=0.02)
        assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.05)
        assert set(lengths(Lengths(mean_tokens=500), 9, generator)) == {500}


class TestTable:
    @pytest.mark.parametrize(
        ("model_id", "shape"),
        [
            ("meta-llama/Llama-3.1-70B", Shape(tp=4)),
            ("meta-llama/Llama-3.1-70B", Shape(tp=8, pp=2)),
            ("deepseek-ai/DeepSeek-V3", Shape(tp=1, dp=16, ep=16)),
        ],
    )
    def test_between_its_points_it_is_the_cost_model(self, model_id: str, shape: Shape) -> None:
        question = _question(model_id)
        table = step_table(question, shape, _region())
        work, factors = stack([work_in(question, shape, _region())]), factors_for(question, [_region()])
        generator = np.random.default_rng(5)
        for writing, tokens in zip(generator.geometric(0.01, 60), generator.uniform(0, 8192, 60), strict=True):
            batch = _of(max(1, writing / shape.pp))
            uneven_s = (shape.pp - 1) * last_stage_s(work, factors, batch)[0]
            decode_s = step(work, factors, batch, _of(0)).total_s[0] + uneven_s
            without, both = (step(work, factors, batch, _of(count)) for count in (0, tokens))
            sent_s = (both.communication_s - without.communication_s)[0]
            computed_s = (both.total_s - without.total_s)[0] - sent_s
            expected_s = decode_s + computed_s * factors["prefill"][0] + sent_s
            assert table.pass_s(int(writing), tokens) == pytest.approx(expected_s, rel=0.02)
            assert table.pass_s(int(writing), 0) == pytest.approx(decode_s, rel=0.01)

    def test_an_idle_replica_reads_a_prompt_as_in_the_cost_model(self) -> None:
        question = _question()
        work, factors = stack([work_in(question, Shape(tp=4), _region())]), factors_for(question, [_region()])
        overhead = overhead_s(work, factors)[0]
        read = step(work, factors, _of(1), _of(3000))
        sent_s = read.communication_s[0]
        expected_s = (read.total_s[0] - sent_s - overhead) * factors["prefill"][0] + sent_s + overhead
        assert step_table(question, Shape(tp=4), _region()).pass_s(0, 3000) == pytest.approx(expected_s, rel=0.01)

    def test_a_cached_prefix_is_part_of_the_question(self) -> None:
        table = step_table(_question(prefix_hit_rate=0.75), Shape(tp=4), _region())
        assert table.computed_share == 0.25


SHAPES = [Shape(tp=4), Shape(tp=8), Shape(tp=4, pp=2), Shape(tp=8, pp=4)]


class TestAgainstTheFluidModel:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("load", [0.01, 0.02])
    def test_they_agree_under_light_load(self, shape: Shape, load: float) -> None:
        tails, rate, demand = _loaded(shape, load, 600)
        fluid = self._fluid(shape, rate, demand)
        assert tails.tpot_s.mean_s == pytest.approx(fluid.tpot_s[0], rel=0.03)
        assert tails.ttft_s.mean_s == pytest.approx(fluid.ttft_s[0], rel=0.10)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("load", [0.3, 0.7])
    def test_they_agree_on_tpot_under_load(self, shape: Shape, load: float) -> None:
        tails, rate, demand = _loaded(shape, load, 6000, settling=3000)
        assert tails.tpot_s.mean_s == pytest.approx(self._fluid(shape, rate, demand).tpot_s[0], rel=0.08)

    @staticmethod
    def _fluid(shape: Shape, rate: float, demand: Demand) -> Served:
        question = _question()
        factors = factors_for(question, [_region()])
        return open_loop(stack([work_in(question, shape, _region())]), factors, demand, _of(rate))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_what_a_replica_answers_at_most_is_what_it_answers_in_overload(self, shape: Shape) -> None:
        tails, rate, _ = _loaded(shape, 1.5, 8000)
        assert tails.overloaded
        assert tails.requests_per_s == pytest.approx(rate / 1.5, rel=0.08)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_a_higher_rate_never_shortens_the_tail(self, shape: Shape) -> None:
        tails = [_loaded(shape, load, 1500, settling=500)[0] for load in (0.1, 0.3, 0.5, 0.7, 0.9, 1.3, 2.0)]
        p90_s = [each.ttft_s.p90_s for each in tails]
        assert all(after > before * 0.98 for before, after in pairwise(p90_s)), p90_s
        assert [each.overloaded for each in tails] == [False] * 5 + [True] * 2


def test_three_hundred_requests_take_ten_milliseconds() -> None:
    question = _question()
    table = step_table(question, Shape(tp=4), _region())
    limits = {"room_tokens": 450_000.0, "max_running": 1024}
    rate = 0.7 * answerable_per_s(table, 1000, 300, **limits)
    arrivals_s = poisson_arrivals(rate, 300, np.random.default_rng(1))
    spent_s = []
    for _ in range(7):
        started_s = time.perf_counter()
        simulate(table, arrivals_s, np.full(300, 1000.0), np.full(300, 300.0), slo=None, **limits)
        spent_s.append(time.perf_counter() - started_s)
    assert min(spent_s) < 0.010


def test_measured_closed_loops_of_llama_70b() -> None:
    """InferenceMAX on H200: lengths are drawn evenly from 0.8 to 1 of what is asked, ten requests for each client."""
    with measured("serving_silicon_dev.csv").open(encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["backend"], row["system"], row["model_path"]) == ("vllm", "h200_sxm", "meta-llama/Llama-3.1-70B")
        ]
    errors = []
    for row in read_rows(rows):
        case = case_of(row, shipped())
        found = lookup([case.situation])
        generator, count = np.random.default_rng(0), int(row.clients * 10)
        room_requests, context = case.demand.room_requests, case.demand.input_tokens + case.demand.output_tokens / 2
        tails = simulate_clients(
            table_of(case.work, found.factors(found.logarithms(shipped()))),
            int(row.clients),
            np.rint(row.input_tokens * generator.uniform(0.8, 1, count)),
            np.rint(row.output_tokens * generator.uniform(0.8, 1, count)),
            room_tokens=room_requests * context,
            max_running=1024,
            slo=None,
        )
        errors.append((tails.ttft_s.mean_s * 1e3 / row.ttft_ms - 1, tails.tpot_s.mean_s * 1e3 / row.tpot_ms - 1))
    ttft, tpot = np.abs(np.array(errors)).mean(axis=0)
    assert len(errors) > 40
    assert ttft < 0.20
    assert tpot < 0.12
