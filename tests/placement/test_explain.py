import re
from functools import cache

import pytest
from planner_builders import DEEPSEEK_V3, LLAMA_70B, cluster, model, region, requests, slo

from placement.planning.explain import explain
from placement.planning.plan import Plan, plan
from placement.shape import Shape


@cache
def planned(name: str = LLAMA_70B, on: str = "4x dgx-h100", tpot_ms: float = 30) -> Plan:
    return plan(model(name), cluster(on), requests(requests_per_s=8), slo(tpot_ms=tpot_ms))


def explained(shape: str, name: str = LLAMA_70B, on: str = "4x dgx-h100", tpot_ms: float = 30) -> str:
    return "\n".join(explain(planned(name, on, tpot_ms), Shape.parse(shape), region(on)))


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, text
    return [float(number) for number in found.groups()]


def test_groups_over_two_machines_are_slower_because_of_all_reduces_on_the_network() -> None:
    text = explained("tp16")
    assert "Its tensor-parallel groups of 16 cross 2 machines over infiniband at 50 GB/s a GPU." in text
    mine_ms, best_ms, times = numbers(
        r"a token takes ([\d.]+) ms against ([\d.]+) ms of tp\d+: ([\d.]+) times slower", text
    )
    assert mine_ms > best_ms
    assert times == pytest.approx(mine_ms / best_ms, abs=0.01)
    lost, before, after = numbers(r"it loses ([\d.]+) ms on all-reduces \(([\d.]+) to ([\d.]+)\)", text)
    assert after - before == pytest.approx(lost, abs=0.11)
    assert before < after
    assert "it gains" in text
    assert "ms on dense weights (" in text


def test_groups_inside_an_island_name_its_link() -> None:
    text = explained("tp4pp2")
    assert "Its tensor-parallel groups of 4 stay inside one island on nvlink4." in text
    assert "0 of its 1 stage boundaries leave an island." in text
    for shape in ("tp8pp2", "tp16pp2"):
        assert "1 of its 1 stage boundaries leave an island." in explained(shape)


def test_pairs_of_a_machine_cross_its_islands_not_the_network() -> None:
    text = explained("tp4", on="2x h100-nvl-8")
    assert "cross 2 islands of one machine over pcie5" in text
    assert "infiniband" not in text


def test_a_shape_that_does_not_fit_says_of_what_and_how_much() -> None:
    text = explained("tp1")
    total, weights, activations, kv, available = numbers(
        r"would need ([\d.]+) GiB \(([\d.]+) weights, ([\d.]+) activations, ([\d.]+) for one request's KV cache\) "
        r"and has ([\d.]+)\.",
        text,
    )
    assert total == pytest.approx(weights + activations + kv, abs=0.2)
    assert weights == pytest.approx(2 * 70.6e9 / 2**30, rel=0.01)
    assert available < 80 < total
    assert text.startswith(f"tp1 does not hold {LLAMA_70B}")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("tp3", "tp3 is impossible: tp3 does not divide the 64 attention heads"),
        ("pp81", "pp81 is impossible: "),
        ("tp2ep2", "needs a mixture of experts"),
        ("tp64", "tp64 is impossible here: it needs 64 GPUs; there are 32 NVIDIA H100"),
    ],
)
def test_an_impossible_shape_says_why(shape: str, reason: str) -> None:
    assert reason in explained(shape)


def test_the_chosen_shape_says_that_it_is_the_choice() -> None:
    found = planned()
    assert found.best is not None
    text = "\n".join(explain(found, found.best.shape, region()))
    assert f"It is the plan's choice: {found.best.reason}" in text
    assert "against" not in text.replace(found.best.reason, "")


def test_without_a_plan_a_shape_is_compared_with_the_closest() -> None:
    found = planned(tpot_ms=1)
    assert found.closest is not None
    text = "\n".join(explain(found, Shape(tp=2), region()))
    assert f"of {found.closest.shape}:" in text
    assert "slower" in text


def test_experts_spread_over_machines_name_the_exchange() -> None:
    text = explained("tp8ep16dp2", DEEPSEEK_V3, "8x dgx-h200", 60)
    assert "Its experts are spread over 16 GPUs, which cross 2 machines over infiniband" in text
    assert "expert exchange" in text


@pytest.mark.parametrize("shape", ["tp2", "tp4", "tp16", "tp32", "pp8", "tp2pp4"])
def test_faster_and_slower_agree_with_the_times(shape: str) -> None:
    text = explained(shape)
    mine_ms, best_ms = numbers(r"a token takes ([\d.]+) ms against ([\d.]+) ms", text)
    assert ("slower" if mine_ms > best_ms else "faster") in text
