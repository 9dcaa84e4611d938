"""What holds for the policy whatever the demand: bounds, one change at a time, no way back too soon."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_builders import TIMES, Analytic, Play, demand, pools, rules

from autoscaling.observation import gpus_of
from autoscaling.policy.memory import Memory

# A rate and two lengths for every five minutes.
phases = st.lists(
    st.tuples(st.floats(0.0, 60.0), st.sampled_from([256, 512, 2048, 4096]), st.sampled_from([32, 128, 512])),
    min_size=2,
    max_size=6,
)
bounds = st.fixed_dictionaries(
    {
        "min_gpus": st.sampled_from([0, 4]),
        "max_gpus": st.sampled_from([8, 16, 32]),
        "min_replicas": st.sampled_from([1, 2]),
        "max_change_gpus": st.sampled_from([None, 4, 8]),
        "repartition": st.booleans(),
        "forecast": st.booleans(),
        "floor": st.sampled_from([0.0, 0.5]),
    }
)
few = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])


def play(asked, initial="2 x tp2", blind=lambda at_s: False, **given):
    def at(now_s):
        return demand(*asked[int(max(now_s, 0.0) // 300) % len(asked)])

    return Play(at, pools(initial), rules(tpot_ms=100, ttft_ms=1500, **given), blind=blind).until(300 * len(asked))


@few
@given(phases, bounds)
def test_never_below_the_minimum_nor_past_the_budget_nor_too_much_at_once(asked, limits):
    made = play(asked, **limits)

    before = pools("2 x tp2")
    for decision in made.decisions:
        target = decision.target
        assert limits["min_gpus"] <= gpus_of(target) <= limits["max_gpus"]
        assert sum(target.values()) >= limits["min_replicas"]
        assert len(target) <= 2
        if limits["max_change_gpus"]:
            shapes = {*before, *target}
            moves = [shape.gpus * (target.get(shape, 0) - before.get(shape, 0)) for shape in shapes]
            assert sum(move for move in moves if move > 0) <= limits["max_change_gpus"]
            assert -sum(move for move in moves if move < 0) <= limits["max_change_gpus"]
        if not limits["repartition"]:
            assert set(target) == set(before)
        before = target


@few
@given(phases)
def test_one_change_at_a_time(asked):
    made = play(asked)

    ends = {decision.at_s for decision in made.decisions if decision.cause == "changing"}
    assert ends.isdisjoint(act.at_s for act in made.acts)
    for one, following in zip(made.acts, made.acts[1:], strict=False):
        assert following.at_s - one.at_s >= 30.0 + TIMES.stop_s  # a drain is the shortest of all changes


@few
@given(phases)
def test_no_way_back_within_the_cooldown(asked):
    made = play(asked, cooldown_s=600)

    targets = [(0.0, "2 x tp2"), *((act.at_s, act.target) for act in made.acts)]
    for (_, first), (since_s, second), (at_s, third) in zip(targets, targets[1:], targets[2:], strict=False):
        if third == first != second:
            assert at_s - since_s >= 600


@few
@given(phases, st.integers(0, 5), st.integers(1, 10))
def test_holds_on_missing_data_and_is_none_the_wiser_for_it(asked, begun, length):
    first_s, last_s = 60.0 * begun, 60.0 * (begun + length)
    made = play(asked, blind=lambda at_s: first_s <= at_s < last_s)

    unseen = [one for one in made.decisions if first_s <= one.at_s < last_s]
    assert all((one.kind, one.cause) == ("hold", "blind") for one in unseen)
    assert len({tuple(one.target.items()) for one in unseen}) <= 1


@few
@given(phases, st.floats(1.0, 1.5))
def test_memory_survives_a_restart(asked, factor):
    made = play(asked)
    assert Memory.from_json(made.memory.to_json()) == made.memory


@few
@given(
    st.floats(1.0, 40.0),
    st.floats(1.0, 2.0),
    st.sampled_from([256, 1024, 4096]),
    st.sampled_from(["1 x tp8", "4 x tp2", "2 x tp4"]),
    st.booleans(),
)
def test_more_demand_never_ends_with_fewer_gpus_beyond_what_a_repartition_must_save(
    rate, factor, inputs, initial, repartition
):
    hysteresis = 0.1

    def end(asked_rate):
        made = play(
            [(asked_rate, inputs, 128)] * 8, initial, repartition=repartition, hysteresis=hysteresis, max_gpus=32
        )
        last = made.decisions[-1]
        served = any(option.price.final_attainment >= 0.95 for option in last.options)
        return gpus_of(last.target), served

    (less, _), (more, is_served) = end(rate), end(rate * factor)
    if is_served:
        assert more >= less * ((1 - hysteresis) if repartition else 1.0)


def test_the_analytic_model_is_monotonic():
    asked = rules().slo
    rates = [
        Analytic().capacity(next(iter(pools("1 x tp4"))), demand(1, size), asked).requests_per_s
        for size in (256, 512, 4096)
    ]
    assert rates == sorted(rates, reverse=True)
