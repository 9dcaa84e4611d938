"""The simulation against schedules made by hand, and what holds for every run."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.cost.simulation import (
    lengths,
    poisson_arrivals,
    simulate,
    simulate_clients,
)
from placement.cost.simulation_replica import Replica, Requests, StepTable
from placement.cost.work import Array
from placement.workload import Lengths, Slo, WorkloadError

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
