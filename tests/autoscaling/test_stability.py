"""Rules, windows, patience, and what is remembered."""

import json
from dataclasses import replace
from datetime import UTC, datetime, time

import pytest
from policy_builders import TP2, TP4, demand, fleet, observation, pools, rules

from autoscaling.policy.memory import Change, Memory, MemoryVersionError, Pressure
from autoscaling.policy.rules import Rules, RulesError
from autoscaling.schedule import Window
from placement import Slo

SLO = Slo(ttft_s=1.0, percentile=0.95)


def at(text) -> float:
    """Seconds since the epoch, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("window", "when", "is_open"),
    [
        (Window(opens=time(2), closes=time(4)), "2026-03-04T03:59", True),
        (Window(opens=time(2), closes=time(4)), "2026-03-04T04:00", False),
        (Window(opens=time(22), closes=time(6)), "2026-03-04T23:00", True),
        (Window(opens=time(22), closes=time(6)), "2026-03-04T05:00", True),
        (Window(opens=time(22), closes=time(6)), "2026-03-04T12:00", False),
        (Window(opens=time(22), closes=time(6), days=(2,)), "2026-03-05T05:00", True),  # opened on Wednesday
        (Window(opens=time(22), closes=time(6), days=(2,)), "2026-03-05T23:00", False),
        (Window(opens=time(2), closes=time(4), zone="Europe/Berlin"), "2026-03-04T01:30", True),
        (Window(opens=time(2), closes=time(4), zone="Europe/Berlin"), "2026-07-04T01:30", True),
        (Window(opens=time(2), closes=time(4), zone="Europe/Berlin"), "2026-07-04T02:30", False),
    ],
)
def test_windows(window, when, is_open):
    assert Rules(slo=SLO, windows=(window,)).is_in_window(at(when)) == is_open


def test_without_windows_changes_are_always_allowed():
    assert Rules(slo=SLO).is_in_window(at("2026-03-04T12:00"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_gpus": 0}, "max_gpus is 0; it must be at least 1"),
        ({"min_gpus": 9, "max_gpus": 8}, "max_gpus is 8; it must be at least 1 and min_gpus, 9"),
        ({"hysteresis": 1.0}, "hysteresis is 1.0; it must be from 0 to below 1"),
        ({"up_after_s": -1}, "up_after_s is -1; it must be at least 0"),
        ({"forecast_quantile": 1.0}, "forecast_quantile is 1.0; it must be from 0.5"),
        ({"payback_s": float("nan")}, "payback_s is nan; it must be at least 0"),
    ],
)
def test_rules_nobody_can_follow(given, message):
    with pytest.raises(RulesError, match=message):
        Rules(slo=SLO, **given)


def test_patience_grows_with_cold_starts_and_regrets():
    assert [Rules(slo=SLO).patience_s(start_s) for start_s in (20, 200)] == [300, 600]
    assert [Rules(slo=SLO).patience_s(20, regrets) for regrets in (1, 2, 9)] == [600, 1200, 1200]
    assert Rules(slo=SLO, down_after_s=60).patience_s(200) == 60


def test_a_cooldown_is_as_long_as_the_change_took():
    assert Rules(slo=SLO).cooldown_after_s(took_s=300, start_s=90) == 300
    assert Rules(slo=SLO).cooldown_after_s(took_s=10, start_s=90) == 90
    assert Rules(slo=SLO, cooldown_s=500, cooldown_factor=2).cooldown_after_s(took_s=300, start_s=90) == 600


def test_pressure_starts_anew_when_it_turns():
    rising = Pressure(direction="more", load=1.1, peak=1.1).next("more", 1.5, 15).next("more", 1.2, 15)
    assert (rising.lasted_s, rising.load, rising.peak) == (30, 1.2, 1.5)
    assert rising.next("less", 0.5, 15) == Pressure(direction="less", load=0.5, peak=0.5)


class TestMemory:
    """What is seen of changes, and that it survives."""

    def seeing(self, *looks) -> Memory:
        memory = Memory()
        for at_s, of in looks:
            memory = memory.seeing(observation(at_s, demand(1), of), soon_s=1200)
        return memory

    def test_a_new_target_is_a_change_and_takes_until_it_is_reached(self):
        before, after = pools("2 x tp2"), pools("1 x tp4")
        on_the_way = fleet(before, desired=after, changing=True)
        memory = self.seeing((0, fleet(before)), (15, on_the_way), (30, on_the_way), (120, fleet(after)))
        assert memory.change == Change(at_s=15, before=before, after=after, took_s=105)
        assert not memory.change.only_added

    def test_what_was_only_advised_is_no_change(self):
        memory = self.seeing((0, fleet(pools("2 x tp2"))), (15, fleet(pools("2 x tp2"))))
        assert memory.change is None

    def test_regrets_count_in_a_row_and_end_when_fewer_gpus_were_right(self):
        low, high = fleet(pools("1 x tp2")), fleet(pools("2 x tp2"))
        swings = ((0, high), (100, low), (400, high), (1000, low), (1300, high))
        assert self.seeing(*swings).regrets == 2
        assert self.seeing(*swings, (2000, low), (9000, high)).regrets == 0

    def test_a_regret_is_of_the_fleet_that_was_given_up(self):
        low, high, higher = (fleet(pools(f"{replicas} x tp2")) for replicas in (1, 2, 4))
        memory = self.seeing((0, high), (100, low), (400, high), (1000, higher))
        assert [memory.regrets_of(gpus) for gpus in (2, 4, 8)] == [1, 1, 0]

    def test_time_that_was_not_watched_does_not_count(self):
        memory = self.seeing((0, fleet(pools("2 x tp2"))))
        assert memory.passed_s(15, most_s=60) == 15
        assert memory.passed_s(3600, most_s=60) == 60
        assert Memory().passed_s(15, most_s=60) == 0

    def test_bars_end(self):
        memory = Memory().barring(pools("2 x tp2"), pools("1 x tp4"), until_s=100)
        assert memory.bar(pools("9 x tp2"), pools("5 x tp4")) is not None
        assert memory.bar(pools("2 x tp2"), pools("2 x tp2 + 1 x tp4")) is not None
        assert memory.bar(pools("1 x tp4"), pools("2 x tp2")) is None
        assert memory.seeing(observation(101, demand(1), fleet(pools("2 x tp2"))), 1200).barred == ()

    def test_it_becomes_json_and_comes_back(self):
        memory = Memory(
            seen_s=15.0,
            desired=pools("2 x tp2 + 1 x tp4"),
            change=Change(at_s=1.0, before={}, after=pools("2 x tp2"), took_s=3.0),
            pressure=Pressure(direction="less", lasted_s=30.0, load=0.3, peak=0.4),
            regrets=1,
            regretted_gpus=6,
            stuck_s=5.0,
            missed_s=6.0,
            asked=900.0,
            missed=7.0,
            doubts={TP2: 0.75, TP4: 0.5},
        ).barring(pools("2 x tp2"), pools("1 x tp4"), until_s=1e6)
        assert Memory.from_json(json.loads(json.dumps(memory.to_json()))) == memory
        assert Memory.from_json(Memory().to_json()) == Memory()

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ({}, "version of the policy's memory is None; this autoscaler reads 2"),
            ({"version": 1}, "version of the policy's memory is 1; this autoscaler reads 2"),
            ({"version": 2}, "the policy's memory is damaged"),
            ({**Memory().to_json(), "desired": {"tp0": 1}}, "the policy's memory is damaged"),
        ],
    )
    def test_what_it_cannot_read_it_refuses(self, document, message):
        with pytest.raises(MemoryVersionError, match=message):
            Memory.from_json(document)


def test_changes_outside_the_window_wait():
    asked = rules(windows=(Window(opens=time(2), closes=time(4)),))
    assert not asked.is_in_window(at("2026-03-04T12:00"))


def test_a_clock_that_is_set_back_does_not_lengthen_a_cooldown():
    two, three = pools("2 x tp2"), pools("3 x tp2")
    done = Change(at_s=7200.0, before=two, after=three, took_s=90.0)
    memory = Memory(seen_s=7500.0, desired=three, change=done)
    assert memory.seeing(observation(3600.0, demand(13), fleet(three)), 1200).change == replace(done, at_s=3600.0)
    under_way = replace(memory, change=replace(done, took_s=None))
    found = under_way.seeing(observation(3600.0, demand(13), fleet(three)), 1200).change
    assert found is not None
    assert found.took_s == 0
