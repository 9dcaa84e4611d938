"""A cluster's own links: measured collectives (nccl-tests) in, two factors for each level out.

Columns of the CSV: `op` (all_reduce, all_gather, reduce_scatter, all_to_all), `size_bytes` as nccl-tests prints it,
`ranks`, `time_us`; and where ranks did not fill islands in order, `islands` and `machines`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, get_args

from placement.calibration.rows import RowError, number_in, require_columns
from placement.clusters.terrain import Region, filled_group
from placement.collectives import Calibration, CollectiveError, Factors, Group, Op
from placement.collectives.fitting import Point

NEEDED = ("op", "size_bytes", "ranks", "time_us")
_US = 1e-6


def read_points(rows: Iterable[Mapping[str, str]], region: Region) -> list[Point]:
    """The measured collectives of a cluster like `region`. Raises `RowError` for the first row that is wrong."""
    return [_point(number, row, region) for number, row in enumerate(rows, start=1)]


def as_document(calibration: Calibration) -> dict[str, Any]:
    """What `read` takes."""
    return asdict(calibration)


def read(document: Mapping[str, Any]) -> Calibration:
    """The factors of a document that `as_document` made. Raises `CollectiveError`."""
    try:
        return Calibration(**{level: Factors(**factors) for level, factors in document.items()})
    except (TypeError, AttributeError) as error:
        raise CollectiveError(f"links.json: {error}; give what `archipelago calibrate --collectives` wrote.") from error


def _point(number: int, row: Mapping[str, str], region: Region) -> Point:
    where = f"row {number}"
    require_columns(where, row, NEEDED)
    op: Op | None = next((known for known in get_args(Op) if known == row["op"]), None)
    if op is None:
        raise RowError(f"{where}: op is {row['op']!r}; it must be one of {', '.join(get_args(Op))}.")
    return Point(
        op=op,
        size_bytes=number_in(where, row, "size_bytes"),
        group=_group(where, row, region),
        time_s=number_in(where, row, "time_us") * _US,
    )


def _group(where: str, row: Mapping[str, str], region: Region) -> Group:
    ranks = int(number_in(where, row, "ranks"))
    if not 1 < ranks <= region.gpus:
        raise RowError(f"{where}: ranks is {row['ranks']!r}; it must be from 2 to the cluster's {region.gpus} GPUs.")
    filled = filled_group(ranks, ranks, region)
    if not row.get("islands") and not row.get("machines"):
        return filled
    machines = int(number_in(where, row, "machines")) if row.get("machines") else filled.machines
    islands = int(number_in(where, row, "islands")) if row.get("islands") else max(machines, filled.islands)
    return Group(ranks=ranks, islands=islands, machines=machines, links=region.links, gpu=region.kind.kind)
