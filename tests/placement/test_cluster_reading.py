import re
from typing import Any

import pytest
import yaml

from placement.clusters import cluster_reading
from placement.clusters.cluster_reading import read_cluster
from placement.clusters.hardware import Cluster, ClusterError, Links
from placement.clusters.machines import cluster_of, gpu_kinds, machine, spec_of


def read(text: str) -> Cluster:
    return read_cluster(yaml.safe_load(text))


def links_of(cluster: Cluster) -> Links:
    (links,) = {node.links for node in cluster.nodes}
    assert links is not None
    return links


def test_the_examples_of_the_documentation_are_read() -> None:
    examples = re.findall(r"(?m)(?:^    .*\n)+", str(cluster_reading.__doc__))
    preset, uniform, explicit = map(read, examples)
    assert preset == cluster_of("dgx-h100", 4)
    assert (uniform.gpus, len(uniform.islands)) == (16, 4)
    assert {name: len(nodes) for name, nodes in explicit.islands.items()} == {"left": 2}


@pytest.mark.parametrize("text", ["4x dgx-h100", "4xdgx-h100", "4 X DGX-H100", "{machine: dgx-h100, count: 4}"])
def test_four_ways_to_say_the_same(text: str) -> None:
    assert read(text) == cluster_of("dgx-h100", 4)


def test_one_machine_needs_no_count() -> None:
    assert read("dgx-h100") == read("{machine: hgx-h100}") == cluster_of("dgx-h100")


def test_a_mixed_cluster() -> None:
    cluster = read("machines: [{machine: dgx-h100, count: 2}, dgx-b200, 3x dgx-h100]")
    assert cluster == Cluster(nodes=(*cluster_of("dgx-h100", 5).nodes, *cluster_of("dgx-b200").nodes))


def test_links_of_a_preset_can_be_changed_one_by_one() -> None:
    cluster = read("{machine: dgx-h100, count: 2, links: {network: {bandwidth: 100 Gbit/s}}, usd_per_gpu_hour: 2.5}")
    links, usual = links_of(cluster), machine("dgx-h100").links
    assert links.network.bandwidth_bytes_per_s == 12.5e9
    assert links.network.latency_s == usual.network.latency_s
    assert links.network.source.startswith("given by the user; the rest one 400 Gbit/s port")
    assert links.island == usual.island
    assert cluster.nodes[0].usd_per_gpu_hour == 2.5


def test_islands_of_pairs_and_islands_over_machines() -> None:
    pairs = read("{gpu: a100_pcie, gpus_per_machine: 8, machines: 2, island_size: 2}")
    assert [(node.gpus, node.machine) for node in pairs.nodes[:4]] == [(2, "machine-0")] * 4
    assert len(pairs.islands) == 8
    over = read("{gpu: gb200, gpus_per_machine: 4, machines: 6, island_size: 12}")
    assert [len(nodes) for nodes in over.islands.values()] == [3, 3]
    assert {node.gpus for node in over.nodes} == {4}


def test_missing_links_are_those_of_the_gpu_and_say_so() -> None:
    links = links_of(read("{gpu: NVIDIA H200, gpus_per_machine: 8, links: {island: {latency: 0us}}}"))
    assert links.network.source.startswith("assumed for h200_sxm")
    assert (links.island.latency_s, links.island.bandwidth_bytes_per_s) == (0, 450e9)
    assert "given by the user; the rest assumed for h200_sxm" in links.island.source


def test_a_link_of_another_kind_has_the_usual_latency_of_that_kind() -> None:
    links = links_of(read("{machine: dgx-h100, links: {network: {kind: ethernet, bandwidth: 10 Gbit/s}}}"))
    assert (links.network.kind, links.network.bandwidth_bytes_per_s) == ("ethernet", 1.25e9)
    assert links.network.latency_s == machine("g2-standard-96").links.network.latency_s


OWN = "{name: X1, memory: 64 GiB, memory_bandwidth: 2 TB/s, flops: {bf16: 400 TFLOPS, fp8: 800 TFLOPS}, l2: 40 MiB}"


def test_a_gpu_of_ones_own_is_carried_in_the_cluster() -> None:
    (gpu,) = read(f"{{gpu: {OWN}, gpus_per_machine: 4}}").gpu_kinds
    spec = spec_of(gpu)
    assert spec is not None
    assert (spec.title, spec.memory_bytes, spec.memory_bandwidth_bytes_per_s) == ("X1", 64 * 2**30, 2e12)
    assert (spec.flops, spec.l2_bytes, spec.source) == (
        {"bf16": 400e12, "fp8": 800e12},
        40 * 2**20,
        "given by the user",
    )
    assert gpu.memory_bytes == spec.memory_bytes


def test_a_known_gpu_can_be_changed() -> None:
    cluster = read("{gpu: {kind: h100_sxm, memory: 96 GB, flops: {fp8: 1 PFLOPS}}, gpus_per_machine: 8}")
    spec, usual = spec_of(cluster.nodes[0].gpu), gpu_kinds()["h100_sxm"]
    assert spec is not None
    assert (spec.memory_bytes, spec.memory_bandwidth_bytes_per_s) == (96 * 10**9, usual.memory_bandwidth_bytes_per_s)
    assert spec.flops == {**usual.flops, "fp8": 1e15}
    assert links_of(cluster).island.kind == "nvlink4"


def test_islands_by_name_with_gpus_of_their_own() -> None:
    cluster = read(
        """
        gpu: h100_sxm
        islands:
          - {name: left, nodes: [{name: a, gpus: 4, machine: box}]}
          - {name: right, nodes: [{name: b, gpus: 4, machine: box}]}
          - {name: old, gpu: l4, nodes: [{name: c, gpus: 1}, {name: d, gpus: 2}]}
        """
    )
    assert {name: [node.name for node in nodes] for name, nodes in cluster.islands.items()} == {
        "left": ["a"],
        "right": ["b"],
        "old": ["c", "d"],
    }
    assert [node.machine_name for node in cluster.islands["left"] + cluster.islands["right"]] == ["box", "box"]
    assert [gpu.kind for gpu in cluster.gpu_kinds] == ["l4", "h100_sxm"]


def islands(*rows: str, gpu: str = "h100_sxm") -> str:
    return f"{{gpu: {gpu}, islands: [{', '.join(rows)}]}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgx-h10", "machine 'dgx-h10' is not known; did you mean dgx-h100"),
        ("0x dgx-h100", "count of dgx-h100 is 0; it must be at least 1"),
        ("''", "cluster: '' is not accepted; give a preset's name, such as dgx-h100 or '4x dgx-h100'"),
        ("[dgx-h100]", "cluster: \"['dgx-h100']\" is not accepted; give a preset's name or a mapping"),
        ("null", "cluster: missing; give a preset's name or a mapping"),
        ("{}", "nothing says what it is made of; give machine, machines (a list) or gpu"),
        ("{machine: dgx-h100, cuont: 4}", "cuont: unknown name; did you mean count?"),
        ("{gpus: h100_sxm}", "gpus: unknown name; did you mean gpu"),
        ("{machine: dgx-h100, count: 2.5}", "count: '2.5' is not accepted; give a whole number of at least 1"),
        ("{machine: dgx-h100, count: true}", "count: 'True' is not accepted"),
        ("{machine: 2x dgx-h100, count: 2}", "machine: '2x dgx-h100' is not accepted; give the name alone"),
        ("{machine: dgx-h100, usd_per_gpu_hour: 0}", "usd_per_gpu_hour: '0' is not accepted; give a number above 0"),
        ("{machine: dgx-h100, usd_per_gpu_hour: .nan}", "usd_per_gpu_hour: 'nan' is not accepted"),
        ("machines: []", "machines: '[]' is not accepted; give at least one machine"),
        ("machines: [{machine: dgx-h10}]", "machines[0]: machine 'dgx-h10' is not known"),
        ("machines: [dgx-h100, 7]", "machines[1]: '7' is not accepted; give a preset's name or a mapping with machine"),
        ("machines: [{count: 2}]", "machines[0].machine: missing; give the name of a preset"),
        ("machines: [dgx-h100, {machine: dgx-h100, usd_per_gpu_hour: 1}]", "machines[1]: dgx-h100 is given twice"),
        ("{gpu: h100}", "gpus_per_machine: missing; give a whole number"),
        ("{gpu: h900, gpus_per_machine: 8}", "gpu: GPU 'h900' is not known; did you mean h"),
        ("{gpu: 7, gpus_per_machine: 8}", "gpu: '7' is not accepted; give the kind of GPU"),
        ("{gpu: h100, gpus_per_machine: 8, island_size: 3}", "island_size: 3 does not cut 1 machines of 8 GPUs"),
        ("{gpu: h100, gpus_per_machine: 4, machines: 3, island_size: 8}", "island_size: 8 does not cut 3 machines"),
        ("{gpu: h100, gpus_per_machine: 8, machines: 1000000}", "is too large; at most 100000 nodes"),
        ("{gpu: {name: X}, gpus_per_machine: 8}", "gpu.memory: missing; give a number with its unit"),
        ("{gpu: {name: X, memory: 80}, gpus_per_machine: 8}", "gpu.memory: 80 has no unit; give a number with MB, GB"),
        ("{gpu: {kind: h100, memory: 8 knots}, gpus_per_machine: 8}", "gpu.memory: '8 knots' is not a size"),
        ("{gpu: {kind: h100, flops: {bf16: 9}}, gpus_per_machine: 8}", "gpu.flops.bf16: 9 has no unit; give a number"),
        (
            "{gpu: {kind: h100, flops: {fp16: 9}}, gpus_per_machine: 8}",
            "gpu.flops.fp16: unknown name; did you mean bf16",
        ),
        ("{gpu: {kind: h900}, gpus_per_machine: 8}", "gpu.kind: GPU 'h900' is not known"),
        ("{machine: dgx-h100, links: {nic: {}}}", "links.nic: unknown name; give one of island, machine, network"),
        ("{machine: dgx-h100, links: {network: 5}}", "links.network: '5' is not accepted; give a mapping with kind"),
        (
            "{machine: dgx-h100, links: {network: {bandwidth: 0 GB/s}}}",
            "links.network.bandwidth: '0 GB/s' is not accepted; give a number with GB/s, GiB/s or Gbit/s, "
            "such as '25 GB/s' or '200 Gbit/s', above 0.",
        ),
        ("{machine: dgx-h100, links: {network: {bandwidth: -1 GB/s}}}", "links.network.bandwidth: '-1 GB/s' is not"),
        ("{machine: dgx-h100, links: {network: {bandwidth: 25}}}", "links.network.bandwidth: 25 has no unit"),
        ("{machine: dgx-h100, links: {network: {latency: 5 parsecs}}}", "links.network.latency: '5 parsecs' is not"),
        (
            "{machine: dgx-h100, links: {network: {kind: rocee}}}",
            "links.network.kind: 'rocee' is not a kind of link; did",
        ),
        ("{machine: dgx-h100, links: {network: {kind: efa}}}", "links.network.bandwidth: missing; give a number"),
        (
            "{machine: dgx-h100, links: {network: {kind: shared-memory, bandwidth: 5 GB/s}}}",
            "links.network.latency: missing; give a number",
        ),
        ("{gpu: h100, islands: []}", "islands: '[]' is not accepted; give a list of islands"),
        ("{islands: [{name: a, nodes: [{name: n, gpus: 1}]}]}", "gpu: missing; give the kind of GPU"),
        (islands("{name: a, nodes: []}"), "islands[0].nodes: '[]' is not accepted; give a list of nodes"),
        (islands("{nodes: [{name: n, gpus: 1}]}"), "islands[0].name: missing; give a name"),
        (islands("{name: a, nodes: [{name: n}]}"), "islands[0].nodes[0].gpus: missing; give a whole number"),
        (islands("{name: a, nodes: [{name: n, gpus: -1}]}"), "islands[0].nodes[0].gpus: '-1' is not accepted"),
        (
            islands("{name: a, nodes: [{name: n, gpu: 1}]}"),
            "islands[0].nodes[0].gpu: unknown name; did you mean gpus?",
        ),
        (
            islands("{name: a, nodes: [{name: n, gpus: 1}]}", "{name: b, nodes: [{name: n, gpus: 1}]}"),
            "islands[1].nodes[0].name: n is already in island a; islands must not overlap, give each node once",
        ),
        (
            islands("{name: a, nodes: [{name: n, gpus: 1}]}", "{name: a, nodes: [{name: m, gpus: 1}]}"),
            "islands[1].name: a is given twice; give all its nodes in one entry",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(ClusterError) as error:
        read(text)
    assert message in str(error.value)


def test_every_word_that_names_a_machine_is_a_description() -> None:
    described: dict[str, Any] = {"machine": "Standard_ND96isr_H100_v5", "count": 2}
    assert read_cluster(described) == read_cluster("2x nd96isr-h100-v5")
