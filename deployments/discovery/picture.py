"""The findings in a terminal: a line for each island, the matrix of each machine, and what is wrong."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.control.fleet_table import plain
from deployments.discovery.grouping import ALONE, Findings, Island
from deployments.discovery.machine import Machine

_WIDEST_MATRIX = 16  # GPUs; more do not fit a terminal
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def picture(findings: Findings) -> RenderableType:
    """Everything a person wants to see of the islands."""
    colours = _colours(findings)
    parts: list[RenderableType] = [_table(findings)]
    for machine in findings.machines:
        if 1 < len(machine.gpus) <= _WIDEST_MATRIX:
            parts += [plain(""), plain(f"{machine.host}, read from {machine.source}:"), _matrix(machine, colours)]
    parts += [plain(f"problem: {sentence}") for sentence in findings.problems]
    parts += [plain(f"note: {sentence}") for sentence in findings.notes]
    if any(not part.is_whole_host for part in findings.parts):
        hint = (
            "each island inside a machine is a Ray node of its own; `archipelago islands --raylets` prints how to start"
        )
        parts += [plain(""), plain(f"{hint} them")]
    return Group(*parts)


def _table(findings: Findings) -> Table:
    table = Table()
    for column in ("island", "GPUs", "over", "GB/s per GPU", "Ray node", "GPU"):
        is_number = column in ("GPUs", "GB/s per GPU")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for island in findings.islands:
        for place, part in enumerate(island.parts):
            own = (island.name, str(island.gpus), _over(island), _speed(island)) if place == 0 else ("", "", "", "")
            name = part.gpus[0].name or "GPU of unknown kind"
            indexes = _ranges([gpu.index for gpu in part.gpus])
            table.add_row(*map(plain, (*own, part.node, f"{indexes}: {name}")))
    return table


def _over(island: Island) -> str:
    return "-" if island.medium == ALONE else island.medium


def _speed(island: Island) -> str:
    return f"{island.link.bandwidth_bytes_per_s / 1e9:.0f}" if island.link else "?" if island.gpus > 1 else "-"


def _matrix(machine: Machine, colours: dict[tuple[str, int], tuple[str, str]]) -> Table:
    """As `nvidia-smi topo -m` shows it, with what is inside an island in the island's colour."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for gpu in machine.gpus:
        table.add_column(f"GPU{gpu.index}")
    for gpu in machine.gpus:
        cells = [_cell(machine, gpu.index, other.index, colours) for other in machine.gpus]
        table.add_row(plain(f"GPU{gpu.index}"), *cells)
    return table


def _cell(machine: Machine, row: int, column: int, colours: dict[tuple[str, int], tuple[str, str]]) -> Text:
    island, colour = colours.get((machine.host, row), ("", "dim"))
    same = bool(island) and colours.get((machine.host, column), ("", ""))[0] == island
    if row == column:
        return Text("X" if island else "MIG", style=colour)
    found = machine.connection(row, column)
    return Text(f"NV{found.nvlinks}" if found.nvlinks else found.pcie or "?", style=colour if same else "dim")


def _colours(findings: Findings) -> dict[tuple[str, int], tuple[str, str]]:
    """Island and colour of each GPU, by machine and index."""
    return {
        (part.host, gpu.index): (island.name, _COLOURS[number % len(_COLOURS)])
        for number, island in enumerate(findings.islands)
        for part in island.parts
        for gpu in part.gpus
    }


def _ranges(indexes: Iterable[int]) -> str:
    """0-3,6: runs of numbers in short."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
