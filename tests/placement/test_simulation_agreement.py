"""The simulation beside the cost model it looks its steps up in, the fluid model, and measured closed loops."""

import csv
from itertools import pairwise
from time import process_time

import numpy as np
import pytest
from measured_data import measured
from planner_builders import model, region, requests

from placement.calibration.rows import case_of, read_rows
from placement.cost.constants import shipped
from placement.cost.prediction import Question, factors_for, predict, work_in
from placement.cost.serving import Demand, with_running
from placement.cost.simulation import (
    Tails,
    answerable_per_s,
    poisson_arrivals,
    simulate,
    simulate_clients,
    step_table,
)
from placement.cost.step import last_stage_s, lookup, overhead_s, step
from placement.cost.step_table import table_of
from placement.cost.work import Array, stack
from placement.shape import Shape


def _of(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


def _question(name: str = "meta-llama/Llama-3.1-70B", **workload: float) -> Question:
    return Question(model=model(name), workload=requests(1000, 300, **workload), constants=shipped())


def _loaded(shape: Shape, load: float, count: int, settling: int = 0) -> tuple[Tails, float, Demand]:
    """A run at a share of what the replica can answer; also that rate, and the same for the fluid model."""
    question = _question()
    table = step_table(question, shape, region())
    room = predict(question, [(shape, region())])[0].room.tokens
    limits = {"room_tokens": room, "max_running": 1024}
    rate = load * answerable_per_s(table, 1000, 300, **limits)
    arrivals_s = poisson_arrivals(rate, count, np.random.default_rng(7))
    tails = simulate(
        table, arrivals_s, np.full(count, 1000.0), np.full(count, 300.0), slo=None, settling=settling, **limits
    )
    return tails, rate, Demand(_of(1000), _of(300), _of(min(1024.0, room / 1150)))


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
        table = step_table(question, shape, region())
        work, factors = stack([work_in(question, shape, region())]), factors_for(question, [region()])
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
        work, factors = stack([work_in(question, Shape(tp=4), region())]), factors_for(question, [region()])
        overhead = overhead_s(work, factors)[0]
        read = step(work, factors, _of(1), _of(3000))
        sent_s = read.communication_s[0]
        expected_s = (read.total_s[0] - sent_s - overhead) * factors["prefill"][0] + sent_s + overhead
        assert step_table(question, Shape(tp=4), region()).pass_s(0, 3000) == pytest.approx(expected_s, rel=0.01)

    def test_a_cached_prefix_is_part_of_the_question(self) -> None:
        table = step_table(_question(prefix_hit_rate=0.75), Shape(tp=4), region())
        assert table.computed_share == 0.25


SHAPES = [Shape(tp=4), Shape(tp=8), Shape(tp=4, pp=2), Shape(tp=8, pp=4)]


class TestAgainstTheFluidModel:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("load", [0.01, 0.02])
    def test_they_agree_under_light_load(self, shape: Shape, load: float) -> None:
        tails, rate, demand = _loaded(shape, load, 600)
        tpot_s, ttft_s = self._fluid(shape, rate, demand)
        assert tails.tpot_s.mean_s == pytest.approx(tpot_s, rel=0.03)
        assert tails.ttft_s.mean_s == pytest.approx(ttft_s, rel=0.10)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("load", [0.3, 0.7])
    def test_they_agree_on_tpot_under_load(self, shape: Shape, load: float) -> None:
        tails, rate, demand = _loaded(shape, load, 6000, settling=3000)
        assert tails.tpot_s.mean_s == pytest.approx(self._fluid(shape, rate, demand)[0], rel=0.08)

    @staticmethod
    def _fluid(shape: Shape, rate: float, demand: Demand) -> tuple[float, float]:
        """TPOT and TTFT of the steady state that answers this rate."""
        question, running = _question(), np.geomspace(1, 1024, 400)
        work = stack([work_in(question, shape, region())] * running.size)
        states = with_running(work, factors_for(question, [region()] * running.size), demand, running)
        nearest = np.abs(states.requests_per_s - rate).argmin()
        return float(states.tpot_s[nearest]), float(states.ttft_s[nearest])

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
    table = step_table(question, Shape(tp=4), region())
    limits = {"room_tokens": 450_000.0, "max_running": 1024}
    rate = 0.7 * answerable_per_s(table, 1000, 300, **limits)
    arrivals_s = poisson_arrivals(rate, 300, np.random.default_rng(1))
    spent_s = []
    for _ in range(7):
        started_s = process_time()
        simulate(table, arrivals_s, np.full(300, 1000.0), np.full(300, 300.0), slo=None, **limits)
        spent_s.append(process_time() - started_s)
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
