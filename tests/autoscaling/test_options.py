"""Which options are looked at, and with how many replicas."""

import pytest
from policy_builders import TP1, TP2, TP4, TP8, Analytic, demand, fleet, observation, pools, rules

from autoscaling.observation import gpus_of, spelled
from autoscaling.policy.bounds import bounds
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.options import kind_of, options
from autoscaling.policy.outlook import outlook


def found(rate, current, tokens=512, **given):
    """The options for a fleet, by name, with their kinds."""
    asked = rules(tpot_ms=200, ttft_ms=2000, **given)
    current = pools(current)
    plan = outlook(observation(1e4, demand(rate, tokens), fleet(current)), asked, start_s=90, queued=0.0)
    estimates = Estimates(Analytic(), asked.slo)
    made = options(
        current, (*current, TP1, TP2, TP4, TP8), plan, estimates, estimates, bounds(asked, gpus=32, at_s=1e4)
    )
    return {spelled(one.pools): one.kind for one in made}


def test_enough_is_there_only_holding_fewer_or_another_shape():
    assert found(13, "4 x tp2") == {
        "4 x tp2": "hold",
        "2 x tp2": "replicas",
        "3 x tp2": "replicas",
        "1 x tp4": "repartition",
        "1 x tp8": "repartition",
        "11 x tp1": "repartition",
    }


def test_too_little_is_there_what_is_needed_and_one_more_alone_and_beside():
    assert found(26, "2 x tp2") == {
        "2 x tp2": "hold",
        "3 x tp2": "replicas",
        "4 x tp2": "replicas",
        "2 x tp4": "repartition",
        "2 x tp2 + 1 x tp4": "repartition",
        "1 x tp8": "repartition",
        "2 x tp2 + 1 x tp8": "repartition",
        "21 x tp1": "repartition",
        "22 x tp1": "repartition",  # for what surely was not more
        "10 x tp1 + 2 x tp2": "repartition",
    }


def test_nothing_is_enough_as_many_as_there_may_be():
    assert set(found(400, "2 x tp4")) >= {"2 x tp4", "8 x tp4", "16 x tp2", "4 x tp8"}


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"max_gpus": 6}, lambda one: gpus_of(one) <= 6),
        ({"min_gpus": 6}, lambda one: gpus_of(one) >= 6),
        ({"min_replicas": 3}, lambda one: sum(one.values()) >= 3),
        ({"max_shapes": 1}, lambda one: len(one) == 1),
        ({"repartition": False}, lambda one: set(one) == {TP2}),
    ],
)
@pytest.mark.parametrize("rate", [3, 13, 90])
def test_bounds_hold_for_all_but_staying(given, allowed, rate):
    others = list(found(rate, "3 x tp2", **given))[1:]
    assert others or rate == 3 or "max_gpus" in given
    assert all(allowed(pools(one)) for one in others)


def test_one_change_starts_and_stops_no_more_replicas_than_allowed():
    assert set(found(90, "2 x tp2", max_change_gpus=4, repartition=False)) >= {"2 x tp2", "4 x tp2"}
    assert set(found(3, "9 x tp2", max_change_gpus=4, repartition=False)) >= {"9 x tp2", "8 x tp2", "7 x tp2"}


def test_a_fleet_outside_its_bounds_is_brought_back():
    assert "3 x tp2" in found(3, "1 x tp2", min_gpus=6)
    assert "2 x tp2" in found(3, "6 x tp2", max_gpus=4)


def test_nothing_runs_each_shape_alone():
    assert {"1 x tp2", "1 x tp4"} < set(found(3, ""))
    assert set(found(3, "").values()) == {"hold", "replicas"}


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("2 x tp2", "2 x tp2", "hold"),
        ("2 x tp2", "3 x tp2", "replicas"),
        ("2 x tp2 + 1 x tp4", "3 x tp2 + 2 x tp4", "replicas"),
        ("2 x tp2 + 1 x tp4", "3 x tp2", "repartition"),
        ("2 x tp2 + 2 x tp4", "3 x tp2 + 1 x tp4", "repartition"),
        ("2 x tp2", "2 x tp2 + 1 x tp4", "repartition"),
        ("", "1 x tp4", "replicas"),
        ("1 x tp4", "", "replicas"),
    ],
)
def test_kinds(before, after, kind):
    assert kind_of(pools(before), pools(after)) == kind


def test_bounds_that_are_farther_away_than_one_change_may_go_are_approached_in_steps():
    few = {"max_change_gpus": 4, "repartition": False}
    assert "10 x tp2" in found(13, "12 x tp2", max_gpus=8, **few)
    assert "3 x tp2" in found(3, "1 x tp2", min_gpus=12, **few)
    # One change is enough.
    assert {one for one in found(13, "6 x tp2", max_gpus=8, **few) if gpus_of(pools(one)) > 8} == {"6 x tp2"}
