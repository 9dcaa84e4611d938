"""Each rival's formula against worked examples, over observations that are written down here."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from policy_builders import TP4, TP8, Analytic, demand, fleet, observation

from autoscaling.observation import Blind, Observation
from autoscaling.simulation.rivals.dynamo import Dynamo
from autoscaling.simulation.rivals.dynamollm import DynamoLlm
from autoscaling.simulation.rivals.hpa import Hpa, kv_usage, recommended, waiting
from autoscaling.simulation.rivals.pool import Pool
from autoscaling.simulation.rivals.ray_serve import RayServe
from autoscaling.simulation.scenario import Policy
from placement import Slo

POOL = Pool(shape=TP4, max_gpus=40)
SLO = Slo(ttft_s=1.0, tpot_s=0.05, percentile=0.99)
BLIND = Blind(at_s=0.0, kind="unreachable", why="down")


def _seen(at_s: float, replicas: int, *, running: float = 0.0, queued: float = 0.0, kv: float = 0.3) -> Observation:
    """`running` and `queued` are of each replica."""
    seen = observation(at_s, demand(4.0), fleet({TP4: replicas}))
    load = replace(seen.pools[0], running=running * replicas, waiting=queued * replicas, kv_usage=kv)
    return replace(seen, pools=(load,))


def _targets(policy: Policy, seen: Iterable[Observation | Blind]) -> list[int | None]:
    """Replicas wanted at each observation, None for a hold."""
    state, found = policy.start(), []
    for one in seen:
        decision, state = policy.decide(one, state)
        found.append(None if decision.kind == "hold" else sum(decision.target.values()))
    return found


class TestRayServe:
    def _policy(self, target: float = 8.0) -> RayServe:
        return RayServe(pool=POOL, target_ongoing_requests=target)

    def test_the_number_is_requests_under_way_over_the_target_after_thirty_seconds(self) -> None:
        # 2 replicas with 20 each: error ratio 40 / (8 x 2) = 2.5, so 5 replicas.
        assert _targets(self._policy(), [_seen(at_s, 2, running=20) for at_s in (15, 30, 45)]) == [None, None, 5]

    def test_what_waits_counts_like_what_runs(self) -> None:
        assert _targets(self._policy(), [_seen(at_s, 2, queued=20) for at_s in (15, 30, 45)])[-1] == 5

    def test_loads_are_averaged_over_thirty_seconds(self) -> None:
        # 16, then 16 and 80 on average 48: 6 replicas, which must last 30 s; then 80 alone is 10.
        loads = [8, 8, 40, 40, 40]
        seen = [_seen(15.0 * tick, 2, running=load) for tick, load in enumerate(loads, start=1)]
        assert _targets(self._policy(), seen) == [None, None, None, None, 10]

    def test_a_pause_starts_the_delay_anew(self) -> None:
        loads = [20, 20, 8, 8, 20, 20, 20]
        seen = [_seen(15.0 * tick, 2, running=load) for tick, load in enumerate(loads, start=1)]
        # The mean of 20 and 8 still wants more at the third tick; the fourth does not, and time counts from the fifth.
        assert _targets(self._policy(), seen)[3:] == [None, None, None, 5]

    def test_fewer_only_after_ten_minutes(self) -> None:
        found = _targets(self._policy(), [_seen(15.0 * tick, 4, running=2) for tick in range(1, 60)])
        assert found.index(1) == 40  # 15 s + 600 s
        assert set(found[:40]) == {None}

    def test_never_more_than_fit(self) -> None:
        assert _targets(self._policy(), [_seen(at_s, 2, running=500) for at_s in (15, 30, 45)])[-1] == 10


class TestHpa:
    @pytest.mark.parametrize(
        ("usage", "replicas", "ready", "wanted"),
        [
            (2.0, 3, 3, 6),  # 200m over 100m doubles, 50m halves: the examples of Kubernetes' page
            (0.5, 4, 4, 2),
            (1.1, 5, 5, 5),  # within the tolerance
            (1.11, 5, 5, 6),
            (0.9, 5, 5, 5),
            (0.89, 9, 9, 9),  # ceil(8.01)
            (2.0, 4, 2, 4),  # the two that do not serve yet count as idle: 1.0
            (3.0, 4, 2, 6),
            (0.2, 4, 2, 1),
            (5.0, 4, 0, 4),  # nobody says anything
        ],
    )
    def test_the_formula(self, usage: float, replicas: int, ready: int, wanted: int) -> None:
        assert recommended(usage, replicas, ready) == wanted

    def test_more_at_once_and_at_most_four_more_or_twice_as_many(self) -> None:
        queue = Hpa(pool=POOL, metric=waiting, target=1.0, name="hpa-queue")
        assert _targets(queue, [_seen(15, 2, queued=3)]) == [6]
        assert _targets(queue, [_seen(15, 1, queued=50)]) == [5]
        assert _targets(queue, [_seen(15, 5, queued=50)]) == [10]

    def test_fewer_when_the_highest_number_of_five_minutes_is_less(self) -> None:
        kv = Hpa(pool=POOL, metric=kv_usage, target=0.6, name="hpa-kv")
        seen = [_seen(15.0, 4, kv=0.6), *(_seen(15.0 * tick, 4, kv=0.3) for tick in range(2, 30))]
        found = _targets(kv, seen)
        assert found.index(2) == 20  # what was wanted at 15 s counts until 315 s
        assert set(found[:20]) == {None}


class TestDynamo:
    def _policy(self, load: float = 1.0) -> Dynamo:
        return Dynamo(pool=POOL, slo=SLO, performance=Analytic(), load=load)

    def test_the_forecast_over_what_one_engine_does_is_the_floor(self) -> None:
        able_per_s = Analytic().capacity(TP4, demand(1.0), SLO).requests_per_s
        seen = observation(600.0, demand(2.4 * able_per_s), fleet({TP4: 1}))
        assert _targets(self._policy(), [seen]) == [3]
        assert _targets(self._policy(load=0.5), [seen]) == [5]

    @pytest.mark.parametrize(
        ("ttft_s", "tpot_s", "wanted"),
        [(2.0, 0.02, 4), (0.5, 0.06, 4), (0.9, 0.02, None), (0.5, 0.03, 2), (None, None, None)],
    )
    def test_between_forecasts_latencies_add_one_or_take_one_back(
        self, ttft_s: float | None, tpot_s: float | None, wanted: int | None
    ) -> None:
        quiet = [observation(at_s, demand(0.1), fleet({TP4: 3})) for at_s in (600.0, 615.0)]
        quiet[1] = replace(quiet[1], ttft_s=ttft_s, tpot_s=tpot_s)
        assert _targets(self._policy(), quiet)[1] == wanted

    def test_never_below_the_floor(self) -> None:
        busy = demand(2.5 * Analytic().capacity(TP4, demand(1.0), SLO).requests_per_s)
        seen = [observation(at_s, busy, fleet({TP4: 3}), ttft_s=0.1, tpot_s=0.01) for at_s in (600.0, 615.0)]
        assert _targets(self._policy(), seen) == [None, None]


class TestDynamoLlm:
    def test_every_epoch_the_shape_that_takes_fewest_gpus(self) -> None:
        policy = DynamoLlm(shapes=(TP4, TP8), max_gpus=32, slo=SLO, performance=Analytic())
        long = demand(0.5, inputs=20_000)
        assert not Analytic().capacity(TP4, long, replace(SLO, ttft_s=0.5)).requests_per_s
        policy = replace(policy, slo=replace(SLO, ttft_s=0.5))
        state = policy.start()
        early, state = policy.decide(observation(285.0, long, fleet({TP4: 2})), state)
        due, state = policy.decide(observation(300.0, long, fleet({TP4: 2})), state)
        assert early.kind == "hold"
        assert due.kind == "repartition"
        assert set(due.target) == {TP8}


@pytest.mark.parametrize(
    "policy",
    [
        RayServe(pool=POOL, target_ongoing_requests=8),
        Hpa(pool=POOL, metric=waiting, target=1.0, name="hpa-queue"),
        Dynamo(pool=POOL, slo=SLO, performance=Analytic()),
        DynamoLlm(shapes=(TP4,), max_gpus=32, slo=SLO, performance=Analytic()),
    ],
    ids=lambda policy: policy.name,
)
def test_all_hold_when_blind(policy: Policy) -> None:
    assert _targets(policy, [BLIND]) == [None]
