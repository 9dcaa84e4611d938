import math
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_builders import DEEPSEEK_V3, LLAMA_70B, cluster, model, requests, slo

from placement.cluster_reading import read_cluster
from placement.hardware import Cluster, ClusterError, Gpu, Node
from placement.layout import Infeasible, Layout
from placement.machines import cluster_of
from placement.option import Option
from placement.plan import Plan, plan
from placement.shape import Shape
from placement.workload import Lengths, Slo, Workload

HEADROOM = 0.85
NUMBER = re.compile(r"\d")
FIRST_LIMITS_MS = (25.0, 30.0, 40.0, 60.0, 100.0, None)


@cache
def planned(
    name: str = LLAMA_70B,
    on: str = "4x dgx-h100",
    rate: float | None = 8.0,
    ttft_ms: float | None = None,
    tpot_ms: float | None = 30.0,
) -> Plan:
    return plan(model(name), cluster(on), requests(requests_per_s=rate), slo(ttft_ms, tpot_ms))


def best(found: Plan) -> Option:
    assert found.best is not None, found.infeasible
    return found.best


def infeasible(found: Plan) -> Infeasible:
    assert found.infeasible is not None
    assert (found.best, found.partition, found.options) == (None, None, ())
    return found.infeasible


def shapes(found: Plan) -> list[str]:
    return [str(prediction.shape) for prediction in found.predictions]


# --- what a plan promises --------------------------------------------------------------------------------------------


def test_a_dense_model_stays_inside_islands_and_has_replicas_for_the_rate() -> None:
    chosen = best(planned())
    assert 1 < chosen.shape.tp <= 8
    assert chosen.load.tpot_s <= 0.030
    assert chosen.replicas * chosen.load.requests_per_s * HEADROOM >= 8
    assert chosen.gpus <= 32


PLANS = [
    pytest.param({}, id="dense"),
    pytest.param({"rate": 40.0, "tpot_ms": 60.0}, id="many-replicas"),
    pytest.param({"rate": None}, id="no-rate"),
    pytest.param({"name": DEEPSEEK_V3, "on": "8x dgx-h200", "rate": 20.0, "tpot_ms": 50.0}, id="experts"),
    pytest.param({"on": "1x dgx-a100", "rate": 1.0, "tpot_ms": 100.0}, id="one-machine"),
]


@pytest.mark.parametrize("asked", PLANS)
def test_layouts_obey_every_rule_and_replicas_share_no_gpu(asked: dict[str, Any]) -> None:
    found = planned(**asked)
    nodes = cluster(asked.get("on", "4x dgx-h100"))
    assert best(found).layouts
    for option in found.options:
        assert len(option.layouts) == min(option.replicas, 64)
        for layout in option.layouts:
            layout.check(nodes)
            assert layout.shape == option.shape
        taken = [place for layout in option.layouts for place in layout.places]
        assert len(taken) == len(set(taken))


@pytest.mark.parametrize("asked", PLANS)
def test_options_are_ranked_by_cost_and_every_one_says_why_with_numbers(asked: dict[str, Any]) -> None:
    found = planned(**asked)
    if asked.get("rate", 8.0) is None:
        costs = [-option.tokens_per_s_per_gpu for option in found.options]
    else:
        costs = [option.gpus for option in found.options]
    assert costs == sorted(costs)
    for option in found.options:
        assert len(NUMBER.findall(option.reason)) > 3
    for lost in found.options[1:]:
        assert f"where {best(found).shape} gives" in lost.reason
        if "as many GPUs" in lost.reason:
            assert lost.gpus == best(found).gpus
        if found_pair := re.match(r"(?:needs )?(\d+) GPUs against (\d+)", lost.reason):
            assert [int(number) for number in found_pair.groups()] == [lost.gpus, best(found).gpus]


@pytest.mark.parametrize("asked", PLANS)
def test_the_partition_is_the_smallest_shape_that_meets_the_slo(asked: dict[str, Any]) -> None:
    found = planned(**asked)
    assert found.partition in found.options
    assert found.partition.shape.gpus == min(option.shape.gpus for option in found.options)


@pytest.mark.parametrize("asked", PLANS)
def test_every_option_keeps_the_slo_and_answers_the_rate(asked: dict[str, Any]) -> None:
    found = planned(**asked)
    for option in found.options:
        assert option.meets_slo
        assert found.slo.tpot_s is None or option.load.tpot_s <= found.slo.tpot_s
        assert option.replicas * option.load.requests_per_s * HEADROOM >= (asked.get("rate", 8.0) or 0)


def test_the_same_question_gets_the_same_answer() -> None:
    first, second = (plan(model(), cluster(), requests(requests_per_s=8), slo(500, 30)) for _ in range(2))
    assert first == second
    assert [option.reason for option in first.options] == [option.reason for option in second.options]


def test_the_order_of_nodes_changes_nothing() -> None:
    turned = Cluster(nodes=tuple(reversed(cluster().nodes)))
    assert plan(model(), turned, requests(requests_per_s=8), slo(tpot_ms=30)) == planned()


# --- how the answer moves with the question --------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.1, 60), more=st.floats(1, 5), tpot_ms=st.sampled_from(FIRST_LIMITS_MS))
def test_more_requests_never_need_fewer_gpus(rate: float, more: float, tpot_ms: float | None) -> None:
    few = plan(model(), cluster(), requests(requests_per_s=rate), slo(tpot_ms=tpot_ms))
    many = plan(model(), cluster(), requests(requests_per_s=rate * more), slo(tpot_ms=tpot_ms))
    if many.best is not None:
        assert best(few).gpus <= many.best.gpus


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.5, 30),
    tpot_ms=st.floats(15, 100),
    ttft_ms=st.one_of(st.none(), st.floats(200, 3000)),
    looser=st.floats(1, 4),
)
def test_a_stricter_slo_never_gets_cheaper(rate: float, tpot_ms: float, ttft_ms: float | None, looser: float) -> None:
    workload = requests(requests_per_s=rate)
    strict = plan(model(), cluster(), workload, slo(ttft_ms, tpot_ms))
    loose = plan(model(), cluster(), workload, slo(ttft_ms and ttft_ms * looser, tpot_ms * looser))
    if strict.best is not None:
        assert best(loose).gpus <= strict.best.gpus


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_tokens_found_in_the_prefix_cache_never_cost_gpus(share: float) -> None:
    without = plan(model(), cluster(), requests(8192, 128, requests_per_s=3), slo(tpot_ms=60))
    found = plan(model(), cluster(), requests(8192, 128, requests_per_s=3, prefix_hit_rate=share), slo(tpot_ms=60))
    assert best(found).gpus <= best(without).gpus
    assert best(found).load.requests_per_s >= best(without).load.requests_per_s * (1 + share / 2)


def test_clients_are_held_by_enough_replicas() -> None:
    found = plan(model(), cluster(), requests(concurrency=300), slo(tpot_ms=40))
    assert best(found).replicas * best(found).load.running >= 300
    with_fewer = plan(model(), cluster(), requests(concurrency=60), slo(tpot_ms=40))
    assert best(with_fewer).gpus < best(found).gpus


def test_a_smaller_kv_cache_element_leaves_room_for_more_requests() -> None:
    rooms = [
        next(
            prediction.room.tokens
            for prediction in plan(model(), cluster(), requests(), kv_bytes_per_element=size).predictions
            if prediction.shape == Shape(tp=4)
        )
        for size in (2.0, 1.0)
    ]
    assert rooms[1] == pytest.approx(2 * rooms[0], rel=0.01)


def test_a_long_request_must_find_room_somewhere() -> None:
    usual = plan(model(), cluster("1x dgx-h100"), requests())
    longest = plan(model(), cluster("1x dgx-h100"), requests(), longest_tokens=130_000)
    fitting = [{str(each.shape) for each in found.predictions if each.fits} for found in (usual, longest)]
    assert fitting[1] < fitting[0]
    assert "tp2" in fitting[0] - fitting[1]


# --- mixtures of experts ---------------------------------------------------------------------------------------------


def test_experts_are_also_spread_over_data_parallel_ranks() -> None:
    found = planned(DEEPSEEK_V3, "8x dgx-h200", 20.0, None, 50.0)
    assert {"tp8", "tp8ep8", "tp8ep16dp2", "ep16dp16", "tp4ep32dp8"} <= set(shapes(found))
    kinds = {(option.shape.ep > 1, option.shape.dp > 1) for option in found.options}
    assert {(False, False), (True, False), (True, True)} <= kinds
    assert not any(prediction.shape.ep > 1 for prediction in planned().predictions)


# --- no plan ---------------------------------------------------------------------------------------------------------


def test_a_model_too_large_names_the_memory_and_what_would_hold_it() -> None:
    found = plan(model(DEEPSEEK_V3), cluster("1x dgx-h100"), requests())
    answer = infeasible(found)
    assert re.search(r"does not fit: \S+ needs [\d.]+ GiB on the busiest GPU", answer.constraint)
    assert "GiB weights" in answer.constraint
    assert "KV cache of 1152 tokens" in answer.constraint
    nearest = re.search(r"on (\d+) GPUs", answer.nearest)
    assert nearest is not None
    assert int(nearest[1]) > 8
    assert found.closest is None
    assert all(not prediction.fits for prediction in found.predictions)


@pytest.mark.parametrize(
    ("limits", "missed", "kept"),
    [
        pytest.param({"tpot_ms": 1.0}, ["TPOT [0-9.]+ ms against 1 ms"], "TTFT", id="tpot"),
        pytest.param({"ttft_ms": 5.0}, ["TTFT [0-9]+ ms against 5 ms"], "TPOT", id="ttft"),
        pytest.param(
            {"ttft_ms": 5.0, "tpot_ms": 1.0},
            ["TTFT [0-9]+ ms against 5 ms", "TPOT [0-9.]+ ms against 1 ms"],
            "nothing",
            id="both",
        ),
    ],
)
def test_an_slo_that_nothing_meets_says_what_it_misses_by_how_much(
    limits: dict[str, float], missed: list[str], kept: str
) -> None:
    found = plan(model(), cluster(), requests(requests_per_s=1), slo(**limits))
    answer = infeasible(found)
    assert found.closest is not None
    assert str(found.closest.shape) in answer.constraint
    for words in missed:
        assert re.search(words, answer.constraint)
    assert kept not in answer.constraint + answer.nearest
    assert answer.nearest.startswith("an SLO with ")


def test_the_nearest_slo_would_be_met() -> None:
    found = plan(model(), cluster(), requests(), slo(tpot_ms=1))
    nearest = re.search(r"TPOT of ([0-9.]+) ms", infeasible(found).nearest)
    assert nearest is not None
    assert plan(model(), cluster(), requests(), slo(tpot_ms=float(nearest[1]) + 0.1)).best is not None


def test_too_few_gpus_says_what_rate_they_answer_and_how_many_more_it_takes() -> None:
    found = plan(model(), cluster("1x dgx-h100"), requests(requests_per_s=500), slo(tpot_ms=60))
    answer = infeasible(found)
    numbers = re.fullmatch(
        r"500 requests/s need (\d+) replicas of (\S+), (\d+) GPUs; the cluster has 8 of .+, room for (\d+)",
        answer.constraint,
    )
    assert numbers is not None
    replicas, shape, gpus, room = int(numbers[1]), Shape.parse(numbers[2]), int(numbers[3]), int(numbers[4])
    assert (replicas * shape.gpus, room * shape.gpus <= 8) == (gpus, True)
    nearest = re.fullmatch(r"([\d.]+) requests/s, or at least (\d+) more GPUs", answer.nearest)
    assert nearest is not None
    assert int(nearest[2]) == gpus - 8
    possible = plan(model(), cluster("1x dgx-h100"), requests(requests_per_s=0.8 * float(nearest[1])), slo(tpot_ms=60))
    assert possible.best is not None


def test_gpus_left_over_in_islands_do_not_count() -> None:
    """Six islands of 3 GPUs hold six pairs, although there are 18 GPUs."""
    islands = read_cluster({"gpu": "h100_sxm", "gpus_per_machine": 3, "machines": 6})
    clients = 50.0
    while (found := plan(model(), islands, requests(concurrency=clients), slo(tpot_ms=45))).best is not None:
        assert found.best.replicas * found.best.shape.pp <= 6
        clients *= 1.1
    answer = infeasible(found)
    numbers = re.search(
        r"need (\d+) replicas of (\S+), .* the cluster has 18 of .*, room for (\d+)$", answer.constraint
    )
    assert numbers is not None
    needed, shape, room = int(numbers[1]), Shape.parse(numbers[2]), int(numbers[3])
    assert room == 6 // shape.pp < needed
    more = re.search(r"at least (\d+) more GPUs", answer.nearest)
    assert more is not None
    assert int(more[1]) > 0


# --- clusters that are not all alike ---------------------------------------------------------------------------------


def mixed(h100_usd: float | None = None, a100_usd: float | None = None) -> Cluster:
    machines: list[dict[str, Any]] = [{"machine": "dgx-h100", "count": 2}, {"machine": "dgx-a100", "count": 4}]
    for machine, usd in zip(machines, (h100_usd, a100_usd), strict=True):
        if usd is not None:
            machine["usd_per_gpu_hour"] = usd
    return read_cluster({"machines": machines})


def kind(option: Option) -> str:
    return option.prediction.region.kind.kind


def test_replicas_do_not_mix_kinds_of_gpu() -> None:
    found = plan(model(), mixed(), requests(requests_per_s=6), slo(tpot_ms=50))
    assert {kind(option) for option in found.options} == {"h100_sxm", "a100_sxm"}
    for option in found.options:
        for layout in option.layouts:
            assert {seat.node.rpartition("-")[0] for seat in layout.seats} == {f"dgx-{kind(option).split('_')[0]}"}


@pytest.mark.parametrize(
    ("prices", "chosen"),
    [
        pytest.param((None, None), "h100_sxm", id="fewest-gpus"),
        pytest.param((30.0, 1.0), "a100_sxm", id="least-money"),
        pytest.param((2.0, 2.0), "h100_sxm", id="equal-prices"),
        pytest.param((30.0, None), "h100_sxm", id="not-all-prices-are-known"),
    ],
)
def test_money_decides_where_all_prices_are_known(prices: tuple[float | None, float | None], chosen: str) -> None:
    found = plan(model(), mixed(*prices), requests(requests_per_s=6), slo(tpot_ms=50))
    assert kind(best(found)) == chosen
    assert ("USD" in best(found).reason) == (None not in prices)
    if None not in prices:
        usd = [option.usd_per_hour for option in found.options]
        assert usd == sorted(usd, key=lambda each: each or math.inf)


def test_a_gpu_that_nothing_is_known_of_is_refused() -> None:
    unknown = Node(name="a", island="a", gpus=8, gpu=Gpu(name="Banana 3000", memory_bytes=80 * 2**30))
    with pytest.raises(ClusterError, match=r"GPU 'Banana 3000' is not known; give one of .*h100_sxm.* its datasheet"):
        plan(model(), Cluster(nodes=(unknown,)), requests())


def test_a_gpu_of_ones_own_is_planned_from_its_datasheet() -> None:
    own = read_cluster(
        {
            "gpu": {"name": "X1", "memory": "96 GB", "memory_bandwidth": "3 TB/s", "flops": {"bf16": "500 TFLOPS"}},
            "gpus_per_machine": 8,
            "links": {
                "island": {"kind": "pcie5", "bandwidth": "50 GB/s", "latency": "5 us"},
                "network": {"kind": "roce", "bandwidth": "100 Gbit/s", "latency": "10 us"},
            },
        }
    )
    found = plan(model(), own, requests(requests_per_s=1), slo(tpot_ms=100))
    assert best(found).gpus <= 8
    assert any("not measured" in line for line in best(found).prediction.sources)


# --- as a library ----------------------------------------------------------------------------------------------------


def test_the_package_exports_what_a_plan_needs() -> None:
    code = (
        "import sys\n"
        "from placement import Lengths, ModelSpec, Slo, Workload, cluster_of, plan\n"
        "from placement.catalogue import config\n"
        f"model = ModelSpec.from_hf_config(config({LLAMA_70B!r}), name='llama')\n"
        "lengths = Lengths(mean_tokens=1000)\n"
        "work = Workload(input_tokens=lengths, output_tokens=lengths, requests_per_s=2)\n"
        "found = plan(model, cluster_of('dgx-h100', 1), work, Slo(tpot_s=0.05))\n"
        "print(found.best.replicas, found.best.shape)\n"
        "print([name for name in ('ray', 'vllm', 'torch', 'httpx', 'pydantic', 'yaml') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    answer, imported = done.stdout.splitlines()
    assert re.fullmatch(r"\d+ (tp|pp)\S+", answer)
    assert imported == "[]"


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from([LLAMA_70B, DEEPSEEK_V3, "meta-llama/Llama-3.1-8B", "openai/gpt-oss-120b"]),
    machine=st.sampled_from(["dgx-h100", "dgx-a100", "dgx-h200"]),
    count=st.integers(1, 3),
    tokens_in=st.floats(1, 50_000),
    tokens_out=st.floats(1, 4_000),
    asked=st.one_of(
        st.fixed_dictionaries({"requests_per_s": st.floats(1e-3, 1e3)}),
        st.fixed_dictionaries({"concurrency": st.floats(1, 1e4)}),
        st.just({}),
    ),
    limits=st.tuples(st.none() | st.floats(1e-3, 10), st.none() | st.floats(1e-3, 1)),
    percentile=st.floats(0.5, 0.999),
)
def test_every_question_has_an_answer(
    name: str,
    machine: str,
    count: int,
    tokens_in: float,
    tokens_out: float,
    asked: dict[str, float],
    limits: tuple[float | None, float | None],
    percentile: float,
) -> None:
    workload = Workload(
        input_tokens=Lengths(mean_tokens=tokens_in), output_tokens=Lengths(mean_tokens=tokens_out), **asked
    )
    wanted = Slo(ttft_s=limits[0], tpot_s=limits[1], percentile=percentile)
    found = plan(model(name), cluster_of(machine, count), workload, wanted)
    assert (found.best is None) == (found.infeasible is not None)
    if found.infeasible is not None:
        assert NUMBER.search(found.infeasible.constraint)
        assert found.infeasible.nearest
    for option in found.options:
        assert option.gpus <= 8 * count
        assert all(isinstance(layout, Layout) for layout in option.layouts)
        assert math.isfinite(option.load.ttft_s + option.load.tpot_s)
