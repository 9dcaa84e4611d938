"""What replicas can do for a demand: known relations, edges, and that answers do not jump or depend on the past."""

from dataclasses import replace

import numpy as np
import pytest
from autoscaling_builders import MIXTRAL, TP2, TP4, TP4PP2, TP8, demand, model, performance, site, slo
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.capacity.ceiling import Ceiling
from autoscaling.capacity.corrections import Correction
from autoscaling.capacity.lattice import around
from autoscaling.capacity.performance import Capacity, PlannedPerformance, blended
from autoscaling.capacity.site import site_of
from autoscaling.observation import Demand
from placement.clusters.cluster_reading import read_cluster
from placement.clusters.hardware import Cluster, ClusterError, Gpu, Node
from placement.cost.prediction import MAX_RUNNING, predict
from placement.cost.simulation import lengths, poisson_arrivals, simulate, step_table
from placement.cost.simulation_replica import slowed
from placement.shape import Shape, ShapeError
from placement.workload import Slo, Workload

NOISE = 0.03  # of a ceiling, which is found with runs of 1,000 requests


def capacity(shape: Shape = TP4, asked: Demand | None = None, target: Slo | None = None, replicas: int = 1) -> Capacity:
    return performance().capacity(shape, asked or demand(), target or slo(), replicas=replicas)


def rate(shape: Shape = TP4, asked: Demand | None = None, target: Slo | None = None, replicas: int = 1) -> float:
    return capacity(shape, asked, target, replicas).requests_per_s


class TestRelations:
    @pytest.mark.parametrize(
        ("more", "less", "least_ratio"),
        [
            pytest.param(demand(), demand(tokens_in=4096), 1.5, id="longer prompts"),
            pytest.param(demand(), demand(tokens_out=1024), 1.5, id="longer answers"),
            pytest.param(
                demand(tokens_in=4096, hits=0.5), demand(tokens_in=4096), 1.15, id="prefixes found in a cache"
            ),
            pytest.param(demand(), demand(dispersion=5.0), 1.05, id="arrivals in bursts"),
            pytest.param(demand(spread=0.0), demand(spread=1.5), 1.05, id="lengths that differ"),
        ],
    )
    def test_what_makes_a_replica_do_more(self, more: Demand, less: Demand, least_ratio: float) -> None:
        assert rate(asked=more) > least_ratio * rate(asked=less)

    @pytest.mark.parametrize(
        ("looser", "tighter", "least_ratio"),
        [
            pytest.param(slo(1000, 50), slo(1000, 30), 1.3, id="tpot"),
            pytest.param(slo(1000, None), slo(200, None), 1.3, id="ttft"),
            pytest.param(slo(1000, 30, 0.9), slo(1000, 30, 0.99), 1.1, id="percentile"),
        ],
    )
    def test_a_tighter_slo_leaves_less(self, looser: Slo, tighter: Slo, least_ratio: float) -> None:
        assert rate(target=looser) > least_ratio * rate(target=tighter)

    def test_wider_replicas_answer_sooner_and_keep_a_tighter_tpot(self) -> None:
        lone = [capacity(shape).lone_tpot_s for shape in (TP2, TP4, TP8)]
        assert lone == sorted(lone, reverse=True)
        tight = slo(1000, 15)
        assert [rate(shape, target=tight) > 0 for shape in (TP2, TP4, TP8)] == [False, False, True]

    def test_replicas_that_share_a_queue_do_more_each(self) -> None:
        each = [rate(TP8, replicas=replicas) for replicas in (1, 4, 8)]
        assert each[0] * (1 + NOISE) < each[1] < each[2] * (1 + NOISE)
        assert rate(replicas=64) == rate(replicas=8)

    def test_a_slower_machine_than_thought_does_less(self) -> None:
        slower = performance().corrected({TP4: Correction(step_factor=1.21)})
        assert slower.capacity(TP4, demand(), slo()).requests_per_s < 0.85 * rate()
        assert slower.capacity(TP8, demand(), slo()) == capacity(TP8)


class TestBinding:
    @pytest.mark.parametrize(
        ("shape", "asked", "target", "binding"),
        [
            pytest.param(TP4, demand(), slo(2000, 30), "tpot", id="slow steps"),
            pytest.param(TP4, demand(tokens_in=4096, tokens_out=32), slo(800, None), "ttft", id="prompts queue"),
            pytest.param(TP2, demand(tokens_in=3072), slo(5000, None), "kv", id="wait for room"),
            pytest.param(TP2, demand(tokens_in=3072), slo(None, None), "kv", id="room limits the batch"),
            pytest.param(TP8, demand(tokens_in=4096, tokens_out=32), slo(None, None), "none", id="computing limits it"),
        ],
    )
    def test_what_gives_way_first(self, shape: Shape, asked: Demand, target: Slo, binding: str) -> None:
        assert capacity(shape, asked, target).binding == binding

    @pytest.mark.parametrize(("target", "binding"), [(slo(1000, 12), "tpot"), (slo(40, 100), "ttft")])
    def test_what_a_request_alone_breaks_has_no_capacity(self, target: Slo, binding: str) -> None:
        found = capacity(TP4, target=target)
        assert (found.requests_per_s, found.binding) == (0.0, binding)
        assert found.saturation_per_s > 1

    def test_requests_longer_than_the_cache_have_no_capacity(self) -> None:
        found = capacity(TP2, demand(tokens_in=50_000))
        assert (found.requests_per_s, found.saturation_per_s, found.binding) == (0.0, 0.0, "kv")
        assert rate(TP8, demand(tokens_in=50_000), slo(30_000, 100)) > 0


class TestAttainment:
    def test_at_the_ceiling_it_is_what_the_slo_wants(self) -> None:
        at_the_ceiling = demand(4 * rate(replicas=4))
        assert performance().attainment({TP4: 4}, at_the_ceiling, slo()) == pytest.approx(0.9)

    def test_twice_the_rate_needs_twice_the_replicas(self) -> None:
        one = performance().attainment({TP4: 8}, demand(20), slo())
        two = performance().attainment({TP4: 16}, demand(40), slo())
        assert one == pytest.approx(two, abs=0.01)
        assert performance().attainment({TP4: 8}, demand(60), slo()) < one - 0.2

    def test_shapes_share_the_demand_by_what_they_can_do(self) -> None:
        mixed = {TP4: 2, TP8: 2}
        both = sum(count * rate(shape, replicas=4) for shape, count in mixed.items())
        assert performance().attainment(mixed, demand(both), slo()) == pytest.approx(0.9)

    def test_what_cannot_keep_up_keeps_nothing(self) -> None:
        assert performance().attainment({TP4: 1}, demand(100), slo()) == 0.0
        assert performance().attainment({}, demand(1), slo()) == 0.0

    def test_nothing_asked_is_nothing_missed(self) -> None:
        assert performance().attainment({TP4: 1}, demand(0), slo()) == 1.0

    def test_an_slo_that_nobody_keeps_is_missed_by_fewer_at_a_low_rate(self) -> None:
        nearly = slo(1000, 1.0065e3 * capacity().lone_tpot_s)
        assert rate(target=nearly) == 0
        low, high = (performance().attainment({TP4: 1}, demand(at), nearly) for at in (0.05, 5))
        assert 0 < low < 0.9
        assert high < low

    @given(rates=st.tuples(st.floats(0.01, 60), st.floats(0.01, 60)), count=st.integers(1, 4))
    def test_it_never_rises_with_the_rate(self, rates: tuple[float, float], count: int) -> None:
        low, high = (performance().attainment({TP4: count, TP8: 1}, demand(at), slo()) for at in sorted(rates))
        assert high <= low


@pytest.mark.parametrize(
    ("shape", "target", "replicas"), [(TP4, slo(1000, 30), 4), (TP8, slo(2000, 50, 0.95), 2), (TP8, slo(300, None), 1)]
)
def test_a_long_run_from_empty_agrees(shape: Shape, target: Slo, replicas: int) -> None:
    """Just below the ceiling the SLO is kept, well above it is not."""
    assert long_run(shape, target, replicas, 0.95) > target.percentile
    assert long_run(shape, target, replicas, 1.15) < target.percentile


def long_run(shape: Shape, target: Slo, replicas: int, load: float) -> float:
    """Attainment of 6,000 requests of the usual demand at `load` times the ceiling."""
    asked, region = demand(), site().region_of(shape)
    question = site().question(Workload(input_tokens=asked.input_tokens, output_tokens=asked.output_tokens))
    (found,) = predict(question, [(shape, region)])
    factor = min(found.loads, key=lambda one: abs(one.requests_per_s - rate(shape))).measured_factor
    generator = np.random.default_rng(5)
    tails = simulate(
        slowed(step_table(question, shape, region), factor),
        poisson_arrivals(load * replicas * rate(shape, target=target, replicas=replicas), 6000, generator),
        lengths(asked.input_tokens, 6000, generator),
        lengths(asked.output_tokens, 6000, generator),
        room_tokens=found.room.tokens,
        max_running=MAX_RUNNING,
        slo=target,
        replicas=replicas,
        settling=1000,
    )
    assert tails.attainment is not None
    return tails.attainment


LENGTHS = st.floats(512, 2048)


class TestAnswers:
    @settings(max_examples=25)
    @given(tokens_in=LENGTHS, tokens_out=st.floats(128, 512), longer=st.floats(1.0, 1.5))
    def test_longer_prompts_are_never_more_requests(self, tokens_in: float, tokens_out: float, longer: float) -> None:
        before, after = (rate(asked=demand(4, tokens_in * factor, tokens_out)) for factor in (1.0, longer))
        assert after <= before * (1 + NOISE)

    @settings(max_examples=25)
    @given(tokens_in=LENGTHS, tokens_out=st.floats(128, 512), longer=st.floats(1.0, 1.5))
    def test_longer_answers_are_hardly_ever_more(self, tokens_in: float, tokens_out: float, longer: float) -> None:
        """A few percent, where a short answer misses its TPOT by the one step that somebody's long prompt took."""
        before, after = (rate(asked=demand(4, tokens_in, tokens_out * factor)) for factor in (1.0, longer))
        assert after <= before * 1.1

    @settings(max_examples=25)
    @given(tokens_in=LENGTHS, tokens_out=st.floats(128, 512))
    def test_a_percent_longer_is_a_few_percent_less(self, tokens_in: float, tokens_out: float) -> None:
        before, after = (rate(asked=demand(4, tokens_in * factor, tokens_out * factor)) for factor in (1.0, 1.01))
        assert abs(after / before - 1) < 0.03

    def test_they_do_not_depend_on_what_was_asked_before(self) -> None:
        asked = demand(4, 1100, 300)
        fresh = PlannedPerformance(site())
        fresh.capacity(TP4, demand(4, 1300, 280), slo())
        assert fresh.capacity(TP4, asked, slo()) == capacity(asked=asked)

    def test_the_rate_that_is_asked_at_does_not_matter(self) -> None:
        assert capacity(asked=demand(1)) == capacity(asked=demand(100))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_what_is_read_off_is_exact_for_what_is_straight(coordinates: list[float]) -> None:
    corners = around(coordinates)
    assert sum(weight for _, weight in corners) == pytest.approx(1)
    assert all(weight > 0 for _, weight in corners)
    for axis, value in enumerate(coordinates):
        assert sum(vertex[axis] * weight for vertex, weight in corners) == pytest.approx(value)


@pytest.mark.parametrize("weight", [0.05, 0.2])
def test_a_corner_where_next_to_nothing_keeps_the_slo_is_no_worse_than_one_where_nothing_does(weight: float) -> None:
    def read_off(rate: float) -> float:
        good, bad = (Ceiling(requests_per_s=one, saturation_per_s=5.0) for one in (3.0, rate))
        return blended(TP4, [(good, 1 - weight), (bad, weight)]).requests_per_s

    assert read_off(0.001) == pytest.approx(read_off(0.0), rel=0.01)
    assert read_off(0.0) == pytest.approx(3 * (1 - weight))
    assert read_off(3.0) == pytest.approx(3)


class TestSite:
    def test_a_dense_model_has_few_shapes_of_every_size(self) -> None:
        shapes = site().shapes
        assert len(shapes) <= 16
        assert {TP2, TP4, TP8, TP4PP2} <= set(shapes)
        assert {shape.gpus for shape in shapes} >= {2, 4, 8, 16}
        assert list(shapes) == sorted(shapes, key=lambda shape: (shape.gpus, str(shape)))

    def test_a_mixture_of_experts_may_spread_them(self) -> None:
        assert any(shape.ep > 1 for shape in site(MIXTRAL).shapes)

    def test_pipelines_go_where_an_island_is_too_small(self) -> None:
        small = site_of(model(), read_cluster({"gpu": "h100_sxm", "gpus_per_machine": 8, "island_size": 1})).shapes
        assert small
        assert all(shape.pp > 1 for shape in small)

    def test_only_the_shapes_that_are_given(self) -> None:
        assert site(shapes=(TP8, TP4)).shapes == (TP4, TP8)
        with pytest.raises(ShapeError, match=r"tp2 is not among those that .* tp4, tp8"):
            performance(shapes=(TP4, TP8)).capacity(TP2, demand(), slo())

    @pytest.mark.parametrize(
        ("shape", "message"),
        [(Shape(tp=3), "tp3 does not divide the 64 attention heads"), (Shape(), "shape tp1 .* no GPUs .* room")],
    )
    def test_a_shape_that_cannot_be_is_refused(self, shape: Shape, message: str) -> None:
        with pytest.raises(ShapeError, match=message):
            site_of(model(), read_cluster("4x dgx-h100"), shapes=[shape])

    def test_a_gpu_that_nothing_is_known_of_is_refused(self) -> None:
        node = Node(name="n", island="i", gpus=8, gpu=Gpu(name="Mystery 9000", memory_bytes=80 * 1024**3))
        with pytest.raises(ClusterError, match="Mystery 9000"):
            site_of(model(), Cluster(nodes=(node,)))

    def test_a_cluster_that_does_not_hold_the_model_is_refused(self) -> None:
        node = replace(read_cluster("1x dgx-h100").nodes[0], gpus=1)
        with pytest.raises(ClusterError, match=r"1 GPUs do not hold .*Llama"):
            site_of(model(), Cluster(nodes=(node,)))
