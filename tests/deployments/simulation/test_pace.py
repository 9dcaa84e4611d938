import asyncio

import pytest
from simulated_clock import Clock

from deployments.simulation.pace import MAX_LAG_S, Pace


def test_steps_follow_each_other_without_the_time_this_machine_needs_for_them() -> None:
    clock = Clock()
    pace = Pace(scale=1, now_s=clock.now_s, sleep=clock.sleep)
    pace.restart()
    ends_s = []
    for _ in range(3):
        assert pace.begin(1.0)
        clock.s += 0.3  # work
        asyncio.run(pace.end())
        ends_s.append(clock.s)
    assert ends_s == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("scale", [0.5, 1, 10])
def test_the_scale_divides_every_duration(scale: float) -> None:
    clock = Clock()
    pace = Pace(scale=scale, now_s=clock.now_s, sleep=clock.sleep)
    pace.restart()
    pace.begin(2.0)
    asyncio.run(pace.end())
    assert clock.s == pytest.approx(2 / scale)


def test_idle_time_is_not_made_up_for() -> None:
    clock = Clock(s=100.0)
    pace = Pace(scale=1, now_s=clock.now_s, sleep=clock.sleep)
    pace.restart()
    pace.begin(1.0)
    asyncio.run(pace.end())
    assert clock.s == pytest.approx(101)


def test_a_machine_that_is_too_slow_is_told_and_does_not_hurry_later() -> None:
    clock = Clock()
    pace = Pace(scale=1, now_s=clock.now_s, sleep=clock.sleep)
    pace.restart()
    keeps_up = []
    for _ in range(5):
        keeps_up.append(pace.begin(1.0))
        clock.s += 1.06  # work
        asyncio.run(pace.end())
    assert keeps_up == [True] * 5  # 0.06 s a step is made up for, as long as it is less than the most
    clock.s += 10
    assert not pace.begin(1.0)
    late_s = clock.s
    asyncio.run(pace.end())
    assert clock.s == late_s
    assert pace.begin(3.0)
    asyncio.run(pace.end())
    assert clock.s == pytest.approx(late_s + 3.0 - MAX_LAG_S)
