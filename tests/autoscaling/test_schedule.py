"""Windows of the week by the clock of a time zone, and the bounds of the schedule that hold in them."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_builders import pools, rules

from autoscaling.policy.bounds import bounds, bounds_ahead
from autoscaling.schedule import Scheduled, Window
from autoscaling.settings.messages import SettingsError
from autoscaling.settings.settings import parse_settings

BERLIN = ZoneInfo("Europe/Berlin")
# Clocks change by an hour, by half an hour (Lord Howe), once by a day (Apia, 2011), and not at all.
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "UTC")
times = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
moments = st.integers(
    int(datetime(2011, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2032, 1, 1, tzinfo=UTC).timestamp())
)


def at(text: str) -> float:
    """Seconds since the epoch; the text has its distance from UTC."""
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("opens", "closes", "day", "opens_s", "closes_s"),
    [
        # A day like others, and one over midnight.
        ("08:00", "18:00", "2026-06-10", "2026-06-10T08:00+02:00", "2026-06-10T18:00+02:00"),
        ("22:00", "06:00", "2026-06-10", "2026-06-10T22:00+02:00", "2026-06-11T06:00+02:00"),
        ("09:00", "09:00", "2026-06-10", "2026-06-10T09:00+02:00", "2026-06-11T09:00+02:00"),
        # On 2026-03-29 the clock goes from 02:00 to 03:00.
        ("22:00", "06:00", "2026-03-28", "2026-03-28T22:00+01:00", "2026-03-29T06:00+02:00"),
        ("02:00", "05:00", "2026-03-29", "2026-03-29T03:00+02:00", "2026-03-29T05:00+02:00"),
        ("02:30", "05:00", "2026-03-29", "2026-03-29T03:00+02:00", "2026-03-29T05:00+02:00"),
        ("01:00", "02:30", "2026-03-29", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"),
        # On 2026-10-25 it goes from 03:00 back to 02:00.
        ("22:00", "06:00", "2026-10-24", "2026-10-24T22:00+02:00", "2026-10-25T06:00+01:00"),
        ("02:30", "05:00", "2026-10-25", "2026-10-25T02:30+02:00", "2026-10-25T05:00+01:00"),
        ("01:00", "02:30", "2026-10-25", "2026-10-25T01:00+02:00", "2026-10-25T02:30+02:00"),
        ("00:00", "00:00", "2026-10-25", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"),
    ],
)
def test_a_window_opens_and_closes_by_the_clock_on_the_wall(opens, closes, day, opens_s, closes_s):
    begins = datetime.fromisoformat(day).replace(tzinfo=BERLIN)
    window = Window(
        opens=time.fromisoformat(opens),
        closes=time.fromisoformat(closes),
        days=(begins.weekday(),),
        zone="Europe/Berlin",
    )
    (found,) = window.spans(begins.timestamp(), begins.timestamp() + 86_400)
    assert found == (at(opens_s), at(closes_s))
    assert [window.is_open(found[0] + of_s) for of_s in (-1, 0)] == [False, True]
    assert [window.is_open(found[1] + of_s) for of_s in (-1, 0)] == [True, False]


def test_a_window_that_the_clock_skips_does_not_open():
    skipped = Window(opens=time(2, 10), closes=time(2, 50), zone="Europe/Berlin")
    assert list(skipped.spans(at("2026-03-29T00:00+01:00"), at("2026-03-29T12:00+02:00"))) == []


@given(moment=moments, one=times, other=times, zone=st.sampled_from(ZONES))
def test_two_windows_that_share_a_day_share_every_moment_of_it(moment, one, other, zone):
    halves = Window(opens=one, closes=other, zone=zone), Window(opens=other, closes=one, zone=zone)
    if one != other:
        assert [half.is_open(moment) for half in halves].count(True) == 1
        assert not halves[0].may_overlap(halves[1])


days = st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True).map(tuple)
windows = st.builds(Window, opens=times, closes=times, days=days, zone=st.sampled_from(ZONES))


@given(one=windows, other=windows, moment=moments)
def test_windows_that_are_open_together_overlap(one, other, moment):
    if one.is_open(moment) and other.is_open(moment):
        assert one.may_overlap(other)
        assert other.may_overlap(one)


scheduled = st.builds(
    Scheduled,
    window=windows,
    min_gpus=st.sampled_from([0, 8, 16]),
    max_gpus=st.sampled_from([None, 8, 12, 24]),
    min_replicas=st.integers(0, 3),
)


@given(schedule=st.lists(scheduled, max_size=4).map(tuple), moment=moments)
def test_of_bounds_that_hold_together_the_tightest_do(schedule, moment):
    asked = rules(min_gpus=4, max_gpus=20, min_replicas=1, schedule=schedule)
    found = bounds(asked, 32, moment)
    now = [one for one in schedule if one.window.is_open(moment)]
    assert found.min_gpus == max([4, *(one.min_gpus for one in now)])
    assert found.min_replicas == max([1, *(one.min_replicas for one in now)])
    assert found.max_gpus == min([20, *(one.max_gpus for one in now if one.max_gpus is not None)])
    assert {one.bounds for one in found.due} == set(now)
    ahead, coming = bounds_ahead(asked, 32, pools("2 x tp4"), moment, step_s=150)
    assert ahead.max_gpus == found.max_gpus
    assert ahead.min_gpus >= found.min_gpus
    assert all(moment < one.opens_s <= moment + asked.lookback_s + 150 for one in coming)
    assert {one for one in ahead.due if one.opens_s > moment} == {one for one in coming if one.opens_s <= moment + 150}


@given(schedule=st.lists(scheduled, max_size=3), moment=moments)
def test_settings_that_are_accepted_never_want_more_than_they_allow(schedule, moment):
    names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    entries = [
        {
            "days": [names[day] for day in one.window.days],
            "from": f"{one.window.opens:%H:%M}",
            "to": f"{one.window.closes:%H:%M}",
            "timezone": one.window.zone,
            "min_replicas": one.min_replicas,
            "gpus": {"min": one.min_gpus} | ({} if one.max_gpus is None else {"max": one.max_gpus}),
        }
        for one in schedule
    ]
    model = {"model": "m", "source": "s", "slo": {"ttft": "1s"}, "gpus": {"min": 4, "max": 20}, "schedule": entries}
    try:
        settings = parse_settings(str({"models": [model]}))
    except SettingsError:
        return
    accepted = tuple(one.scheduled for one in settings.models[0].schedule)
    assert accepted == tuple(schedule)
    found = bounds(rules(min_gpus=4, max_gpus=20, schedule=accepted), 32, moment)
    assert max(found.min_gpus, found.min_replicas) <= found.max_gpus


def test_the_days_are_those_on_which_it_opens():
    night = Window(opens=time(22), closes=time(6), days=(4,), zone="Europe/Berlin")  # from Friday
    friday = datetime(2026, 6, 12, 23, tzinfo=BERLIN)
    assert [night.is_open((friday + timedelta(hours=hours)).timestamp()) for hours in (-24, 0, 6, 8, 24)] == [
        False,
        True,
        True,
        False,
        False,
    ]
