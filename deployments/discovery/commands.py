"""The command `archipelago islands`."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from deployments.control.fleet_table import plain
from deployments.discovery.description import as_cluster, as_json, as_yaml, label_lines, link_text, raylet_commands
from deployments.discovery.grouping import Findings, find_islands
from deployments.discovery.machine import DiscoveryError
from deployments.discovery.picture import picture
from deployments.discovery.reading import read_file, read_machine
from placement import ClusterError, Link
from placement.clusters.cluster_reading import read_cluster

NARROWEST = 100  # columns; where there is no terminal rich would wrap at 80
EXAMPLES = """\
examples:
  archipelago islands                         the islands of this machine, and links that are not as they should be
  archipelago islands --json > node-a.json    the same for programs, and for the next line on another machine
  archipelago islands node-*.json --yaml > cluster.yaml && archipelago plan MODEL --cluster cluster.yaml
  ray start --address="$RAY_ADDRESS" --labels="$(archipelago islands --labels)"
  archipelago islands --raylets | sh          the same, or one raylet for each island inside this machine
  archipelago islands --measure --yaml        with the speed that its links have, instead of the one they should have
  nvidia-smi topo -m > old.txt; archipelago islands old.txt
Ends with 1 when no GPU is found, or a link is not as it should be.
"""


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    command: argparse.ArgumentParser = commands.add_parser(
        "islands",
        help="find the NVLink islands of this machine, and links that are broken",
        description="Find which GPUs have NVLink between them, and which links are not as they should be.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="look at these machines instead: what --json or nvidia-smi printed there, named after the machine",
    )
    output = command.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print all that was found as JSON")
    output.add_argument(
        "--yaml", action="store_true", help="print the cluster as `archipelago plan --cluster` takes it"
    )
    output.add_argument("--labels", action="store_true", help="print the labels for `ray start --labels`")
    output.add_argument("--raylets", action="store_true", help="print the commands that start Ray, one for each island")
    command.add_argument("--measure", action="store_true", help="measure bandwidth and latency of this machine's links")
    command.add_argument(
        "--processes", type=int, metavar="N", help="with --measure: between N processes on the CPU instead of GPUs"
    )
    command.set_defaults(run=_islands)


def _islands(arguments: argparse.Namespace) -> int:
    try:
        return _answered(arguments)
    except DiscoveryError as error:
        _complain(str(error))
        return 1


def _answered(arguments: argparse.Namespace) -> int:
    _refuse_nonsense(arguments)
    if arguments.processes:
        return _measure_cpu(arguments)
    files = [Path(name) for name in arguments.files]
    machines = [machine for path in files for machine in read_file(path)] if files else [read_machine()]
    findings = find_islands(machines)
    measured, links = _measured(findings) if arguments.measure else ({}, {})
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(findings, measured), indent=1) + "\n")
    elif arguments.yaml:
        _print_yaml(findings, links)
    elif arguments.labels or arguments.raylets:
        sys.stdout.write("\n".join(label_lines(findings) if arguments.labels else raylet_commands(findings)) + "\n")
    else:
        _console().print(picture(findings))
        _print_measured(measured)
        return 1 if findings.problems else 0
    for sentence in findings.problems:  # where programs read the output, people still see this
        _complain(sentence)
    return 1 if findings.problems else 0


def _refuse_nonsense(arguments: argparse.Namespace) -> None:
    processes = arguments.processes
    if arguments.measure and arguments.files:
        raise DiscoveryError("--measure: the machines of files are not here; give --measure or files, not both.")
    if processes is not None and not arguments.measure:
        raise DiscoveryError("--processes: only --measure starts processes; give --measure too.")
    if processes is not None and not 2 <= processes <= 64:
        raise DiscoveryError(f"--processes: {processes} is not accepted; give 2 to 64.")
    if processes is not None and (arguments.labels or arguments.raylets):
        raise DiscoveryError("--processes: without GPUs there is no Ray node to label; give --json or --yaml.")


def _measured(findings: Findings) -> tuple[dict[str, Any], dict[str, Link]]:
    """The measured levels as JSON and as links."""
    from deployments.discovery.measuring import measure, tasks_of  # torch takes seconds to load

    results = [measure(task) for task in tasks_of(findings)]
    if not results:
        raise DiscoveryError("--measure: this machine has one GPU, so there is no link between GPUs to measure.")
    return {each.task.level: each.as_json() for each in results}, {each.task.level: each.link for each in results}


def _measure_cpu(arguments: argparse.Namespace) -> int:
    from deployments.discovery.measuring import measure, on_cpu

    result = measure(on_cpu(arguments.processes))
    measured = {"island": result.as_json()}
    if arguments.json:
        sys.stdout.write(json.dumps({"measured": measured}, indent=1) + "\n")
    elif arguments.yaml:
        sys.stdout.write(
            as_yaml({"links": {"island": link_text(result.link)}}, ("Between processes of this machine.",))
        )
    else:
        _print_measured(measured)
    return 0


def _print_yaml(findings: Findings, links: Mapping[str, Link]) -> None:
    cluster = as_cluster(findings, links)
    comments = [*findings.problems, *findings.notes]
    if links:
        comments.append(f"Measured: {', '.join(links)}. Given as the line rate at which the planner predicts as much.")
    sys.stdout.write(as_yaml(cluster, tuple(comments)))
    try:
        read_cluster(cluster)
    except ClusterError as error:
        _complain(f"to plan with this file, it needs what could not be found: {error}")


def _print_measured(measured: Mapping[str, Mapping[str, Any]]) -> None:
    for level, result in measured.items():
        _console().print(
            plain(
                f"measured, {level}: {result['latency_s'] * 1e6:.1f} us and {result['transfer_bytes_per_s'] / 1e9:.2f} "
                f"GB/s from one to another; all-reduce of {result['ranks']}: "
                f"{result['all_reduce_bus_bytes_per_s'] / 1e9:.2f} GB/s on the bus"
            )
        )


def _complain(message: str) -> None:
    sys.stderr.write(f"archipelago: {message}\n")


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)
    return console
