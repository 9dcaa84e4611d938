"""Prices worked out by hand: what is held, who is late while a fleet changes, what a backlog does."""

from dataclasses import replace

import numpy as np
import pytest
from policy_builders import TP2, TP4, Analytic, demand, fleet, history, observation, pools, rules

from autoscaling.capacity.transitions import Stage, Transition
from autoscaling.observation import History
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.options import Candidate
from autoscaling.policy.outlook import outlook
from autoscaling.policy.pricing import priced

RULES = rules(tpot_ms=200, ttft_ms=2000, horizon_s=600)
ESTIMATES = Estimates(Analytic(), RULES.slo)


def plan(rate=13.0, waiting=0.0, past=None, tokens=512, **given):
    seen = observation(1e4, demand(rate, tokens), fleet(pools("2 x tp2")), past, waiting=waiting)
    return outlook(seen, replace(RULES, **given), start_s=90, queued=seen.waiting)


def price(target, stages, of, kind="replicas", stall_s=0.0, moved=0.0):
    way = Transition(
        way="surge",
        stages=tuple(Stage(from_s=at_s, serving=pools(serving), gpus=gpus) for at_s, serving, gpus in stages),
        stall_s=stall_s,
        moved=moved,
    )
    return priced(Candidate(kind=kind, pools=pools(target)), way, of, ESTIMATES, payback_s=1000)


def test_a_hold_costs_what_runs():
    offer = price("2 x tp2", [(0, "2 x tp2", 4)], plan(), kind="hold")

    assert offer.price.gpu_s == 4 * 600
    assert offer.cost_gpu_s == 4 * 1600
    assert offer.price.attainment == offer.price.final_attainment > 0.95
    assert offer.shortfall == 0
    assert offer.load == pytest.approx(13 / (2 * ESTIMATES.capacity(TP2, demand(13), 2).requests_per_s))


def test_a_surge_is_held_from_the_start_and_serves_later():
    offer = price("1 x tp4", [(0, "2 x tp2", 8), (90, "1 x tp4", 8), (125, "1 x tp4", 4)], plan(), "repartition")

    assert offer.price.gpu_s == 8 * 125 + 4 * 475
    assert offer.price.transition_s == 90
    assert offer.price.transition_gpu_s == 4 * 125


def test_who_arrives_while_nothing_serves_is_late_until_the_backlog_is_gone():
    offer = price("1 x tp4", [(0, "", 4), (100, "1 x tp4", 4)], plan(), "repartition", stall_s=100)

    saturation = ESTIMATES.capacity(TP4, demand(13), 1).saturation_per_s
    late_s = 100 + (100 * 13 - 2.0 * saturation) / (saturation - 13)  # 2 s is the TTFT
    kept = (1 - late_s / 600) * ESTIMATES.attainment(pools("1 x tp4"), demand(13))
    assert offer.price.attainment == pytest.approx(kept)
    assert offer.shortfall == pytest.approx(0.95 * late_s / 600)


def test_streams_that_have_to_move_are_work_that_others_wait_for():
    def late(moved):
        stages = [(0, "", 4), (100, "1 x tp4", 4)]
        of = replace(plan(), running=200.0)
        return price("1 x tp4", stages, of, "repartition", stall_s=100, moved=moved).shortfall

    saturation = ESTIMATES.capacity(TP4, demand(13), 1).saturation_per_s
    assert late(1.0) - late(0.0) == pytest.approx(0.95 * 200 / (saturation - 13) / 600)


def test_overload_keeps_nobody_in_time():
    offer = price("2 x tp2", [(0, "2 x tp2", 4)], plan(rate=30), kind="hold")

    assert offer.price.attainment == 0
    assert not offer.keeps


def test_a_backlog_is_demand():
    assert plan(waiting=300).need[0].demand.requests_per_s > plan().need[0].demand.requests_per_s + 1
    late = price("2 x tp2", [(0, "2 x tp2", 4)], plan(waiting=300), kind="hold")
    assert late.price.attainment < 0.95


class TestWhatIsPlannedFor:
    """Demands that must not be forgotten."""

    def test_a_busy_past_counts_against_fewer_replicas_and_a_longer_one_against_a_repartition(self):
        past = history([demand(20)] * 2 + [demand(16)] * 2 + [demand(5)] * 6, 1e4)
        # What is known from few minutes surely was not more than by two standard errors.
        found = plan(5, past=past, down_after_s=480, lookback_s=1200)

        def rates(asked):
            return sorted(round(one.demand.requests_per_s) for one in asked)

        assert (rates(found.need), rates(found.recent), rates(found.lasting)) == ([5], [17], [21])
        offer = price("1 x tp2", [(0, "1 x tp2", 2)], found)
        assert offer.keeps
        assert offer.forgets is not None
        assert offer.forgets.in_s == pytest.approx(-360)

    def test_long_prompts_and_many_requests_are_both_kept(self):
        past = history([demand(20, 512)] * 5 + [demand(3, 8192)] * 5, 1e4)
        found = [one.demand for one in plan(5, past=past).lasting]
        many = max(found, key=lambda one: one.requests_per_s)
        long = max(found, key=lambda one: one.input_tokens.mean_tokens)
        assert (many.requests_per_s, many.input_tokens.mean_tokens) == pytest.approx((20, 512), rel=0.05)
        assert (long.requests_per_s, long.input_tokens.mean_tokens) == pytest.approx((3, 8192), rel=0.1)

    def test_a_mix_that_swings_by_the_minute_is_not_its_mean_and_chance_is_no_swing(self):
        def longest(*inputs):
            found = plan(5, past=history([demand(5, mean) for mean in inputs * 5], 1e4))
            return max(one.demand.input_tokens.mean_tokens for one in found.recent)

        assert longest(512, 4096) == pytest.approx(4096, rel=0.1)
        assert longest(512, 560) < 550

    @pytest.mark.parametrize(("input_tokens", "longest"), [(8000, 8000), (10_000, 10_000)])
    def test_a_queue_that_is_worked_off_is_not_taken_for_longer_requests(self, input_tokens, longest):
        """2 requests/s arrive throughout; for two minutes none is answered, for two twice as many."""
        answered = np.array([2.0] * 6 + [0.0] * 2 + [4.0] * 2 + [2.0] * 6)
        inputs = np.where(answered > 2, input_tokens, 8000) * answered
        past = History(
            step_s=60,
            end_s=1e4,
            requests_per_s=np.full(16, 2.0),
            answered_per_s=answered,
            input_tokens_per_s=inputs,
            output_tokens_per_s=200 * answered,
        )
        remembered = [one.demand for one in plan(2, past=past, tokens=8000).lasting]
        assert max(one.input_tokens.mean_tokens for one in remembered) == pytest.approx(longest, rel=0.06)
        assert max(one.output_tokens.mean_tokens for one in remembered) == pytest.approx(200, rel=0.05)
        assert max(one.requests_per_s for one in remembered) == pytest.approx(2, rel=0.1)

    def test_gaps_are_not_taken_for_quiet(self):
        gaps = np.full(10, np.nan)
        gaps[-2:] = 13.0
        past = History(
            step_s=60,
            end_s=1e4,
            requests_per_s=gaps,
            answered_per_s=gaps,
            input_tokens_per_s=gaps * 512,
            output_tokens_per_s=gaps * 128,
        )
        assert plan(13, past=past).recent_s == 120

    @pytest.mark.parametrize("steps", [0, 5])
    def test_nothing_known_of_the_past_leaves_what_is_seen(self, steps):
        nothing = np.full(steps, np.nan)
        past = History(
            step_s=60,
            end_s=1e4,
            requests_per_s=nothing,
            answered_per_s=nothing,
            input_tokens_per_s=nothing,
            output_tokens_per_s=nothing,
        )
        found = plan(13, past=past, forecast=True)
        assert [one.demand.requests_per_s for one in found.need] == [13]

    def test_a_ramp_is_carried_on_to_when_a_replica_begun_now_serves_and_a_jump_is_not(self):
        rising = history([demand(5 + 2 * step) for step in range(15)], 1e4)
        assert 37 < plan(35, past=rising, forecast=True).expected.requests_per_s < 40
        assert plan(35, past=rising).expected.requests_per_s == pytest.approx(35, rel=0.05)
        for minutes in (1, 2, 3):
            jumped = history([demand(15)] * 12 + [demand(35)] * minutes, 1e4)
            assert plan(35, past=jumped, forecast=True).expected.requests_per_s == pytest.approx(35, rel=0.03)

    def test_bursts_are_neither_a_rate_nor_a_peak(self):
        """Of twelve minutes with an index of dispersion of 16 the highest and the last are 20 % above their mean."""
        counts = [10, 13, 12, 14.4, 9.5, 12, 11, 13.5, 10.5, 12.2, 11.5, 14.4]
        asked = replace(demand(14.4), dispersion=16.0)
        past = history([demand(rate) for rate in counts], 1e4)
        seen = observation(1e4, asked, fleet(pools("2 x tp2")), past)
        found = outlook(seen, RULES, start_s=90, queued=0.0)
        assert found.need[0].demand.requests_per_s == pytest.approx(12, rel=0.06)
        assert max(one.demand.requests_per_s for one in found.lasting) < 13.2
        alone = outlook(replace(seen, demand=demand(14.4)), RULES, start_s=90, queued=0.0)
        assert alone.need[0].demand.requests_per_s > 13.9

    def test_growth_is_seen_coming(self):
        rising = history([demand(5 + 0.5 * step) for step in range(60)], 1e4)
        found = plan(35, past=rising, forecast=True)
        assert found.expected.requests_per_s > 36
        assert sum(one.length_s for one in found.path) == pytest.approx(600)
        assert max(one.demand.requests_per_s for one in found.path) <= found.expected.requests_per_s + 1e-9
