"""Links and groups that the tests of `placement.collectives` share. Figures are datasheets'."""

from placement.clusters.hardware import Link, Links
from placement.collectives import Group


def link(kind: str, gb_per_s: float, latency_us: float) -> Link:
    return Link(kind=kind, bandwidth_bytes_per_s=gb_per_s * 1e9, latency_s=latency_us * 1e-6, source="datasheet")


NVLINK3, NVLINK4, NVLINK5 = link("nvlink3", 300, 8), link("nvlink4", 450, 5), link("nvlink5", 900, 8)
PCIE4, PCIE5 = link("pcie4", 31.5, 7), link("pcie5", 63, 7)
INFINIBAND = link("infiniband", 50, 10)
ETHERNET = link("ethernet", 0.125, 50)  # 1 Gbit/s
SHARED_MEMORY = link("shared-memory", 5, 20)

H100 = Links(island=NVLINK4, machine=PCIE5, network=INFINIBAND)
A100 = Links(island=NVLINK3, network=link("infiniband", 25, 10))
B200 = Links(island=NVLINK5, network=INFINIBAND)
L40S = Links(island=PCIE4, machine=PCIE4, network=link("ethernet", 3.125, 100))
CPUS = Links(island=SHARED_MEMORY, network=ETHERNET)

ISLAND_LINKS = {
    "a100_sxm": NVLINK3,
    "h100_sxm": NVLINK4,
    "h200_sxm": NVLINK4,
    "b200_sxm": NVLINK5,
    "b300_sxm": NVLINK5,
    "gb200": NVLINK5,
    "gb300": NVLINK5,
    "l40s": PCIE4,
    "rtx_pro_6000_server": PCIE5,
}


def island_of(gpu: str, ranks: int) -> Group:
    """`ranks` GPUs of one kind in one island."""
    return Group(ranks=ranks, links=Links(island=ISLAND_LINKS[gpu], network=INFINIBAND), gpu=gpu)


def machines_of(ranks: int, machines: int, links: Links, gpu: str = "", network_gpus: int = 0) -> Group:
    """`ranks` GPUs on `machines` machines of one island each."""
    return Group(ranks=ranks, islands=machines, machines=machines, links=links, gpu=gpu, network_gpus=network_gpus)
