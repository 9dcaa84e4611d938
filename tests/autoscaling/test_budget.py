"""How many requests may still miss the SLO, and what is done, or left, because of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_builders import Act, Play, demand, fleet, observation, pools, rules

from autoscaling.capacity.ceiling import margin
from autoscaling.policy.budget import counted, ease
from autoscaling.policy.memory import Memory

RULES = rules(tpot_ms=200, ttft_ms=2000)  # p95; 2 x tp2 are sure to serve 20.6 requests/s
MOST = 1 / margin(RULES.slo.percentile)
IN_A_LOOKBACK = 10 * RULES.lookback_s  # of ten requests per second
MAY_MISS = 0.05 * IN_A_LOOKBACK


@pytest.mark.parametrize(
    ("asked", "missed", "rate", "dispersion", "found"),
    [
        (0.0, 0.0, 10, 1.0, 1.0),  # nothing is known yet
        (IN_A_LOOKBACK, 0.0, 10, 1.0, MOST),
        (IN_A_LOOKBACK, 0.75 * MAY_MISS, 10, 1.0, MOST),
        (IN_A_LOOKBACK, 0.875 * MAY_MISS, 10, 1.0, MOST**0.5),
        (IN_A_LOOKBACK, 0.875 * MAY_MISS, 20, 1.0, MOST**0.25),  # for twice the requests it is half as much
        (IN_A_LOOKBACK, MAY_MISS, 10, 1.0, 1.0),
        (IN_A_LOOKBACK, 0.875 * MAY_MISS, 10, 20.0, 1.0),  # 100 more of the same cluster are on their way
        (IN_A_LOOKBACK, 0.0, 0, 1.0, 1.0),
    ],
)
def test_the_margin_that_misses_left_stand_for(asked, missed, rate, dispersion, found):
    now = replace(demand(rate), dispersion=dispersion)
    assert ease(Memory(asked=asked, missed=missed), now, RULES) == pytest.approx(found)


@given(
    minutes=st.lists(st.tuples(st.floats(0, 100), st.one_of(st.none(), st.floats(0, 1))), max_size=50),
    rate=st.floats(0, 100),
)
def test_it_is_never_more_than_the_margin_and_none_while_the_slo_is_missed(minutes, rate):
    memory = Memory()
    for requests_per_s, attained in minutes:
        seen = observation(0, demand(requests_per_s), fleet(pools("2 x tp2")), attainment=attained)
        memory = counted(memory, seen, RULES, 60.0)
    found = ease(memory, demand(rate), RULES)
    assert 1 <= found <= MOST * (1 + 1e-9)
    assert 0 <= memory.missed <= memory.asked
    if memory.missed >= 0.05 * memory.asked:
        assert found == 1


def test_old_misses_fade():
    bad, good = (observation(0, demand(10), fleet(pools("2 x tp2")), attainment=share) for share in (0.5, 1.0))
    memory = counted(Memory(), bad, RULES, 60.0)
    assert memory.missed == pytest.approx(300)
    assert counted(memory, good, RULES, RULES.lookback_s).missed == pytest.approx(300 / 2.718, rel=1e-3)


def rises_to(rate, attained):
    return Play(
        lambda now_s: demand(20 if now_s < 600 else rate), pools("2 x tp2"), RULES, seen={"attainment": attained}
    ).until(1500)


def test_a_little_too_much_is_borne_while_misses_are_left():
    assert rises_to(21.5, 0.99).acts == []
    assert "fewer requests than may have missed the SLO lately" in rises_to(21.5, 0.99).decisions[-1].reason
    assert rises_to(21.5, 0.95).acts == [Act(840, "replicas", "3 x tp2")]


def test_more_than_the_margin_is_not():
    assert rises_to(24, 0.99).acts == rises_to(24, 0.95).acts == [Act(690, "replicas", "3 x tp2")]


def test_a_replica_is_given_up_that_only_the_margin_needs():
    def falls(attained):
        asked = Play(lambda now_s: demand(21.5), pools("3 x tp2"), RULES, seen={"attainment": attained})
        return [act.target for act in asked.until(1500).acts]

    assert falls(0.99) == ["2 x tp2"]
    assert falls(0.95) == []
