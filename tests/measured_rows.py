"""Serving points made from the cost model itself, for the tests of calibration."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from placement.calibration.fit import batch_of, predict
from placement.calibration.rows import Row, read_rows
from placement.cost.constants import Constants

SHAPES = {"meta-llama/Llama-3.1-8B": (1, 2), "meta-llama/Llama-3.1-70B": (4, 8)}
CLIENTS = (1, 8, 64)
LENGTHS = ((128, 512), (2048, 256))


def questions(
    backend: str = "vllm", gpu: str = "h100_sxm", clients: Sequence[float] = CLIENTS
) -> Iterator[dict[str, str]]:
    """Rows as a CSV has them, without what was measured."""
    points = [(name, tp) for name, widths in SHAPES.items() for tp in widths]
    for (name, tp), (tokens_in, tokens_out), count in product(points, LENGTHS, clients):
        yield {
            "id": f"{name}-tp{tp}-{tokens_in}-{count}",
            "backend": backend,
            "model_path": name,
            "system": gpu,
            "isl": str(tokens_in),
            "osl": str(tokens_out),
            "conc": str(count),
            "tp_size": str(tp),
        }


def measured_under(constants: Constants, rows: Sequence[Row]) -> list[Row]:
    """`rows` with the times that `constants` give them."""
    times = predict(batch_of(rows, constants), constants)
    return [
        replace(row, ttft_ms=float(ttft), tpot_ms=float(tpot))
        for row, ttft, tpot in zip(rows, times.ttft_ms, times.tpot_ms, strict=True)
    ]


def unmeasured(**changed: Any) -> list[Row]:
    """The rows of `questions`."""
    return read_rows(questions(**changed))
