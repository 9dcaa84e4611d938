"""Turns of two servers as tables for people and as a document for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.cpu_use import CpuUse
from loadtests.overhead_figures import METRICS, Figures, Ratio, medians, ratios
from loadtests.server_memory import RoleMemory

OURS = "archipelago"
MIB = 2**20
# Heading of each figure, and what it is multiplied by for the table.
COLUMNS: Mapping[str, tuple[str, float]] = {
    "tokens_per_s": ("tok/s", 1),
    "ttft_p50_s": ("TTFT p50 ms", 1000),
    "ttft_p95_s": ("TTFT p95 ms", 1000),
    "tpot_p50_s": ("TPOT p50 ms", 1000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One server in one round: figures and use of the processor by concurrency, then the memory of its processes."""

    server: str
    round: int
    launch_to_token_s: float
    figures: Mapping[int, Figures]
    cpu: Mapping[int, CpuUse]
    memory: tuple[RoleMemory, ...]


def print_report(turns: Sequence[Turn], console: Console) -> None:
    """Print speed, start and memory."""
    console.print(_speed_table(turns))
    console.print(_ratio_table(turns))
    for server in _servers(turns):
        starts_s = [turn.launch_to_token_s for turn in turns if turn.server == server]
        spread = f"({min(starts_s):.1f}-{max(starts_s):.1f})"
        console.print(f"{server}: {median(starts_s):.1f} s {spread} from launch to the first token")
    for server in _servers(turns):
        console.print(_memory_table(next(turn for turn in turns if turn.server == server)))


def document(turns: Sequence[Turn], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """All that was measured, in base units, under what conditions."""
    compared = {
        concurrency: {metric: asdict(ratio) for metric, ratio in _ratios(turns, concurrency).items()}
        for concurrency in turns[0].figures
    }
    return {"conditions": dict(conditions), "ratios": compared, "turns": [asdict(turn) for turn in turns]}


def _speed_table(turns: Sequence[Turn]) -> Table:
    table = _metric_table("medians over rounds", "server")
    table.add_column("server cores", justify="right")
    table.add_column("other cores", justify="right")
    for concurrency in turns[0].figures:
        for server in _servers(turns):
            figures = medians(_figures(turns, server, concurrency))
            cells = (f"{getattr(figures, metric) * scale:.1f}" for metric, (_, scale) in COLUMNS.items())
            uses = [turn.cpu[concurrency] for turn in turns if turn.server == server]
            cores = (median(use.server for use in uses), median(use.others for use in uses))
            table.add_row(str(concurrency), server, *cells, *(f"{value:.2f}" for value in cores))
        table.add_section()
    return table


def _ratio_table(turns: Sequence[Turn]) -> Table:
    table = _metric_table("ratios of the medians (lowest-highest of a round)", "servers")
    for concurrency in turns[0].figures:
        compared = _ratios(turns, concurrency)
        table.add_row(
            str(concurrency), "/".join(_servers(turns)), *(_ratio_cell(compared[metric]) for metric in METRICS)
        )
    return table


def _metric_table(title: str, servers: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("clients", justify="right")
    table.add_column(servers)
    for metric in METRICS:
        table.add_column(COLUMNS[metric][0], justify="right")
    return table


def _memory_table(turn: Turn) -> Table:
    table = Table(title=f"{turn.server}: memory (proportional set size)", title_justify="left")
    table.add_column("role")
    table.add_column("processes", justify="right")
    table.add_column("MiB", justify="right")
    for role in turn.memory:
        table.add_row(role.role, str(role.processes), f"{role.pss_bytes / MIB:.0f}")
    table.add_section()
    processes, pss_bytes = sum(role.processes for role in turn.memory), sum(role.pss_bytes for role in turn.memory)
    table.add_row("all", str(processes), f"{pss_bytes / MIB:.0f}")
    return table


def _servers(turns: Sequence[Turn]) -> list[str]:
    """Ours, then the peer."""
    return sorted({turn.server for turn in turns}, key=lambda server: server != OURS)


def _figures(turns: Sequence[Turn], server: str, concurrency: int) -> list[Figures]:
    by_round = sorted((turn for turn in turns if turn.server == server), key=lambda turn: turn.round)
    return [turn.figures[concurrency] for turn in by_round]


def _ratios(turns: Sequence[Turn], concurrency: int) -> dict[str, Ratio]:
    ours, peer = (_figures(turns, server, concurrency) for server in _servers(turns))
    return ratios(ours, peer)


def _ratio_cell(ratio: Ratio) -> str:
    return f"{ratio.of_medians:.3f} ({ratio.lowest:.3f}-{ratio.highest:.3f})"
