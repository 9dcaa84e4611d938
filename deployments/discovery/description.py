"""The findings as others take them: the planner's cluster, Ray's labels, the commands that start Ray. Pure."""

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from deployments.discovery.grouping import ALONE, Findings, Island, Part, label_value
from deployments.discovery.machine import machines_document
from deployments.discovery.speed import pcie_between, planners_gpu
from deployments.islands import ISLAND_LABEL, MACHINE_LABEL, NODE_LABEL
from placement import Link
from placement.clusters.machines import gpu_kinds

MIB = 2**20
_SAME_MEMORY = 0.01  # drivers differ by less in what they keep for themselves
# Raylets on one machine share its ports and its memory: each gets its own, and a small object store.
_WORKER_PORTS, _PORTS_PER_RAYLET, _AGENT_PORT = 10_002, 1_000, 52_365
_OBJECT_STORE_BYTES = 10**9


def as_json(findings: Findings, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Everything: `machines` is what `archipelago islands FILE` reads again."""
    return {
        "islands": [_island_json(island) for island in findings.islands],
        "problems": list(findings.problems),
        "notes": list(findings.notes),
        **({"measured": dict(measured)} if measured else {}),
        "machines": machines_document(findings.machines),
    }


def _island_json(island: Island) -> dict[str, Any]:
    link = island.link
    return {
        "name": island.name,
        "medium": island.medium,
        "gpus": island.gpus,
        "nodes": [
            {"name": part.node, "host": part.host, "gpu_indexes": [gpu.index for gpu in part.gpus]}
            for part in island.parts
        ],
        "link": link
        and {"kind": link.kind, "bandwidth_bytes_per_s": link.bandwidth_bytes_per_s, "source": link.source},
    }


def as_cluster(findings: Findings, measured: Mapping[str, Link]) -> dict[str, Any]:
    """What `placement.given.cluster` reads; `measured` links by level (island, machine) go before what was found."""
    islands = [
        {"name": island.name, "gpu": _gpu(island), "nodes": [_node(part) for part in island.parts]}
        for island in findings.islands
    ]
    links = {name: link_text(link) for name, link in {**_found_links(findings), **measured}.items()}
    return {"islands": islands, **({"links": links} if links else {})}


def as_yaml(cluster: Mapping[str, Any], comments: tuple[str, ...]) -> str:
    """The description as a file, with comments on top."""
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(dict(cluster), sort_keys=False)


def _gpu(island: Island) -> str | dict[str, str]:
    """A GPU that the planner does not know needs figures that only its datasheet has; they are left to the user."""
    found = island.parts[0].gpus[0]
    gpu = planners_gpu(found)
    memory = {"memory": f"{found.memory_bytes // MIB} MiB"} if found.memory_bytes else {}
    known = gpu_kinds().get(gpu.kind)
    if known is None:
        return {"name": gpu.name, **memory}
    is_usual = abs(gpu.memory_bytes / known.memory_bytes - 1) < _SAME_MEMORY
    return gpu.kind if is_usual else {"kind": gpu.kind, **memory}


def _node(part: Part) -> dict[str, Any]:
    node: dict[str, Any] = {"name": part.node, "gpus": len(part.gpus)}
    return node if part.is_whole_host else {**node, "machine": label_value(part.host)}


def _found_links(findings: Findings) -> dict[str, Link]:
    """One link for each level, as a description has it: the slowest, where all are of one kind."""
    inside = [island.link for island in findings.islands if island.link and island.medium != ALONE]
    machine = [pcie_between(part.gpus) for part in findings.parts if not part.is_whole_host]
    found = {}
    for name, links in (("island", inside), ("machine", machine)):
        known = [link for link in links if link]
        if known and len(known) == len(links) and len({link.kind for link in known}) == 1:
            found[name] = min(known, key=lambda link: link.bandwidth_bytes_per_s)
    return found


def link_text(link: Link) -> dict[str, str]:
    """A link as a cluster description has it."""
    return {
        "kind": link.kind,
        "bandwidth": f"{link.bandwidth_bytes_per_s / 1e9:.6g} GB/s",
        "latency": f"{link.latency_s * 1e6:.4g} us",
    }


def labels_of(island: Island, part: Part) -> str:
    """For `ray start --labels`; `deployments.islands` reads them."""
    machine = "" if part.is_whole_host else f",{MACHINE_LABEL}={label_value(part.host)}"
    return f"{ISLAND_LABEL}={island.name},{NODE_LABEL}={part.node}{machine}"


def label_lines(findings: Findings) -> list[str]:
    """The labels where the machine is one Ray node, else the commands that make it several."""
    if len(findings.parts) != 1:
        return raylet_commands(findings)
    (island,) = findings.islands
    return [labels_of(island, island.parts[0])]


def raylet_commands(findings: Findings) -> list[str]:
    """One `ray start` for each Ray node of each machine, to be run on that machine with RAY_ADDRESS set."""
    commands = []
    of_part = {part.node: island for island in findings.islands for part in island.parts}
    for host in dict.fromkeys(part.host for part in findings.parts):
        parts = [part for part in findings.parts if part.host == host]
        commands += [_raylet_command(of_part[part.node], part, place, len(parts)) for place, part in enumerate(parts)]
    return commands


def _raylet_command(island: Island, part: Part, place: int, raylets: int) -> str:
    words = [f"--num-gpus={len(part.gpus)}", f"--labels={labels_of(island, part)}"]
    if raylets == 1:
        return f'ray start --address="$RAY_ADDRESS" {shlex.join(words)}'
    ports = _WORKER_PORTS + place * _PORTS_PER_RAYLET
    words += [
        f"--min-worker-port={ports}",
        f"--max-worker-port={ports + _PORTS_PER_RAYLET - 1}",
        f"--dashboard-agent-listen-port={_AGENT_PORT + place}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
    ]
    visible = ",".join(str(gpu.index) for gpu in part.gpus)
    # CUDA numbers GPUs by speed unless told to do it as NVML does.
    environ = f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={visible}"
    cores = f'--num-cpus="$(( ($(nproc) + {raylets - 1}) / {raylets} ))"'
    return f'{environ} ray start --address="$RAY_ADDRESS" {cores} {shlex.join(words)}'
