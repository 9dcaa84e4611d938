import re
from dataclasses import replace

import pytest
from placement_builders import GIB, X1
from placement_builders import H100 as UNNAMED_H100

from placement.clusters.hardware import ClusterError, Gpu, GpuKind, Links
from placement.clusters.machines import (
    Machine,
    cluster_of,
    default_links,
    gpu_kind,
    gpu_kinds,
    gpu_of,
    machine,
    machine_nodes,
    machines,
    spec_of,
)

MIB = 1024**2


@pytest.mark.parametrize("name", list(machines()))
def test_every_preset_makes_a_cluster_that_knows_its_gpus_and_links(name: str) -> None:
    preset = machines()[name]
    cluster = cluster_of(name, 2)
    assert cluster.gpus == 2 * preset.gpus
    assert {sum(node.gpus for node in nodes) for nodes in cluster.islands.values()} == {preset.gpus_per_island}
    assert all(spec_of(node.gpu) == gpu_kinds()[node.gpu.kind] for node in cluster.nodes)
    assert all(node.links == preset.links for node in cluster.nodes)
    assert preset.source
    assert bool(preset.price_source) == (preset.usd_per_gpu_hour is not None)


def present(links: Links) -> list[float]:
    return [link.bandwidth_bytes_per_s for link in (links.island, links.machine, links.network) if link]


@pytest.mark.parametrize("name", list(machines()))
def test_no_link_is_faster_than_the_one_inside_it_and_none_than_memory(name: str) -> None:
    """A figure in bits for bytes, or for both directions, would break this order."""
    preset = machines()[name]
    bandwidths = present(preset.links)
    assert bandwidths == sorted(bandwidths, reverse=True)
    assert bandwidths[0] < gpu_kinds()[preset.gpu.kind].memory_bandwidth_bytes_per_s


@pytest.mark.parametrize("kind", list(gpu_kinds().values()), ids=lambda kind: kind.kind)
def test_narrower_numbers_are_never_slower(kind: GpuKind) -> None:
    speeds = [kind.flops[precision] for precision in ("bf16", "fp8", "fp4") if precision in kind.flops]
    assert speeds == sorted(speeds)
    assert 50e12 < kind.flops["bf16"] < 3e15  # dense: with sparsity it would be twice that
    assert kind.source


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", "h100_nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100_sxm_40"),
        ("NVIDIA A100 80GB PCIe", "a100_pcie"),
        ("NVIDIA H200", "h200_sxm"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA B200", "b200_sxm"),
        ("NVIDIA B300 SXM6 AC", "b300_sxm"),
        ("NVIDIA GB200", "gb200"),
        ("Tesla V100-SXM2-16GB", "v100_16"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD-Instinct-MI300X-OAM", "mi300x"),  # Ray's accelerator type
        ("A10G", "a10g"),
        ("H100", "h100_sxm"),
        ("h100_sxm", "h100_sxm"),
        ("H100-SXM", "h100_sxm"),
    ],
)
def test_gpus_are_known_by_what_drivers_and_ray_call_them(name: str, kind: str) -> None:
    found = gpu_kind(name)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize("name", ["", "GPU", "simulated", "NVIDIA L40", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "H1000"])
def test_other_gpus_and_slices_are_not_taken_for_known_ones(name: str) -> None:
    assert gpu_kind(name) is None
    assert spec_of(Gpu(name=name or "none", memory_bytes=80 * GIB)) is None


@pytest.mark.parametrize(
    ("gpu", "kind"),
    [
        pytest.param(Gpu(name="A100", memory_bytes=81920 * MIB), "a100_sxm", id="memory-decides-80"),
        pytest.param(Gpu(name="A100", memory_bytes=40536 * MIB), "a100_sxm_40", id="memory-decides-40"),
        pytest.param(Gpu(name="V100", memory_bytes=16160 * MIB), "v100_16", id="with-ecc"),
        pytest.param(Gpu(name="H100", memory_bytes=40 * GIB), None, id="half-of-one"),
        pytest.param(Gpu(name="whatever", memory_bytes=40 * GIB, kind="h100_sxm"), "h100_sxm", id="said-so"),
        pytest.param(UNNAMED_H100, "h100_sxm", id="nominal-memory"),
    ],
)
def test_the_datasheet_of_a_discovered_gpu(gpu: Gpu, kind: str | None) -> None:
    spec = spec_of(gpu)
    assert (spec.kind if spec else None) == kind


def test_the_users_own_datasheet_comes_first() -> None:
    own = replace(X1, kind="h100_sxm")
    assert spec_of(Gpu(name="H100", memory_bytes=GIB, kind="h100_sxm", spec=own)) is own


def test_an_nvl72_rack_is_one_island_of_18_trays() -> None:
    cluster = cluster_of("gb200-nvl72", 2)
    assert {name: len(nodes) for name, nodes in cluster.islands.items()} == {"gb200-nvl72-0": 18, "gb200-nvl72-1": 18}
    assert {node.gpus for node in cluster.nodes} == {4}
    assert len({node.machine_name for node in cluster.nodes}) == 36
    assert [node.name for node in cluster.nodes][8:11] == [f"gb200-nvl72-0-host-{tray}" for tray in ("08", "09", "10")]


def test_nvlink_pairs_are_four_islands_of_one_machine() -> None:
    cluster = cluster_of("a100-pcie-8")
    assert [(node.gpus, node.machine) for node in cluster.nodes] == [(2, "a100-pcie-8-0")] * 4
    assert len(cluster.islands) == 4
    links = cluster.nodes[0].links
    assert links is not None
    assert links.machine is not None
    assert (links.island.kind, links.machine.kind) == ("nvlink3", "pcie4")


def test_a_pcie_box_is_one_island_that_says_how_slow_it_is_across_sockets() -> None:
    (node,) = cluster_of("l40s-pcie-8").nodes
    assert node.gpus == 8
    assert node.links is not None
    assert node.links.island.kind == "pcie4"
    assert "1.4 to 2 on 8" in node.links.island.source


@pytest.mark.parametrize(
    ("name", "gpu", "kind", "gbit_per_s"),
    [
        ("p4d.24xlarge", "a100_sxm_40", "efa", 50),
        ("p5.48xlarge", "h100_sxm", "efa", 400),
        ("a3-highgpu-8g", "h100_sxm", "ethernet", 100),
        ("a3-ultragpu-8g", "h200_sxm", "roce", 400),
        ("g2-standard-96", "l4", "ethernet", 12.5),
        ("ND96asr_v4", "a100_sxm_40", "infiniband", 200),
        ("ND96isr_H100_v5", "h100_sxm", "infiniband", 400),
        ("BM.GPU.A100-v2.8", "a100_sxm", "roce", 200),
        ("dgx-b300", "b300_sxm", "infiniband", 800),
    ],
)
def test_the_network_share_of_a_gpu(name: str, gpu: str, kind: str, gbit_per_s: float) -> None:
    preset = machine(name)
    assert (preset.gpu.kind, preset.links.network.kind) == (gpu, kind)
    assert preset.links.network.bandwidth_bytes_per_s * 8 == pytest.approx(gbit_per_s * 1e9)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("hgx-h100", "dgx-h100"),
        ("DGX_H100", "dgx-h100"),
        ("P5.48xlarge", "p5.48xlarge"),
        ("Standard_ND96isr_H100_v5", "ND96isr_H100_v5"),
        ("bm.gpu.h100.8", "BM.GPU.H100.8"),
        ("l40s-4", "l40s-pcie-4"),
    ],
)
def test_other_spellings_of_a_machine(name: str, canonical: str) -> None:
    assert machine(name).name == canonical


def test_a_price_is_carried_to_the_nodes_and_absent_where_unknown() -> None:
    assert cluster_of("p5.48xlarge").nodes[0].usd_per_gpu_hour == pytest.approx(55.04 / 8)
    assert cluster_of("dgx-h100").nodes[0].usd_per_gpu_hour is None


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("dgx-h10", 1, "machine 'dgx-h10' is not known; did you mean dgx-h100 or"),
        ("p5.48xlarg", 1, "machine 'p5.48xlarg' is not known; did you mean p5.48xlarge or"),
        ("?", 1, "machine '?' is not known; give one of dgx-a100, hgx-a100-8,"),
        ("H100", 8, "'H100' is a GPU and no machine; machines that have it are dgx-h100, "),
        ("NVIDIA L40S", 8, "'NVIDIA L40S' is a GPU and no machine; machines that have it are l40s-pcie-4, "),
        ("dgx-h100", 0, "count of dgx-h100 is 0; it must be at least 1"),
        ("dgx-h100", 10**12, "1000000000000 nodes and 8000000000000 GPUs is too large; at most"),
    ],
)
def test_what_is_not_a_machine_or_a_count(name: str, count: int, message: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)):
        cluster_of(name, count)


@pytest.mark.parametrize(("gpus", "host", "island"), [(8, 3, 8), (8, 8, 3), (12, 4, 6), (8, 0, 8)])
def test_a_machine_that_cannot_be_cut_so(gpus: int, host: int, island: int) -> None:
    preset = machine("dgx-h100")
    with pytest.raises(ClusterError, match="cannot be cut into hosts"):
        Machine(
            name="odd",
            title="odd",
            gpu=preset.gpu,
            gpus=gpus,
            gpus_per_host=host,
            gpus_per_island=island,
            links=preset.links,
            source="test",
        )


def test_names_sort_by_number() -> None:
    names = [node.name for node in machine_nodes(machine("dgx-h100"), 11)]
    assert names == sorted(names)
    assert (names[2], names[10]) == ("dgx-h100-02", "dgx-h100-10")


@pytest.mark.parametrize(
    ("gpu", "island", "says"),
    [
        pytest.param(UNNAMED_H100, "nvlink4", "assumed for h100_sxm: NVIDIA H100 datasheet", id="by-name"),
        pytest.param(Gpu(name="x", memory_bytes=GIB, kind="mi300x"), "xgmi", "assumed for mi300x: ", id="by-kind"),
        pytest.param(Gpu(name="x", memory_bytes=GIB), "pcie4", "assumed, nothing is known of the GPU x: ", id="other"),
    ],
)
def test_links_of_a_gpu_that_was_found_without_any(gpu: Gpu, island: str, says: str) -> None:
    links = default_links(gpu)
    assert links.machine is not None  # its machine may be split into islands
    assert links.island.kind == island
    assert all(link.source.startswith(says[:7]) for link in (links.island, links.machine, links.network))
    assert links.island.source.startswith(says)


def test_every_kind_has_default_links() -> None:
    for kind in gpu_kinds().values():
        assert f"assumed for {kind.kind}" in default_links(gpu_of(kind)).network.source
