"""Plans on clusters that are not all alike, or of GPUs that are in no list."""

import math
from typing import Any

import pytest
from planner_builders import best, model, requests, slo

from placement.clusters.cluster_reading import read_cluster
from placement.clusters.hardware import Cluster, ClusterError, Gpu, Node
from placement.planning.option import Option
from placement.planning.plan import plan


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
        usd = [(option.usd_per_hour or math.inf) / round(option.chance, 2) ** 1.5 for option in found.options]
        assert usd == sorted(usd)


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
