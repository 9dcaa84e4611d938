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
from planner_builders import DEEPSEEK_V3, LLAMA_70B, best, cluster, model, requests, slo

from placement.clusters.hardware import Cluster
from placement.clusters.machines import cluster_of
from placement.layout import Layout
from placement.planning.plan import Plan, plan
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
    is_sized = asked.get("rate", 8.0) is not None
    costs = [option.gpus if is_sized else 1 / option.tokens_per_s_per_gpu for option in found.options]
    expected = [cost / round(option.chance, 2) ** 1.5 for cost, option in zip(costs, found.options, strict=True)]
    assert expected == sorted(expected)
    for option in found.options:
        assert len(NUMBER.findall(option.reason)) > 3
    for lost, cost in zip(found.options[1:], costs[1:], strict=True):
        words = re.match(
            r"costs (as much as|\d+% more than|\d+% less than|[\d.]+ times as much as) (\S+) .*"
            r"keeps TPOT (?:with (?:only )?(\S+) chance, \S+ with (?:only )?(\S+)|as surely)",
            lost.reason,
        )
        assert words is not None
        assert (words[1] == "as much as") == (abs(cost / costs[0] - 1) <= 0.005)
        assert ("less" in words[1]) == (cost / costs[0] < 0.995)
        assert words[2] == str(best(found).shape)
        assert words[3] in (None, ">99%", f"{lost.chance:.0%}")


@pytest.mark.parametrize("asked", PLANS)
def test_the_partition_is_the_smallest_shape_that_meets_the_slo(asked: dict[str, Any]) -> None:
    found = planned(**asked)
    assert found.partition in found.options
    assert found.partition.shape.gpus == min(option.shape.gpus for option in found.options)


@pytest.mark.parametrize("asked", PLANS)
def test_every_option_keeps_the_slo_and_answers_the_rate(asked: dict[str, Any]) -> None:
    found = planned(**asked)
    assert found.options
    for option in found.options:
        assert option.meets_slo
        assert found.slo.tpot_s is None or option.load.tpot_s <= found.slo.tpot_s
        assert option.replicas * option.load.requests_per_s * HEADROOM >= (asked.get("rate", 8.0) or 0)


@pytest.mark.parametrize(
    ("rate", "ttft_ms", "tpot_ms", "percentile"),
    [(8, None, 30, 0.9), (11.7, 150, 80, 0.99), (11.7, 150, 80, 0.9), (4, 400, 40, 0.99), (25, 1000, 60, 0.95)],
)
def test_nothing_ranks_first_before_its_tails_were_looked_at(
    rate: float, ttft_ms: float | None, tpot_ms: float, percentile: float
) -> None:
    found = plan(model(), cluster(), requests(requests_per_s=rate), slo(ttft_ms, tpot_ms, percentile))
    tails = best(found).tails
    assert tails is not None
    assert not tails.overloaded
    assert (tails.attainment or 0) >= percentile


def test_a_rate_whose_tails_no_replicas_keep_says_how_many_it_would_take() -> None:
    """The mean would do with half of the cluster, but one request in a hundred would wait too long."""
    found = plan(model(), cluster(), requests(requests_per_s=20), slo(130, 60, 0.99))
    assert found.infeasible is not None
    assert found.closest is not None
    assert found.closest.gpus > 32
    assert f"need {found.closest.replicas} replicas" in found.infeasible.constraint
    rates = re.findall(r"([\d.]+) requests/s", found.infeasible.nearest)
    assert [float(rate) < 20 for rate in rates] == [True]


def test_ten_times_the_rate_on_ten_times_the_cluster_is_ten_times_the_gpus() -> None:
    small = plan(model(), cluster(), requests(requests_per_s=11.7), slo(150, 80, 0.99))
    large = plan(model(), cluster("40x dgx-h100"), requests(requests_per_s=117), slo(150, 80, 0.99))
    assert best(large).gpus <= 10 * best(small).gpus


def test_tails_that_no_number_of_replicas_keeps_are_not_a_lack_of_gpus() -> None:
    found = plan(model(), cluster("128x dgx-h100"), requests(requests_per_s=200), slo(100, 60, 0.999))
    assert found.infeasible is not None
    assert "GPUs; the cluster has" not in found.infeasible.constraint
    kept = re.search(
        r"meets the SLO for 99.9% of requests; \S+ comes close with ([\d.]+)%", found.infeasible.constraint
    )
    assert kept is not None
    assert float(kept[1]) < 99.9


def test_the_same_question_gets_the_same_answer() -> None:
    first, second = (plan(model(), cluster(), requests(requests_per_s=8), slo(500, 30)) for _ in range(2))
    assert first == second
    assert [option.reason for option in first.options] == [option.reason for option in second.options]


def test_the_order_of_nodes_changes_nothing() -> None:
    turned = Cluster(nodes=tuple(reversed(cluster().nodes)))
    assert plan(model(), turned, requests(requests_per_s=8), slo(tpot_ms=30)) == planned()


# --- how the answer moves with the question --------------------------------------------------------------------------


@settings(max_examples=25)
@given(rate=st.floats(0.1, 60), more=st.floats(1, 5), tpot_ms=st.sampled_from(FIRST_LIMITS_MS))
def test_more_requests_never_need_fewer_gpus(rate: float, more: float, tpot_ms: float | None) -> None:
    few = plan(model(), cluster(), requests(requests_per_s=rate), slo(tpot_ms=tpot_ms))
    many = plan(model(), cluster(), requests(requests_per_s=rate * more), slo(tpot_ms=tpot_ms))
    if many.best is not None:
        assert best(few).gpus <= many.best.gpus


@settings(max_examples=25)
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
    of_a_gpu = [each.load.requests_per_s / each.prediction.shape.gpus for each in (best(found), best(without))]
    assert of_a_gpu[0] >= of_a_gpu[1] * (1 + share / 2)


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


# --- as a library ----------------------------------------------------------------------------------------------------


def test_the_package_exports_what_a_plan_needs() -> None:
    code = (
        "import sys\n"
        "from placement import Lengths, ModelSpec, Slo, Workload, cluster_of, plan\n"
        "from placement.models.catalogue import config\n"
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


@settings(max_examples=30)
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
