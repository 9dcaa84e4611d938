"""The collective model against public measurements: how far off it is, and on what it was not fitted.

Sizes are 16 KiB to 128 MiB where a table goes further: all-reduces of serving are 4 KiB to 128 MiB.
"""

import csv
import re
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from statistics import mean

import pytest
from collective_builders import INFINIBAND, ISLAND_LINKS, NVLINK3, NVLINK4, PCIE5, island_of, link, machines_of
from measured_data import measured

from placement.clusters.hardware import Links
from placement.collectives import (
    Calibration,
    CollectiveCurve,
    Engine,
    Group,
    Op,
    collective_curve,
    line_time_s,
    send_recv,
)
from placement.collectives.fitting import Point, fit_lines, fit_links, mean_error

KIB, MIB = 1024, 1024**2
UNITS = {"": 1, "B": 1, "K": KIB, "KB": KIB, "M": MIB, "MB": MIB, "GiB": 1024 * MIB}
LIBRARIES: dict[str, tuple[Engine, Op]] = {
    "vLLM_custom_graph": ("vllm", "all_reduce"),
    "SGLang_CAR_graph": ("sglang", "all_reduce"),
    "TRTLLM": ("trtllm", "all_reduce"),
    "all_reduce": ("nccl", "all_reduce"),
    "all_gather": ("nccl", "all_gather"),
    "reduce_scatter": ("nccl", "reduce_scatter"),
    "alltoall": ("nccl", "all_to_all"),
}
MACHINES = {"l40s": "l40s_no_p2p"}  # that table's machine has no peer-to-peer transfers; others of this GPU do
Measured = list[tuple[float, float]]  # bytes, seconds


def rows(name: str) -> list[dict[str, str]]:
    with measured(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def size_of(text: str) -> int:
    match = re.fullmatch(r"(\d+)(\w*)", text)
    assert match
    return int(match[1]) * UNITS[match[2]]


def island_tables() -> list[tuple[str, Engine, Op, int, Measured]]:
    """GPU, engine, op, ranks and the curve, 2 KiB to 128 MiB; launches without a CUDA graph are left out."""
    tables = []
    for row in rows("collectives_us_by_bytes.csv"):
        if row["var"] in LIBRARIES and row["fw"] != "nccl/2.23":  # that one is superseded by 2.29 for the same GPU
            sizes = [name for name in row if re.fullmatch(r"\d+[KM]", name) and row[name] and name != "1024M"]
            curve = sorted((float(size_of(name)), float(row[name]) * 1e-6) for name in sizes)
            tables.append((row["sys"], *LIBRARIES[row["var"]], int(row["n"]), curve))
    return tables


def errors(curve: CollectiveCurve, points: Measured) -> list[float]:
    return [abs(curve.time_s(size) / time_s - 1) for size, time_s in points]


def test_island_curves() -> None:
    """Mean 4.0 %. The worst curve is L40S, whose times are not monotone in size."""
    by_curve = [
        mean(errors(collective_curve(op, replace(island_of(gpu, n), gpu=MACHINES.get(gpu, gpu)), engine), points))
        for gpu, engine, op, n, points in island_tables()
    ]
    assert len(by_curve) > 140
    assert mean(by_curve) < 0.045
    assert max(by_curve) < 0.2


def test_island_curves_at_sizes_left_out() -> None:
    """Mean 6.8 % at every size but the ends, when the fit does not see it."""
    left_out = []
    for *_, points in island_tables():
        for index in range(1, len(points) - 1):
            size, time_s = points[index]
            left_out.append(abs(line_time_s(fit_lines(points[:index] + points[index + 1 :]), size) / time_s - 1))
    assert mean(left_out) < 0.07


def test_islands_of_gpus_nobody_measured() -> None:
    """NCCL from the datasheet of the link alone: 13 to 18 % with NVLink, 34 % with PCIe."""
    by_link = defaultdict(list)
    for gpu, engine, op, ranks, points in island_tables():
        if engine == "nccl":
            kind = ISLAND_LINKS[gpu].kind
            unlisted = replace(ISLAND_LINKS[gpu], kind="xgmi") if kind.startswith("nvlink") else ISLAND_LINKS[gpu]
            group = Group(ranks=ranks, links=Links(island=unlisted, network=INFINIBAND))
            by_link[kind] += errors(collective_curve(op, group, "nccl"), points)
    found = {kind: mean(values) for kind, values in by_link.items()}
    assert all(found[kind] < 0.19 for kind in ("nvlink3", "nvlink4", "nvlink5"))
    assert all(found[kind] < 0.4 for kind in ("pcie4", "pcie5"))


@pytest.mark.parametrize(
    ("name", "gpu", "at_most"), [("H100-SXM-80GB", "h100_sxm", 0.15), ("H200-SXM-141GB", "h200_sxm", 0.09)]
)
def test_islands_measured_by_others(name: str, gpu: str, at_most: float) -> None:
    """apex_plus's own runs of NCCL, launched eagerly on H100 and with an older version: no point of them was fitted.

    H100 all-to-all is left out: many of its times below 512 KiB are above a millisecond.
    """
    off = []
    for op in ("all_reduce", "all_gather", "reduce_scatter"):
        for row in rows(f"network/comm_{name}_{op}.csv"):
            size = int(row["size(kb)"]) * KIB
            if 16 * KIB <= size <= 128 * MIB:
                curve = collective_curve(op, island_of(gpu, int(row["num_gpus_per_node"])), "nccl")  # type: ignore[arg-type]
                off += errors(curve, [(size, float(row["time(us)"]) * 1e-6)])
    assert mean(off) < at_most


def vidur(name: str, op: str) -> dict[tuple[int, int], Measured]:
    """(ranks, ranks per machine) to medians of rank 0 from 16 KiB up."""
    found = defaultdict(list)
    for row in rows(f"network/{name}"):
        if row["rank"] == "0" and int(row["size"]) >= 16 * KIB:
            key = (int(row["num_workers"]), int(row["devices_per_node"]))
            found[key].append((float(row["size"]), float(row[f"time_stats.{op}.median"]) * 1e-3))
    return dict(found)


def test_h100_inside_a_machine() -> None:
    """Nothing fitted. Up to 4 MiB these eager launches wait for the host, 30 to 45 us, which a CUDA graph does not."""
    for (ranks, _), points in vidur("h100_dgx_all_reduce.csv", "all_reduce").items():
        curve = collective_curve("all_reduce", island_of("h100_sxm", ranks), "nccl")
        assert mean(errors(curve, points)) < 0.15
        assert mean(errors(curve, [point for point in points if point[0] >= 4 * MIB])) < 0.08


def test_h100_in_nvlink_pairs() -> None:
    """Two ranks of one pair, four over PCIe between the pairs."""
    bridged = Links(island=link("nvlink4", 300, 5), machine=PCIE5, network=INFINIBAND)
    for (ranks, _), points in vidur("h100_pairwise_nvlink_all_reduce.csv", "all_reduce").items():
        curve = collective_curve("all_reduce", Group(ranks=ranks, islands=ranks // 2, links=bridged), "nccl")
        assert mean(errors(curve, points)) < 0.11


@pytest.mark.parametrize(
    ("name", "links", "at_most"),
    [
        ("h100_dgx_send_recv.csv", Links(island=NVLINK4, network=INFINIBAND), 0.1),
        ("a100_dgx_send_recv.csv", Links(island=NVLINK3, network=link("roce", 12.5, 15)), 0.22),
    ],
)
def test_send_recv_inside_and_between_machines(name: str, links: Links, at_most: float) -> None:
    for (ranks, per_machine), points in vidur(name, "send_recv").items():
        group = machines_of(ranks, ranks // per_machine, links)
        assert mean(abs(send_recv(size, group).time_s / time_s - 1) for size, time_s in points) < at_most


def published_all_reduces(hardware: str) -> list[tuple[int, int, float, float]]:
    """Ranks, machines, bytes, seconds of `hardware`, from 16 KiB up."""
    found = []
    for row in rows("published_tables_dev.csv"):
        if (
            row["metric"] != "all_reduce_latency"
            or row["hardware"] != hardware
            or size_of(row["batch/concurrency"]) < 16 * KIB
        ):
            continue
        ranks = int(row["tp"])
        per_machine = re.search(r"devices_per_node=(\d+)", row["note"])
        nodes = re.search(r"(\d+) node\(s\)", row["note"])
        machines = ranks // int(per_machine[1]) if per_machine else int(nodes[1]) if nodes else 1
        found.append((ranks, machines, float(size_of(row["batch/concurrency"])), float(row["value"]) * 1e-6))
    return found


def a100_machines() -> list[Point]:
    """microsoft/vidur's A100s, as 4 NICs of 100 Gbit/s for 8 GPUs: one or two GPUs alone get as much as two shares."""
    links = Links(island=NVLINK3, network=link("roce", 6.25, 15))
    return [
        Point(
            op="all_reduce",
            size_bytes=size,
            group=machines_of(ranks, machines, links, "a100_sxm", network_gpus=min(8, 2 * ranks // machines)),
            time_s=time_s,
        )
        for ranks, machines, size, time_s in published_all_reduces("a100_dgx")
        if machines > 1
    ]


def v100_machines() -> list[Point]:
    """apex_plus's machines of four V100 on PCIe 3, each with one NIC of 10 Gbit/s, no RDMA."""
    links = Links(island=link("pcie4", 15.8, 7), network=link("ethernet", 1.25 / 4, 100))
    return [
        Point(
            op="all_reduce", size_bytes=size, group=machines_of(ranks, machines, links, network_gpus=4), time_s=time_s
        )
        for ranks, machines, size, time_s in published_all_reduces("V100-PCIE-16GB")
        if machines > 1
    ]


def over_other_placements(points: list[Point]) -> tuple[float, float]:
    """Mean error of the datasheet alone; and after fitting two factors to two placements, on all others, every pair."""
    placements = sorted({(point.group.ranks, point.group.machines) for point in points})
    held_out = []
    for fitted in combinations(placements, 2):
        probes = [point for point in points if (point.group.ranks, point.group.machines) in fitted]
        fit = fit_links(probes)
        held_out.append(mean_error([point for point in points if point not in probes], fit.calibration))
    return mean_error(points, Calibration()), mean(held_out)


@pytest.mark.slow
def test_a100_over_two_machines() -> None:
    """25 % after calibration (16 % from the smallest and the largest placement), 48 % before.

    The aim of 15 % is not reached. The table contradicts itself: 4 and 16 ranks on two machines move half as many bytes
    a second at 16 MiB as at 64 MiB, 8 ranks do not. A free factor for each placement and each size leaves 17 %.
    """
    prior, calibrated = over_other_placements(a100_machines())
    assert prior < 0.5
    assert calibrated < 0.28


@pytest.mark.slow
def test_v100_over_two_and_four_machines() -> None:
    """17 % after calibration, 38 % before: the aim of 15 % is just missed.

    Over TCP a larger message is sometimes faster in this table (16 KiB on 2 x 4: 1021 us, 64 KiB: 831 us). A free
    factor for each placement and each size leaves 12 %.
    """
    prior, calibrated = over_other_placements(v100_machines())
    assert prior < 0.42
    assert calibrated < 0.18


def test_b200_over_four_machines() -> None:
    """32 ranks with factors from 4 and 128 MiB: 7 % on the other sizes from 256 KiB to 1 GiB; 56 % before.

    The three smallest sizes of the four-machine column are left out. They fall from 6.3 ms at 32 KiB to 0.56 ms at
    128 KiB, then stay at 0.36 to 0.39 ms up to 2 MiB: the first calls of the benchmark include the set-up of their
    connections. The floor of 0.36 ms is six times that of other clusters; only a calibration can know it.
    """
    group = machines_of(32, 4, Links(island=link("nvlink5", 900, 8), network=INFINIBAND), "b200_sxm")
    points = [
        Point(
            op="all_reduce",
            size_bytes=int(row["payload_bytes"]),
            group=group,
            time_s=float(row["time_4node_us"]) * 1e-6,
        )
        for row in rows("network/allreduce_b200_1node_vs_4node.csv")
        if 256 * KIB <= int(row["payload_bytes"]) <= 1024 * MIB
    ]
    probes = [point for point in points if point.size_bytes in (4 * MIB, 128 * MIB)]
    fit = fit_links(probes)
    assert mean_error([point for point in points if point not in probes], fit.calibration) < 0.08
