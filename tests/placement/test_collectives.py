"""The collective model where the answer is known: published figures, orderings that physics demands, and refusals."""

import timeit
from dataclasses import replace
from time import process_time

import pytest
from collective_builders import A100, B200, CPUS, H100, L40S, island_of, link, machines_of
from hypothesis import given
from hypothesis import strategies as st

from placement.clusters.hardware import Links
from placement.collectives import (
    Calibration,
    CollectiveError,
    Engine,
    Factors,
    Group,
    Op,
    Routing,
    all_gather,
    all_reduce,
    all_to_all,
    line_time_s,
    moe_combine,
    moe_dispatch,
    reduce_scatter,
    send_recv,
)
from placement.collectives.fitting import Point, fit_lines, fit_links

KIB, MIB = 1024, 1024**2
US = 1e-6
SIZES = st.floats(min_value=0, max_value=30).map(lambda exponent: 2.0**exponent)
CLUSTERS = st.sampled_from(
    [(H100, "h100_sxm"), (H100, ""), (A100, "a100_sxm"), (B200, "b200_sxm"), (L40S, "l40s"), (CPUS, "")]
)
OPS = {"all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_to_all": all_to_all}
OP = st.sampled_from(sorted(OPS))
ENGINE: st.SearchStrategy[Engine] = st.sampled_from(["vllm", "sglang", "trtllm", "nccl"])


@pytest.mark.parametrize(
    ("group", "size_bytes", "measured_us", "within"),
    [
        (island_of("h100_sxm", 8), 16 * KIB, 5.3, 0.1),  # vLLM 0.24, aiconfigurator
        (machines_of(16, 2, H100, "h100_sxm"), 512, 47, 0.1),  # nccl#1244, InfiniBand NDR
        (machines_of(256, 32, A100, "a100_sxm"), 128, 66, 0.1),  # nccl#652, InfiniBand HDR
        (machines_of(24, 3, replace(H100, network=link("roce", 50, 15)), "h100_sxm"), 4 * KIB, 75, 0.2),  # nccl#1453
        (machines_of(16, 2, replace(B200, network=link("efa", 50, 15)), "b200_sxm"), 256, 54, 0.4),  # dstack PR 3961
        (
            replace(island_of("l40s", 8), gpu="l40s_no_p2p"),
            1 * MIB,
            583,
            0.45,
        ),  # not monotone in size there: 444 us at 512 KiB, 2080 at 2 MiB
        (machines_of(2, 2, replace(CPUS, network=link("ethernet", 1.25, 100))), 16 * KIB, 402, 0.5),  # apex_plus, TCP
    ],
)
def test_published_all_reduces(group: Group, size_bytes: int, measured_us: float, within: float) -> None:
    assert all_reduce(size_bytes, group).time_s == pytest.approx(measured_us * US, rel=within)


@pytest.mark.parametrize(
    ("gpu", "ranks", "size_bytes", "engine", "algorithm"),
    [
        ("h100_sxm", 2, 4 * MIB, "vllm", "one-shot custom"),
        ("h100_sxm", 4, 256 * KIB, "vllm", "one-shot custom"),
        ("h100_sxm", 4, 512 * KIB, "vllm", "two-shot custom"),
        ("h100_sxm", 8, 256 * KIB - 1, "vllm", "one-shot custom"),
        ("h100_sxm", 8, 256 * KIB, "vllm", "multimem"),
        ("h100_sxm", 8, 128 * MIB, "vllm", "NCCL NVLS"),
        ("b200_sxm", 4, 16 * MIB, "vllm", "two-shot symmetric memory"),
        ("b300_sxm", 8, 2 * MIB, "vllm", "two-shot custom"),
        ("a100_sxm", 8, 1 * MIB, "vllm", "two-shot custom"),
        ("a100_sxm", 8, 16 * MIB, "vllm", "NCCL ring"),
        ("l40s", 2, 64 * KIB, "vllm", "one-shot custom"),
        ("l40s", 4, 64 * KIB, "vllm", "NCCL ring LL"),  # vLLM: never on more than two PCIe-only GPUs
        ("h100_sxm", 3, 64 * KIB, "vllm", "NCCL ring LL"),  # vLLM: 2, 4, 6 or 8
        ("gb200", 16, 64 * KIB, "vllm", "FlashInfer multicast"),
        ("h100_sxm", 8, 64 * KIB, "nccl", "NCCL ring LL"),
        ("h100_sxm", 8, 64 * KIB, "trtllm", "one-shot fused"),
    ],
)
def test_the_engine_chooses_by_size(gpu: str, ranks: int, size_bytes: int, engine: Engine, algorithm: str) -> None:
    assert all_reduce(size_bytes, island_of(gpu, ranks), engine).algorithm == algorithm


@given(
    cluster=CLUSTERS,
    op=OP,
    ranks=st.integers(2, 16),
    machines=st.integers(1, 4),
    engine=ENGINE,
    sizes=st.tuples(SIZES, SIZES),
)
def test_more_bytes_never_take_less(
    cluster: tuple[Links, str], op: Op, ranks: int, machines: int, engine: Engine, sizes: tuple[float, float]
) -> None:
    group = machines_of(ranks, min(machines, ranks), *cluster)
    small, large = sorted(sizes)
    assert OPS[op](small, group, engine).time_s <= OPS[op](large, group, engine).time_s * (1 + 1e-12)


@given(
    cluster=CLUSTERS,
    op=OP.filter(lambda op: op != "all_to_all"),
    size=SIZES,
    ranks=st.integers(2, 64),
    machines=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    engine=ENGINE,
)
def test_the_same_ranks_on_more_machines_are_never_faster(
    cluster: tuple[Links, str], op: Op, size: float, ranks: int, machines: tuple[int, int], engine: Engine
) -> None:
    few, many = sorted(min(count, ranks) for count in machines)
    close, far = (OPS[op](size, machines_of(ranks, count, *cluster), engine).time_s for count in (few, many))
    assert close <= far * (1 + 1e-12)


@given(cluster=CLUSTERS, size=SIZES, ranks=st.integers(2, 64), machines=st.integers(1, 8))
def test_no_all_reduce_beats_its_links(cluster: tuple[Links, str], size: float, ranks: int, machines: int) -> None:
    links, gpu = cluster
    machines = min(machines, ranks)
    time_s = all_reduce(size, machines_of(ranks, machines, links, gpu)).time_s
    assert time_s >= size * (ranks - 1) / ranks / links.island.bandwidth_bytes_per_s
    if machines > 1:
        leaving = -(-ranks // machines) * links.network.bandwidth_bytes_per_s
        assert time_s >= 2 * (machines - 1) / machines * size / leaving


@pytest.mark.parametrize("size_bytes", [4 * KIB, 64 * KIB, 1 * MIB, 16 * MIB, 128 * MIB])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_an_island_beats_pcie_and_the_network(ranks: int, size_bytes: int) -> None:
    inside = all_reduce(size_bytes, island_of("h100_sxm", ranks)).time_s
    across_pcie = Group(ranks=ranks, islands=2, links=H100, gpu="h100_sxm")
    assert inside < all_reduce(size_bytes, across_pcie).time_s
    assert inside < all_reduce(size_bytes, machines_of(ranks, 2, H100, "h100_sxm")).time_s
    assert inside < all_reduce(size_bytes, island_of("l40s", ranks)).time_s


@pytest.mark.parametrize("op", [*OPS.values(), send_recv])
def test_one_rank_sends_nothing(op: object) -> None:
    assert callable(op)
    assert op(1 * MIB, island_of("h100_sxm", 1)).time_s == 0


def test_three_six_and_sixteen_ranks_lie_between_and_beyond_the_measured() -> None:
    two, three, four, six, eight = (
        all_reduce(64 * KIB, island_of("h100_sxm", n), "nccl").time_s for n in (2, 3, 4, 6, 8)
    )
    assert two < three < four < six < eight
    rack = [all_reduce(64 * KIB, island_of("gb200", ranks), "nccl").time_s for ranks in (8, 16, 72)]
    assert rack == sorted(rack)
    assert rack[-1] < 2 * rack[0]  # in-switch reduction: the rack is no ring of 72 hops


def test_a_box_of_single_gpu_islands_is_a_pcie_box() -> None:
    as_island, as_islands = island_of("l40s", 8), Group(ranks=8, islands=8, links=L40S, gpu="l40s")
    assert all_reduce(1 * MIB, as_islands) == all_reduce(1 * MIB, as_island)


def test_a_ring_over_gigabit_ethernet_takes_the_wire_time() -> None:
    """4 processes on 2 hosts: 1.5 times the message leaves each host, 2 processes sharing nothing: 6.6 ms at 92 %."""
    assert all_reduce(1 * MIB, machines_of(4, 2, CPUS)).time_s == pytest.approx(7e-3, rel=0.1)
    assert all_reduce(1 * KIB, machines_of(2, 2, CPUS)).time_s == pytest.approx(100e-6, rel=0.3)


def test_idle_neighbours_leave_their_nics() -> None:
    shared = machines_of(2, 2, A100, "a100_sxm", network_gpus=2)
    alone = machines_of(2, 2, A100, "a100_sxm")
    assert all_reduce(64 * MIB, shared).time_s < 0.6 * all_reduce(64 * MIB, alone).time_s


def test_an_unknown_gpu_takes_the_curves_of_its_link() -> None:
    h800 = Group(ranks=8, links=replace(H100, island=link("nvlink4", 200, 5)), gpu="h800")
    transfer, h100 = all_reduce(64 * MIB, h800), all_reduce(64 * MIB, island_of("h100_sxm", 8))
    assert transfer.source == "measured on h100_sxm, which has the same link"
    assert transfer.time_s == pytest.approx(h100.time_s * 450 / 200, rel=0.2)


def test_a_call_takes_microseconds() -> None:
    group = machines_of(16, 2, H100, "h100_sxm")
    used_s = timeit.repeat(lambda: all_reduce(64 * KIB, group), timer=process_time, number=1000, repeat=10)
    assert min(used_s) / 1000 < 10e-6


def test_fit_links_finds_a_slow_cluster_from_two_points() -> None:
    group = machines_of(16, 2, H100, "h100_sxm")
    truth = replace(group, calibration=Calibration(network=Factors(latency=3.0, bandwidth=0.5)))
    points = [
        Point(op="all_reduce", size_bytes=size, group=group, time_s=all_reduce(size, truth).time_s)
        for size in (4 * KIB, 256 * MIB)
    ]
    fit = fit_links(points)
    assert fit.error_before > 0.4
    assert fit.error_after < 0.01
    assert fit.calibration.network.latency == pytest.approx(3.0, rel=0.05)
    assert fit.calibration.network.bandwidth == pytest.approx(0.5, rel=0.05)
    assert fit.calibration.island == Factors()


def test_fit_lines_recovers_two_protocols() -> None:
    truth = ((5e-6, 2e-11), (20e-6, 2e-12))
    points = [(2.0**power, line_time_s(truth, 2.0**power)) for power in range(11, 28)]
    fitted = fit_lines(points)
    assert max(abs(line_time_s(fitted, size) / time - 1) for size, time in points) < 0.05


def test_experts_cost_what_is_published() -> None:
    """DeepEP and DeepSeek figures for 128 tokens; the default backend grows with the ranks, the others do not."""
    routing = Routing(hidden_size=7168, top_k=8)
    two_machines = machines_of(16, 2, H100, "h100_sxm")
    fast = moe_dispatch(128, two_machines, routing, backend="deepep_low_latency", bytes_per_element=1.03)
    assert fast.time_s == pytest.approx(102 * US, rel=0.1)
    gathered = [moe_dispatch(128, machines_of(8 * m, m, H100, "h100_sxm"), routing).time_s for m in (1, 2, 4)]
    assert gathered[2] > 1.5 * gathered[1] > 2 * gathered[0]
    sent = [moe_combine(128, machines_of(8 * m, m, H100), routing, backend="deepep_low_latency").time_s for m in (4, 8)]
    assert sent[1] < 1.3 * sent[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Group(ranks=2, islands=4, links=H100), "ranks 2, islands 4"),
        (lambda: Group(ranks=4, islands=2, links=A100), "links.machine is None"),
        (lambda: Group(ranks=4, network_gpus=-1, links=A100), "network_gpus is -1"),
        (lambda: Factors(latency=0), "above 0"),
        (lambda: all_reduce(-1, island_of("h100_sxm", 2)), "size_bytes is -1"),
        (lambda: all_reduce(1, island_of("h100_sxm", 2), "tgi"), "engine is 'tgi'; it must be one of vllm"),  # type: ignore[arg-type]
        (lambda: moe_dispatch(-1, island_of("h100_sxm", 2), Routing(hidden_size=8, top_k=1)), "tokens -1"),
        (lambda: Routing(hidden_size=0, top_k=1), "hidden_size"),
        (
            lambda: moe_dispatch(1, machines_of(4, 2, H100), Routing(hidden_size=8, top_k=1), backend="one_sided"),
            "one island",
        ),
    ],
)
def test_refusals_name_the_field(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(CollectiveError, match=message):
        call()
