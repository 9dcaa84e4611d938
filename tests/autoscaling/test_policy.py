"""The decisions of the policy, tick by tick: scenarios with a known right answer, and what makes it hold."""

from dataclasses import replace

import pytest
from policy_builders import (
    EP16,
    TIMES,
    TP2,
    TP4,
    TP8,
    TP8EP8,
    Act,
    Analytic,
    Play,
    demand,
    fleet,
    history,
    observation,
    pools,
    rules,
)

from autoscaling.decision import Decision
from autoscaling.observation import Blind, spelled
from autoscaling.policy.decide import decide
from autoscaling.policy.memory import Memory

SHIFT_S = 600.0


START = Memory()


def shift(before, after, at_s=SHIFT_S):
    return lambda now_s: before if now_s < at_s else after


def last_option(play, text) -> str:
    """Why an option lost, as the last decision but holds says."""
    decision = next(one for one in reversed(play.decisions) if one.kind != "hold")
    return next(option.why for option in decision.options if spelled(option.pools) == text)


def test_rate_doubles_replicas_are_added():
    play = Play(shift(demand(13), demand(26)), pools("2 x tp2"), rules(tpot_ms=200, ttft_ms=2000)).until(1800)

    assert play.acts == [Act(705, "replicas", "3 x tp2")]
    assert "2 x tp2 can serve 20.6 requests/s of 512+128 tokens within the SLO; 26 are to be served now" in (
        play.decisions[47].reason
    )
    assert last_option(play, "4 x tp2") == "takes 8 GPUs; 6 are enough."


def test_inputs_grow_eightfold_under_a_tight_ttft_tp_is_widened():
    play = Play(shift(demand(4, 512), demand(4, 4096)), pools("1 x tp2"), rules(tpot_ms=200, ttft_ms=250)).until(1800)

    assert play.acts == [Act(750, "repartition", "2 x tp4")]
    assert "more replicas of tp2 cannot change that, tp4 can" in play.decisions[50].reason


def test_tpot_over_target_at_low_load_is_cured_by_a_wider_shape():
    asked = rules(tpot_ms=30, ttft_ms=2000)
    decisions = Play(lambda now_s: demand(4), pools("2 x tp2"), asked, seen={"tpot_s": 0.06}).until(300).decisions

    acted = next(one for one in decisions if one.kind == "repartition")
    assert spelled(acted.target) == "1 x tp4"
    assert acted.reason.startswith(
        "TPOT is 60 ms, 2.0x the target, at 16% of what 2 x tp2 can answer: "
        "more replicas of tp2 cannot change that, tp4 can."
    )


def test_load_falls_under_a_tight_tpot_the_fleet_becomes_fewer_and_wider():
    # For much demand both shapes take 16 GPUs; for little, three tp2 are needed where one tp4 is enough.
    tight = rules(tpot_ms=150, ttft_ms=2000, shapes=(TP2, TP4))
    play = Play(shift(demand(76), demand(19)), pools("8 x tp2"), tight).until(3600)

    assert play.acts == [Act(900, "replicas", "3 x tp2"), Act(1860, "repartition", "1 x tp4")]


def test_budget_exhausted_a_narrower_shape_that_serves_more_is_taken():
    poor = Analytic(scaling=0.6)  # wide groups waste much
    play = Play(
        shift(demand(15), demand(32)), pools("1 x tp8"), rules(tpot_ms=100, ttft_ms=2000, max_gpus=8), poor
    ).until(2400)

    assert play.acts == [Act(750, "repartition", "4 x tp2")]
    acted = next(one for one in play.decisions if one.kind == "repartition")
    assert acted.cause == "least-bad"
    assert "Nothing within 8 GPUs keeps the SLO; 4 x tp2 comes nearest" in acted.reason


def test_budget_exhausted_and_nothing_gains_it_says_so():
    play = Play(shift(demand(5), demand(60)), pools("1 x tp8"), rules(tpot_ms=18, ttft_ms=2000, max_gpus=8)).until(1800)

    assert play.acts == []
    last = play.decisions[-1]
    assert (last.kind, last.cause) == ("hold", "least-bad")
    assert "Nothing within 8 GPUs keeps the SLO, and nothing gains enough to change." in last.reason
    assert "TPOT is 20 ms, 1.1x the target, with tp4" in next(
        option.why for option in last.options if spelled(option.pools) == "2 x tp4"
    )


def test_context_grows_until_the_kv_cache_binds_the_partition_grows():
    play = Play(
        shift(demand(0.2, 2000), demand(0.2, 60_000)), pools("1 x tp1"), rules(tpot_ms=200, ttft_ms=20_000)
    ).until(2400)

    assert play.acts == [Act(735, "repartition", "1 x tp4")]
    acted = next(one for one in play.decisions if one.kind == "repartition")
    assert "leaves too little room in the KV cache of tp1, 10000 tokens" in acted.reason


@pytest.mark.parametrize("times", [2, 3, 10])
def test_a_spike_of_a_minute_changes_nothing(times):
    def asked(now_s):
        return demand(13 * times if SHIFT_S <= now_s < SHIFT_S + 60 else 13)

    play = Play(asked, pools("2 x tp2"), rules(tpot_ms=200, ttft_ms=2000)).until(1200)

    assert play.acts == []
    assert any(decision.cause == "not-yet" for decision in play.decisions)


def test_a_little_too_much_is_waited_for_longer():
    play = Play(shift(demand(20), demand(21.5)), pools("2 x tp2"), rules(tpot_ms=200, ttft_ms=2000)).until(1200)

    assert play.acts == [Act(840, "replicas", "3 x tp2")]


def test_moe_bound_by_decoding_at_four_times_the_rate_experts_are_spread():
    experts = Analytic(expert_gain=2.5)
    play = Play(
        shift(demand(24), demand(96)),
        pools("1 x tp8"),
        rules(tpot_ms=60, ttft_ms=2000, shapes=(TP8, TP8EP8, EP16)),
        experts,
    ).until(1800)

    assert play.acts == [Act(735, "repartition", "2 x tp8ep8")]
    acted = next(one for one in play.decisions if one.kind == "repartition")
    assert not any("save -" in option.why for option in acted.options)


@pytest.mark.parametrize("half_s", [120, 180, 300])
def test_a_mix_that_swings_faster_than_a_repartition_pays_back_is_served_by_one_fleet(half_s):
    def asked(now_s):
        return demand(8, 512, 256) if int(now_s // half_s) % 2 else demand(4, 4096, 64)

    play = Play(asked, pools("2 x tp4"), rules(tpot_ms=45, ttft_ms=700)).until(3600)

    assert play.acts == []
    assert any("would be enough now, but not for the" in one.reason for one in play.decisions)


def test_gpus_given_up_too_early_are_given_up_later_the_next_time():
    def asked(now_s):
        return demand(7.6, 512, 256) if int(now_s // 420) % 2 else demand(3.8, 4000, 64)

    play = Play(asked, pools("2 x tp4"), rules(tpot_ms=45, ttft_ms=700)).until(6000)

    assert [act.target for act in play.acts] == ["1 x tp4", "2 x tp4"]
    assert play.acts[-1].at_s < 1300
    assert play.memory.regrets == 1


def test_a_swinging_mix_that_the_fleet_cannot_serve_is_cured_once():
    def asked(now_s):
        return demand(8, 512, 256) if int(now_s // 300) % 2 else demand(4, 4096, 64)

    play = Play(asked, pools("5 x tp2"), rules(tpot_ms=45, ttft_ms=700)).until(3600)

    assert [(act.kind, act.target) for act in play.acts] == [("repartition", "2 x tp4")]


def test_fewer_replicas_only_when_all_that_was_asked_lately_fits():
    asked = rules(tpot_ms=200, ttft_ms=2000, down_after_s=300, repartition=False)
    play = Play(shift(demand(26), demand(9)), pools("3 x tp2"), asked).until(1800)

    assert [(act.kind, act.target) for act in play.acts] == [("replicas", "1 x tp2")]
    assert play.acts[0].at_s >= SHIFT_S + 300


class TestHolds:
    """What keeps a change from being made, and that the decision says what would have been done."""

    def overloaded(self, of, memory=START, at_s=1000.0, **given) -> tuple[Decision, Memory]:
        asked = rules(tpot_ms=200, ttft_ms=2000, up_after_s=0, cooldown_s=120, **given)
        return decide(observation(at_s, demand(26), of), memory, asked, Analytic(), TIMES)

    def test_it_acts_where_nothing_speaks_against_it(self):
        decision, _ = self.overloaded(fleet(pools("2 x tp2")))
        assert (decision.kind, spelled(decision.target)) == ("replicas", "3 x tp2")

    def test_blind(self):
        _, memory = self.overloaded(fleet(pools("2 x tp2")))
        blind = Blind(at_s=1015, kind="unreachable", why="Prometheus does not answer")
        decision, after = decide(blind, memory, rules(), Analytic(), TIMES)
        assert (decision.kind, decision.cause, decision.target) == ("hold", "blind", pools("2 x tp2"))
        assert decision.reason == "unreachable: Prometheus does not answer"
        assert after.passed_s(1030, 60) == 0

    def test_changing(self):
        decision, _ = self.overloaded(fleet(pools("2 x tp2"), desired=pools("1 x tp4"), changing=True))
        assert (decision.kind, decision.cause, decision.target) == ("hold", "changing", pools("1 x tp4"))

    def test_frozen_says_what_would_be_done(self):
        decision, _ = self.overloaded(fleet(pools("2 x tp2")), frozen=True)
        assert (decision.kind, decision.cause) == ("hold", "frozen")
        assert decision.reason.startswith("Changes are frozen. Else 3 x tp2: 2 x tp2 can serve 20.6 requests/s")
        assert spelled(decision.options[0].pools) == "3 x tp2"

    def test_cooldown_after_a_repartition(self):
        _, memory = self.overloaded(fleet(pools("1 x tp4")), at_s=900.0, frozen=True)
        _, memory = self.overloaded(fleet(pools("2 x tp2")), memory, at_s=915.0, frozen=True)
        decision, memory = self.overloaded(fleet(pools("2 x tp2")), memory, at_s=1020.0)
        assert (decision.kind, decision.cause) == ("hold", "cooldown")
        assert "The last change, from 1 x tp4 to 2 x tp2" in decision.reason
        decision, _ = self.overloaded(fleet(pools("2 x tp2")), memory, at_s=1035.0)
        assert decision.kind == "replicas"

    def test_no_cooldown_for_replicas_after_replicas(self):
        _, memory = self.overloaded(fleet(pools("1 x tp2")), at_s=900.0, frozen=True)
        _, memory = self.overloaded(fleet(pools("2 x tp2")), memory, at_s=915.0, frozen=True)
        decision, _ = self.overloaded(fleet(pools("2 x tp2")), memory, at_s=930.0)
        assert decision.kind == "replicas"

    def test_a_target_that_stays_out_of_reach_is_given_up(self):
        of = fleet(pools("2 x tp2"), desired=pools("5 x tp8"), changing=True, shortfall="5 x tp8 need 40 GPUs")
        _, memory = self.overloaded(of, at_s=900.0)
        decision, memory = self.overloaded(of, memory, at_s=960.0)
        assert decision.cause == "changing"
        assert "it lacks something: 5 x tp8 need 40 GPUs" in decision.reason
        decision, _ = self.overloaded(of, memory, at_s=1020.0)
        assert (decision.kind, spelled(decision.target)) == ("replicas", "3 x tp2")

    def test_a_limit_on_changes_is_kept_by_smaller_steps(self):
        asked = rules(tpot_ms=200, ttft_ms=2000, max_change_gpus=4, repartition=False)
        play = Play(shift(demand(13), demand(90)), pools("2 x tp2"), asked).until(2400)
        assert [act.target for act in play.acts] == ["4 x tp2", "6 x tp2", "8 x tp2", "9 x tp2"]

    def test_barred_repartitions_are_not_tried_again(self):
        asked = rules(tpot_ms=30, ttft_ms=2000)
        memory = Memory().barring(pools("2 x tp2"), pools("1 x tp4"), until_s=1e6)
        play = Play(lambda now_s: demand(4), pools("2 x tp2"), asked, memory=memory).until(300)
        assert play.acts[0].target == "1 x tp8"
        acted = next(one for one in play.decisions if one.kind != "hold")
        assert "was tried and did worse than what it replaced" in next(
            option.why for option in acted.options if spelled(option.pools) == "1 x tp4"
        )


def test_where_the_fleet_does_worse_than_the_model_says_what_is_seen_is_believed():
    asked = rules(tpot_ms=200, ttft_ms=2000, repartition=False)
    well = Play(lambda now_s: demand(18), pools("2 x tp2"), asked, seen={"attainment": 0.96}).until(900)
    badly = Play(lambda now_s: demand(18), pools("2 x tp2"), asked, seen={"attainment": 0.5}).until(900)

    assert well.acts == []
    assert badly.acts[0].kind == "replicas"
    assert badly.memory.doubts[TP2] < 0.9


def test_what_is_missed_before_anybody_knows_how_bursty_arrivals_are_is_no_shapes_own_fault():
    asked = rules(tpot_ms=200, ttft_ms=2000, repartition=False)

    def seen(minutes):
        past = history([demand(18)] * minutes, 60.0 * minutes)
        return observation(60.0 * minutes, demand(18), fleet(pools("2 x tp2")), past, attainment=0.5)

    memory = Memory()
    for minutes in (1, 2, 3, 4, 5):
        _, memory = decide(seen(minutes), memory, asked, Analytic(), TIMES)
    assert set(memory.doubts) == {*asked.shapes}
    assert len({*memory.doubts.values()}) == 1
    _, memory = decide(replace(seen(6), attainment=None), memory, asked, Analytic(), TIMES)
    assert memory.doubts == {}


def test_same_input_same_decision():
    one, other = (
        Play(shift(demand(13), demand(40)), pools("2 x tp2"), rules(tpot_ms=200)).until(1200) for _ in range(2)
    )
    assert one.decisions == other.decisions
    assert one.memory == other.memory


def test_a_budget_that_was_cut_is_reached_in_steps_of_what_may_change_at_once():
    asked = rules(tpot_ms=200, ttft_ms=2000, max_gpus=8, max_change_gpus=6, repartition=False)
    play = Play(lambda at_s: demand(13), pools("9 x tp2"), asked).until(300)

    assert [act.target for act in play.acts][:2] == ["6 x tp2", "3 x tp2"]
