"""Turns of two servers as tables for people and as a document for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.cpu_use import CpuUse
from loadtests.overhead_figures import Figures, Ratio, medians, ratios
from loadtests.server_memory import RoleMemory

OURS = "archipelago"
MIB = 2**20
# Heading of each figure, and what it is multiplied by for the table. Headings have two lines, so that no word has to be
# cut at 80 columns.
COLUMNS: Mapping[str, tuple[str, float]] = {
    "tokens_per_s": ("tok/s", 1),
    "ttft_p50_s": ("TTFT\np50 ms", 1000),
    "ttft_p95_s": ("TTFT\np95 ms", 1000),
    "tpot_p50_s": ("TPOT\np50 ms", 1000),
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
    table = Table(title="medians over rounds", title_justify="left")
    table.add_column("clients", justify="right")
    table.add_column("server")
    for heading in (*(heading for heading, _ in COLUMNS.values()), "server\ncores", "other\ncores"):
        table.add_column(heading, justify="right")
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
    """A row for each figure: a ratio with its range is wide, and there are more figures than numbers of clients."""
    title = f"{' / '.join(_servers(turns))}: ratio of medians (lowest-highest of a round)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    compared = {concurrency: _ratios(turns, concurrency) for concurrency in turns[0].figures}
    for concurrency in compared:
        table.add_column("1 client" if concurrency == 1 else f"{concurrency} clients", justify="right")
    for metric, (heading, _) in COLUMNS.items():
        figure = heading.replace("\n", " ").removesuffix(" ms")
        table.add_row(figure, *(_ratio_cell(by_metric[metric]) for by_metric in compared.values()))
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
