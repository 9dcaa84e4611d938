"""Shows where every shard runs: found against wanted, one line for each rank."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from deployments.replica import ReplicaReport
from deployments.run_record import ServedModel
from deployments.verification import PlacementMismatchError, verify

MIB = 2**20
NARROWEST = 100  # columns; where there is no terminal rich would wrap at 80


def print_status(model: ServedModel, reports: Mapping[str, ReplicaReport | str], *, is_serving: bool) -> bool:
    """Print the table of a model; returns whether all replicas run as planned and the endpoint answers."""
    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)
    table = Table(title=f"{model.name} at {model.url}", title_justify="left")
    for column in ("replica", "rank", "stage", "tp", "island", "node", "GPU", "pid", "memory"):
        table.add_column(column, justify="right" if column in {"rank", "stage", "tp", "pid", "memory"} else "left")
    problems: list[str] = []
    for name, report in reports.items():
        if isinstance(report, str):
            problems.append(f"{name} is {report}")
            continue
        _add_rows(table, name, report)
        try:
            verify(report.layout, report.found, report.node_names)
        except PlacementMismatchError as error:
            problems.append(f"{name}: {error}")
    if not is_serving:
        problems.append(f"{model.url}/health does not answer 200")
    console.print(table)
    ready = sum(isinstance(report, ReplicaReport) for report in reports.values())
    console.print(
        f"{ready} of {len(reports)} replicas run; " + ("placed as planned" if not problems else "not as planned:")
    )
    for problem in problems:
        console.print(f"  {problem}", markup=False)
    return not problems


def _add_rows(table: Table, name: str, report: ReplicaReport) -> None:
    islands = {seat.node: seat.island for seat in report.layout.seats}
    for rank, worker in enumerate(report.found.workers):
        node = report.node_names.get(worker.ray_node_id, worker.ray_node_id)
        memory = f"{worker.memory_bytes / MIB:.0f} MiB"
        cells = (str(rank), str(worker.pp_rank), str(worker.tp_rank), islands.get(node, "?"), node)
        table.add_row(name if rank == 0 else "", *cells, ",".join(worker.gpu_ids), str(worker.pid), memory)
    table.add_section()
