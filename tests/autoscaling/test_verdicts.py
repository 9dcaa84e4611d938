from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_builders import SLO, START_S, TICK_S, demand, entry, observation, pools

from autoscaling.ledger.entries import Figures
from autoscaling.ledger.settling import Settling
from autoscaling.ledger.verdicts import Measured, Predict, basis_of, judged, measured, revert
from autoscaling.observation import Demand, Fleet, Observation, Pools
from placement import cluster_of

ONE, WIDE = pools("1 x tp2"), pools("1 x tp4")
CHANGE = entry(WIDE, ONE, "repartition")


def seen(attainment: float | None, *, rate: float = 2.0, answers: float = 1000.0) -> Measured:
    return Measured(
        demand=demand(rate), figures=Figures(requests_per_s=rate, gpus=4, attainment=attainment), answers=answers
    )


def model(target: float, before: float) -> Predict:
    def predict(of: Pools, asked: Demand) -> Figures:
        # Twice the demand is twice the misses, whatever serves.
        kept = target if of == WIDE else before
        return Figures(
            requests_per_s=asked.requests_per_s, gpus=4, attainment=1 - (1 - kept) * asked.requests_per_s / 2
        )

    return predict


@pytest.mark.parametrize(
    ("realised", "predicted", "verdict"),
    [(0.97, 0.99, "as predicted"), (0.80, 0.99, "worse"), (0.99, 0.80, "better"), (0.90, 0.94, "as predicted")],
)
def test_the_verdict_compares_what_came_with_what_was_predicted(
    realised: float, predicted: float, verdict: str
) -> None:
    outcome = judged(CHANGE, seen(realised), predict=model(predicted, 0.5), slo=SLO)
    assert (outcome.verdict, outcome.is_regretted) == (verdict, False)


@pytest.mark.parametrize("nothing", [None, seen(None), seen(0.2, answers=10)])
def test_too_little_to_tell_is_no_verdict_and_nothing_is_reverted(nothing: Measured | None) -> None:
    outcome = judged(CHANGE, nothing, predict=model(0.99, 0.99), slo=SLO)
    assert (outcome.verdict, outcome.is_regretted) == ("inconclusive", False)


def test_more_demand_than_expected_is_not_blamed_on_the_shape() -> None:
    """At four times the demand the model itself says 80 %: that is what came."""
    outcome = judged(CHANGE, seen(0.8, rate=8.0), predict=model(0.95, 0.9), slo=SLO)
    assert (outcome.verdict, outcome.is_regretted) == ("as predicted", False)


def test_what_the_pools_before_really_did_counts_for_them() -> None:
    """The model had them at 99 %, but they brought 60 %: to bring 70 % now is no reason to go back."""
    predict = model(0.99, 0.99)
    before = replace(CHANGE, basis=basis_of(ONE, seen(0.6), predict))
    assert before.basis is not None
    assert before.basis.bias == pytest.approx(-0.39)
    assert not judged(before, seen(0.7), predict=predict, slo=SLO).is_regretted
    assert judged(CHANGE, seen(0.7), predict=predict, slo=SLO).is_regretted


@pytest.mark.parametrize(("rate", "counts"), [(2.2, True), (3.2, False)])
def test_what_was_seen_at_another_demand_says_nothing(rate: float, counts: bool) -> None:
    """The pools before did far better than the model said; at 1.6 times that demand nobody knows."""
    predict = model(0.95, 0.5)
    lucky = replace(CHANGE, basis=basis_of(ONE, seen(0.99), predict))
    assert judged(lucky, seen(0.5, rate=rate), predict=predict, slo=SLO).is_regretted is counts


def test_the_way_back_is_not_taken_back_again() -> None:
    back = replace(CHANGE, decision=replace(CHANGE.decision, cause="revert"))
    assert not judged(back, seen(0.2), predict=model(0.99, 0.99), slo=SLO).is_regretted


def test_who_keeps_the_slo_is_never_sent_back() -> None:
    assert not judged(CHANGE, seen(0.951), predict=model(1.0, 1.0), slo=SLO).is_regretted


def test_replicas_are_not_reverted() -> None:
    more = entry(pools("2 x tp2"), ONE, "replicas")
    assert not judged(more, seen(0.2), predict=model(0.99, 0.99), slo=SLO).is_regretted


@given(realised=st.floats(0, 1), predicted=st.floats(0, 1), before=st.floats(0, 1), answers=st.floats(50, 1e5))
def test_a_change_is_regretted_only_if_it_is_clearly_worse_than_what_it_replaced(
    realised: float, predicted: float, before: float, answers: float
) -> None:
    outcome = judged(CHANGE, seen(realised, answers=answers), predict=model(predicted, before), slo=SLO)
    if outcome.is_regretted:
        assert realised < before - 0.05 + 1e-9
        assert realised < SLO.percentile


def fleet(serving: Pools, desired: Pools | None = None, *, changing: bool = False) -> Fleet:
    return Fleet(
        version=4,
        desired=desired or serving,
        serving=serving,
        starting={},
        changing=changing,
        cluster=cluster_of("dgx-h100"),
    )


def test_the_way_back_is_only_for_the_last_change_and_while_it_stands() -> None:
    regretted = replace(
        CHANGE,
        outcome=judged(CHANGE, seen(0.3), predict=model(0.9, 0.9), slo=SLO),
    )
    back = revert([regretted], fleet(WIDE), START_S)
    assert back is not None
    assert (back.kind, back.cause, back.target) == ("repartition", "revert", ONE)
    assert revert([regretted], fleet(pools("3 x tp4")), START_S) is None
    assert revert([regretted, entry(ONE, WIDE, number=2)], fleet(WIDE), START_S) is None
    assert revert([CHANGE], fleet(WIDE), START_S) is None


def looked(settling: Settling, of: Fleet, begin_s: float, ticks: int, attainment: float = 0.9) -> Observation:
    for tick in range(ticks):
        last = observation(begin_s + tick * TICK_S, of, attainment=attainment)
        settling.see(last)
    return last


def test_what_is_measured_leaves_the_transition_out() -> None:
    settling = Settling(settle_s=120, slo=SLO)
    looked(settling, fleet(ONE, WIDE, changing=True), 0, 4, attainment=0.1)
    looked(settling, fleet(WIDE), 60, 4, attainment=0.5)  # these windows hold some of it still
    assert not settling.now
    last = looked(settling, fleet(WIDE), 120, 5, attainment=0.99)
    assert settling.now is not None
    assert settling.now.figures.attainment == pytest.approx(0.99)
    assert not settling.outcomes([CHANGE], last, model(0.99, 0.9))
    last = looked(settling, fleet(WIDE), 195, 4, attainment=0.99)
    ((_, outcome),) = settling.outcomes([CHANGE], last, model(0.99, 0.9))
    assert outcome.verdict == "as predicted"


def test_a_change_that_another_one_followed_is_superseded() -> None:
    settling = Settling(settle_s=120, slo=SLO)
    last = looked(settling, fleet(pools("3 x tp4")), 0, 2)
    outcomes = settling.outcomes([CHANGE, entry(pools("2 x tp4"), WIDE, number=2)], last, model(1, 1))
    assert [outcome.verdict for _, outcome in outcomes] == ["superseded", "superseded"]
    assert outcomes[0][1].why == "Before it had settled the fleet was to be 3 x tp4."


def test_windows_that_overlap_are_learnt_from_once() -> None:
    settling, learnt_s = Settling(settle_s=600, slo=SLO), list[float]()
    for at_s in range(0, 240, 15):
        settling.see(observation(at_s, fleet(ONE)))
        settling.learnt({}, lambda pool, asked, at_s=at_s: learnt_s.append(at_s))
    assert learnt_s == [60, 120, 180]


def test_means_are_of_requests_not_of_looks() -> None:
    looks = [observation(0, fleet(ONE), rate=1, attainment=0.5), observation(15, fleet(ONE), rate=9, attainment=1.0)]
    found = measured(looks)
    assert found is not None
    assert found.figures.attainment == pytest.approx(0.95)
    assert found.demand.requests_per_s == 5
    assert found.answers == 5 * 75
    idle = [observation(0, fleet(ONE), rate=0, attainment=None)]
    assert measured(idle) is None
