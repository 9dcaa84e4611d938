"""The oracles on loads small enough to know the best plan of."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from fleet_runs import TP4, TP8, even, scenario, site
from policy_builders import Analytic

from autoscaling.capacity.site import site_of
from autoscaling.observation import Pools, gpus_of
from autoscaling.simulation.oracles.bound import bound_gpu_hours, bound_of
from autoscaling.simulation.oracles.clairvoyant import best_static, clairvoyant, scripted
from autoscaling.simulation.oracles.fluid import fluid_bound_gpu_hours
from autoscaling.simulation.oracles.programme import Programme
from autoscaling.simulation.oracles.scripted import Scripted
from autoscaling.simulation.oracles.trials import Trials, trials
from autoscaling.simulation.oracles.unhindered import Unhindered, unhindered
from autoscaling.simulation.run import run
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.synthetic import Load, constant, made, spike
from autoscaling.simulation.traces import Trace
from placement import Slo

ONE, TWO, WIDE = {TP4: 1}, {TP4: 2}, {TP8: 1}


def _programme(
    missed: Sequence[Sequence[float]], fleets: Sequence[Pools], given: Scenario, arrivals: Sequence[float] = ()
) -> Programme:
    """A hundred requests arrive in every minute, if nothing else is given."""
    rows = np.array(missed, dtype=float)
    come = np.array(arrivals or [100.0] * rows.shape[1])
    return Programme(Trials(fleets=tuple(fleets), missed=rows, arrivals=come), given)


class TestProgramme:
    # Two replicas are needed in minutes 4 and 5 only; the one more is held for its start of 60 s, two minutes, and
    # 35 s of drain and stop: 860 GPU-seconds for 200 requests.
    BUSY = ((0, 0, 0, 0, 100, 100, 0, 0), (0,) * 8)

    @pytest.mark.parametrize(
        ("gpu_s_per_miss", "serves"), [(4.2, [1] * 8), (4.4, [1, 1, 1, 1, 2, 2, 1, 1]), (1e6, [1, 1, 1, 1, 2, 2, 1, 1])]
    )
    def test_a_miss_is_avoided_where_that_costs_less_than_its_price(
        self, gpu_s_per_miss: float, serves: list[int]
    ) -> None:
        plan = _programme(self.BUSY, (ONE, TWO), scenario()).plan(gpu_s_per_miss)
        assert [pools[TP4] for pools in plan] == serves

    def test_a_gap_shorter_than_a_start_is_sat_through(self) -> None:
        missed = ((0, 0, 100, 0, 100, 0, 0), (0,) * 7)
        plan = _programme(missed, (ONE, TWO), scenario()).plan(100.0)
        assert [pools[TP4] for pools in plan] == [1, 1, 2, 2, 2, 1, 1]

    def test_without_room_a_change_is_made_when_it_costs_least(self) -> None:
        # Eight GPUs: two tp4 must go before tp8 starts, which takes 65 s. In minutes 2 and 3 nobody comes.
        missed = ((0, 0, 0, 0, 0, 50, 50, 50, 50, 50), (0,) * 10)
        arrivals = (100, 100, 0, 0, 100, 100, 100, 100, 100, 100)
        plan = _programme(missed, (TWO, WIDE), scenario(initial=TWO), arrivals).plan(100.0)
        assert plan == (TWO,) * 2 + (WIDE,) * 8

    def test_what_never_pays_is_not_done(self) -> None:
        plan = _programme(((1,) * 10, (0,) * 10), (TWO, WIDE), scenario(initial=TWO)).plan(1.0)
        assert plan == (TWO,) * 10


class TestScript:
    def test_replicas_are_wanted_in_time_to_start(self) -> None:
        given = scenario()  # 60 s and a tick of 15 s
        assert scripted([ONE] * 4 + [TWO] * 2 + [ONE], given) == ((0.0, ONE), (165.0, TWO), (360.0, ONE))

    def test_what_has_no_room_waits(self) -> None:
        assert scripted([TWO] * 3 + [WIDE] * 3, scenario(initial=TWO)) == ((0.0, TWO), (180.0, WIDE))

    def test_it_does_what_it_says(self) -> None:
        policy = Scripted(steps=((0.0, ONE), (165.0, TWO)), name="plan")
        result = run(_busy(), _small(), policy, 0)
        assert [(one.at_s, one.target) for one in result.decisions if one.kind != "hold"] == [(165.0, {"tp4": 2})]


def _busy(seed: int = 1) -> Trace:
    """Ten minutes, in two of them three times the load that one tp4 serves."""
    load = Load(
        requests_per_s=spike(2.0, 12.0, from_s=240.0, for_s=120.0),
        input_tokens=constant(1000),
        output_tokens=constant(100),
        duration_s=600.0,
        input_spread=0.5,
        output_spread=0.5,
    )
    return made(load, seed=seed)


def _small() -> Scenario:
    return scenario(slo=Slo(ttft_s=1.0, tpot_s=0.04, percentile=0.95))


@pytest.mark.parametrize("repartition", [True, False])
def test_the_clairvoyant_keeps_the_slo_and_costs_no_more_than_what_never_changes(repartition: bool) -> None:
    given, trace = _small(), _busy()
    static = run(trace, given, best_static(given, trace, Analytic()), 0)
    planned = run(trace, given, clairvoyant(given, trace, Analytic(), repartition=repartition), 0)
    assert static.attainment >= 0.95
    assert planned.attainment >= 0.95
    assert planned.gpu_hours < 0.8 * static.gpu_hours
    assert repartition or set(planned.series.gpus) == {"tp4"}


def test_no_fleet_that_never_changes_and_keeps_the_slo_is_cheaper_than_the_best() -> None:
    given, trace = _small(), _busy()
    (best,) = (pools for _, pools in best_static(given, trace, Analytic()).steps)
    tried = trials(trace, given, (TP4, TP8))
    may_miss = 0.05 * tried.arrivals.sum()
    keeping = [
        gpus_of(pools) for pools, missed in zip(tried.fleets, tried.missed, strict=True) if missed.sum() <= may_miss
    ]
    assert gpus_of(best) == min(keeping)


class TestFluidBound:
    def test_it_is_the_gpus_of_every_window(self) -> None:
        # Nothing may be missed: the smallest replica that does each minute's work.
        strict = replace(_small(), slo=Slo(ttft_s=1.0, tpot_s=0.04, percentile=0.999))
        hours = fluid_bound_gpu_hours(strict, _busy(), Analytic(scaling=1.0))
        assert hours >= 2 * 600 / 3600  # tp2 all the time
        assert hours <= 4 * 600 / 3600 + 4 * 120 / 3600

    def test_it_falls_with_what_may_be_missed(self) -> None:
        hours = [
            fluid_bound_gpu_hours(replace(_small(), slo=replace(_small().slo, percentile=share)), _busy(), Analytic())
            for share in (0.999, 0.95, 0.8)
        ]
        assert hours[0] > hours[1] > hours[2]

    def test_no_plan_is_cheaper(self) -> None:
        given, trace = _small(), _busy()
        planned = run(trace, given, clairvoyant(given, trace, Analytic()), 0)
        assert planned.gpu_hours >= 4 * 600 / 3600 * 0.99


class TestUnhindered:
    def test_it_misses_no_more_than_the_fleet_that_never_changes(self) -> None:
        given, trace = _small(), _busy()
        tried = trials(trace, given, (TP4, TP8))
        least = unhindered(trace, given, 15.0)
        for pools, missed in zip(tried.fleets, tried.missed.sum(axis=1).tolist(), strict=True):
            by_chance = 5  # which replica gets which request
            assert least.missed[least.fleets.index(dict(pools))].sum() <= missed + by_chance
        assert least.missed[least.fleets.index(ONE)].sum() > 100
        assert least.arrivals == tried.arrivals.sum() == len(trace)

    def test_every_request_is_counted_once(self) -> None:
        trace = even(
            10.0, 100.0
        )  # at 0.1, 0.2, ... 100 s; ten windows, the first and the last half of which is left out
        least = unhindered(trace, scenario(), 10.0)
        assert least.fleets[0] == {}
        assert least.missed[0].tolist() == [100.0] * 9

    def test_what_waited_before_hinders_nobody(self) -> None:
        # Twenty seconds of far more than one tp4 can do, and then a request now and then.
        busy, calm = even(60.0, 20.0, 2000, 200), even(0.5, 40.0, 2000, 200)
        trace = replace(
            busy,
            arrivals_s=np.concatenate([busy.arrivals_s, 20.0 + calm.arrivals_s]),
            input_tokens=np.full(1220, 2000.0),
            output_tokens=np.full(1220, 200.0),
        )
        given = _small()
        least = unhindered(trace, given, 10.0)
        missed = least.missed[least.fleets.index(ONE)]
        assert missed[0] > 300
        assert missed[2:].tolist() == [0.0] * 3
        assert run(trace, given, Scripted(steps=((0.0, ONE),), name="one"), 0).good < 1220 - missed.sum()

    def test_what_may_wait_for_the_next_replica_is_not_missed_yet(self) -> None:
        patient = scenario(slo=Slo(ttft_s=15.0, tpot_s=0.05, percentile=0.9))
        assert not unhindered(even(10.0, 100.0), patient, 10.0).missed[0].any()


class TestBound:
    # Around 300 and 340 s one tp4 misses a hundred requests each, two miss none.
    BUSY = (0.0,) * 29 + (100.0, 0.0, 0.0, 0.0, 100.0) + (0.0,) * 25

    @staticmethod
    def _bound_gpu_s(missed: Sequence[float], percentile: float = 0.999, **changes: float) -> float:
        """In 60 windows of 10 s one tp4 misses so many of 1,000 around each border; nothing at all is no choice."""
        rows = np.array([[1e6] * 59, missed, [0.0] * 59])
        given = Unhindered(window_s=10.0, fleets=({}, ONE, TWO), missed=rows, arrivals=1000)
        narrow = site_of(site().model, site().cluster, shapes=(TP4,))
        slo = Slo(ttft_s=1.0, tpot_s=0.05, percentile=percentile)
        return bound_of(given, scenario(site=narrow, slo=slo, **changes), 600.0) * 3600

    def test_one_that_misses_nothing_is_held_all_the_time(self) -> None:
        # But perhaps for part of the first windows and the last ones.
        assert 4 * 570 <= self._bound_gpu_s((0.0,) * 59) <= 4 * 600

    @pytest.mark.parametrize(
        ("percentile", "extra_s"),
        [(0.999, (60 + 20 + 5) * (1 - 1 / 200)), (0.9, (60 + 20 + 5) / 2), (0.8, 0.0)],
    )
    def test_a_replica_is_held_for_its_start_its_stop_and_the_windows_that_it_serves_to_the_end(
        self, percentile: float, extra_s: float
    ) -> None:
        # Two serve in four windows, of which they may leave out the first and the last; less what may be missed.
        extra_gpu_s = self._bound_gpu_s(self.BUSY, percentile) - self._bound_gpu_s((0.0,) * 59)
        assert extra_gpu_s == pytest.approx(4 * extra_s, abs=1)

    def test_what_is_held_before_settling_does_not_count(self) -> None:
        # Two that serve at 300 s for free go at once; for 340 s one starts that serves from 330 s on: 25 s of its start
        # count, no whole window, and its stop less the window that it may leave out.
        extra_gpu_s = self._bound_gpu_s(self.BUSY, settling_s=305.0) - self._bound_gpu_s((0.0,) * 59, settling_s=305.0)
        assert extra_gpu_s == pytest.approx(4 * (25 - 10 + 5), abs=1)

    def test_no_plan_of_a_replica_more_for_a_while_is_cheaper(self) -> None:
        given, trace = _small(), _busy()
        plans = [((0.0, ONE), (from_s, more), (until_s, ONE)) for more in (TWO, WIDE) for from_s, until_s in _spans()]
        results = [run(trace, given, Scripted(steps=plan, name="tried"), 0) for plan in plans]
        cheapest = min(result.gpu_hours for result in results if result.attainment >= 0.95)
        assert 0.8 * cheapest <= bound_gpu_hours(given, trace) <= cheapest

    @pytest.mark.parametrize(("seed", "percentile"), [(1, 0.9), (2, 0.99)])
    def test_windows_of_any_length_give_no_more_than_the_clairvoyant_needs(self, seed: int, percentile: float) -> None:
        given = scenario(slo=Slo(ttft_s=1.0, tpot_s=0.04, percentile=percentile))
        trace = _busy(seed)
        planned = run(trace, given, clairvoyant(given, trace, Analytic()), 0)
        assert planned.attainment >= percentile
        for window_s in (5.0, 10.0, 20.0, 30.0):
            assert bound_gpu_hours(given, trace, window_s=window_s) <= planned.gpu_hours


def _spans() -> Iterator[tuple[float, float]]:
    """Some that begin before what is asked rises at 240 s, or soon after, and end when it has fallen at 360 s."""
    return combinations(np.arange(150.0, 480.0, 30.0).tolist(), 2)
