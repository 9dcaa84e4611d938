"""What the policy makes of a schedule: it serves in time, goes back afterwards, and says why."""

from dataclasses import replace
from datetime import time

from policy_builders import TIMES, TP2, Act, Analytic, Play, demand, fleet, observation, pools, rules

from autoscaling.observation import spelled
from autoscaling.policy.decide import decide
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from autoscaling.schedule import Scheduled, Window

# Plays begin at midnight in UTC. A replica starts in 90 s; what is wanted is begun a minute earlier, as it may be slow.
ONE_S, ENDS_S, LEAD_S = 3600.0, 5400.0, 150.0
HALF_AN_HOUR = Window(opens=time(1), closes=time(1, 30))


def asked(*schedule: Scheduled, **given: object) -> Rules:
    return rules(tpot_ms=200, ttft_ms=2000, schedule=schedule, **{"repartition": False, **given})


def play(rate: float, initial: str, of: Rules) -> Play:
    """A steady demand from 00:50 to 01:45; a tp2 serves 10.3 requests/s."""
    return Play(lambda at_s: demand(rate), pools(initial), of).until(6300, start_s=3000)


def reason(of: Play, at_s: float) -> str:
    return next(one.reason for one in of.decisions if one.at_s == at_s)


def test_what_is_wanted_serves_when_its_time_begins_and_is_given_up_after_it():
    found = play(5, "1 x tp2", asked(Scheduled(window=HALF_AN_HOUR, min_replicas=4)))

    up, down = found.acts
    assert up == Act(ONE_S - LEAD_S, "replicas", "4 x tp2")
    assert reason(found, up.at_s) == (
        "1 x tp2 is outside the bounds that are set for GPUs and replicas. 4 x tp2 is the cheapest that keeps the SLO: "
        "8 GPUs at 12% of what they can, and serves in 90 s. The schedule wants at least 4 replicas from 01:00 (UTC)."
    )
    assert next(one.cause for one in found.decisions if one.at_s == up.at_s) == "schedule"
    assert reason(found, 4500).endswith("The schedule wants at least 4 replicas until 01:30 (UTC).")
    assert (down.kind, down.target) == ("replicas", "1 x tp2")
    assert ENDS_S + 60 <= down.at_s <= ENDS_S + 300, "not before it is sure that fewer are enough"
    assert "schedule" not in reason(found, 6000)
    assert found.memory.regrets == 0


def test_gpus_are_counted_whatever_the_shape_and_more_is_begun_earlier_where_changes_are_small():
    found = play(5, "1 x tp2", asked(Scheduled(window=HALF_AN_HOUR, min_gpus=9), max_change_gpus=4))

    first, second = (act for act in found.acts if act.at_s < ENDS_S)
    assert [first, second.target] == [Act(ONE_S - 2 * LEAD_S, "replicas", "3 x tp2"), "5 x tp2"]
    assert second.at_s <= ONE_S - LEAD_S


def test_nothing_is_given_up_shortly_before_it_is_wanted():
    lasting = asked(Scheduled(window=HALF_AN_HOUR, min_replicas=3))
    soon = Play(lambda at_s: demand(5), pools("3 x tp2"), lasting).until(ONE_S, start_s=2400)
    assert soon.acts == []
    held = soon.decisions[-20]
    assert (held.kind, held.cause) == ("hold", "schedule")
    assert held.reason.endswith("; 1 x tp2 is less than the schedule wants from 01:00 (UTC).")
    later = Play(lambda at_s: demand(5), pools("3 x tp2"), lasting).until(900)
    assert [act.target for act in later.acts] == ["1 x tp2"]


def test_what_is_allowed_at_most_is_kept_to_from_its_beginning_whatever_is_asked():
    found = play(38, "4 x tp2", asked(Scheduled(window=HALF_AN_HOUR, max_gpus=5)))

    assert found.acts[0] == Act(ONE_S, "replicas", "2 x tp2")
    assert reason(found, ONE_S).startswith(
        "4 x tp2 is outside the bounds that are set for GPUs and replicas. Nothing within 5 GPUs keeps the SLO;"
    )
    assert reason(found, ONE_S).endswith("The schedule allows at most 5 GPUs until 01:30 (UTC).")
    assert found.pools_at(ENDS_S - 1) == "2 x tp2"
    assert found.acts[1].target == "4 x tp2"
    assert found.acts[1].at_s <= ENDS_S + 60


def test_what_does_not_fit_under_the_bound_of_now_waits_until_that_ends():
    until_one = Scheduled(window=Window(opens=time(0), closes=time(1)), max_gpus=4)
    found = play(5, "1 x tp2", asked(until_one, Scheduled(window=HALF_AN_HOUR, min_gpus=6)))
    assert found.acts[0] == Act(ONE_S, "replicas", "3 x tp2")
    fits = play(5, "1 x tp2", asked(until_one, Scheduled(window=HALF_AN_HOUR, min_gpus=4)))
    assert fits.acts[0] == Act(ONE_S - LEAD_S, "replicas", "2 x tp2")


def test_a_freeze_and_maintenance_windows_go_before_the_schedule():
    of = asked(Scheduled(window=HALF_AN_HOUR, min_replicas=4))
    seen = observation(ONE_S, demand(5), fleet(pools("1 x tp2")))
    for limit in ({"frozen": True}, {"windows": (Window(opens=time(3), closes=time(4)),)}):
        decision, _ = decide(seen, Memory(), replace(of, **limit), Analytic(), TIMES)
        assert (decision.kind, decision.cause) == ("hold", next(iter(limit)).rstrip("s"))
        assert "Else 4 x tp2: " in decision.reason


def test_an_empty_fleet_is_started_for_it():
    of = asked(Scheduled(window=HALF_AN_HOUR, min_replicas=2), shapes=(TP2,), min_replicas=0)
    decision, _ = decide(observation(ONE_S - 60, demand(0), fleet({})), Memory(), of, Analytic(), TIMES)
    assert spelled(decision.target) == "2 x tp2"
    assert decision.reason.startswith("Nothing runs. 2 x tp2 is the cheapest that keeps the SLO: 4 GPUs")
