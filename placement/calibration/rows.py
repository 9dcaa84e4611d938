"""Serving points as rows of a CSV: what was run, and for calibration what was measured.

The columns are those of NVIDIA aiconfigurator's `silicon_sample.csv` (Apache-2.0), which InferenceMAX and others can be
turned into; `id, backend, model_path, system, isl, osl, conc, tp_size` are needed, the others have a default. TTFT and
TPOT are means in milliseconds, `conc` is the number of clients of a closed loop.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from placement.clusters.hardware import GpuKind
from placement.clusters.machines import default_links, gpu_kind, gpu_of
from placement.collectives import Engine, Group
from placement.cost.constants import Constants
from placement.cost.residuals import Points, Spot, points_at
from placement.cost.serving import Demand
from placement.cost.step import STEADY, Situation, situation_of
from placement.cost.work import Groups, Traffic, Work, work_of
from placement.models import catalogue
from placement.models.memory import kv_room
from placement.models.model import ModelSpec
from placement.models.precision import with_precision
from placement.shape import Shape

NEEDED = ("id", "backend", "model_path", "system", "isl", "osl", "conc", "tp_size")
ENGINES: tuple[Engine, ...] = ("vllm", "sglang", "trtllm")
# InferenceMAX draws lengths evenly from 0.8 to 1 of what it asks for (`--random-range-ratio 0.8`).
_CLIENT_LENGTHS = {"inferencemax": 0.9}
# What InferenceMAX asks for. NVIDIA's collection passes its runs on under another `src`: of 91 rows there of these
# lengths 69 repeat one of its own rows number for number.
_INFERENCEMAX_LENGTHS = {(1024, 1024), (1024, 8192), (8192, 1024)}
_PASSES_ON = "nvidia_gap_analysis"
_PRECISION_OF_MODE = {"fp8_block": "fp8", "fp8": "fp8", "nvfp4": "fp4", "int4_wo": "int4", "bfloat16": "bf16"}
_MONTH = len("2026-01")  # of an ISO 8601 date
_NATIVE = {"fp8": ("fp8",), "fp4": ("fp4", "mxfp4")}


class RowError(ValueError):
    """A row that cannot be read. The message names the row, the column, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One serving point. `version` is the engine's with the month of the run; times not measured are 0."""

    id: str
    engine: Engine
    version: str
    model_id: str
    gpu: str
    precision: str
    input_tokens: float
    output_tokens: float
    clients: float
    shape: Shape
    client: str
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row made ready for the cost model."""

    row: Row
    model: ModelSpec
    situation: Situation
    work: Work
    demand: Demand

    @property
    def spot(self) -> Spot:
        """Where it is among measured points."""
        row = self.row
        return Spot(
            situation=self.situation,
            model=self.model,
            shape=row.shape,
            clients=row.clients,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            version=row.version,
            kind="prequantised" if row.model_id.startswith("nvidia/") else "plain",
        )


def read_rows(rows: Iterable[Mapping[str, str]]) -> list[Row]:
    """Check and convert. Raises `RowError` for the first row that is wrong."""
    return [_row(number, row) for number, row in enumerate(rows, start=1)]


def case_of(row: Row, constants: Constants, *, or_similar: bool = False) -> Case:
    """Find the model and the GPU of a row, or the model with the most similar name if that is asked for.

    Raises `RowError` when either is not known.
    """
    model = _model(row, or_similar=or_similar)
    kind = gpu_kind(row.gpu)
    if kind is None:
        raise RowError(f"row {row.id}: system is {row.gpu!r}; it must be a known kind of GPU, such as h100_sxm.")
    lengths = _CLIENT_LENGTHS.get(row.client, 1.0)
    traffic = Traffic(
        input_tokens=row.input_tokens * lengths,
        output_tokens=row.output_tokens * lengths,
        kv_bytes_per_element=_kv_bytes(row, model),
    )
    work = work_of(
        model, row.shape, kind, groups_on_one_machine(kind, row.shape), traffic, engine=row.engine, constants=constants
    )
    return Case(
        row=row,
        model=model,
        situation=situation_of(model, kind, row.engine, row.client or STEADY),
        work=work,
        demand=Demand(
            input_tokens=traffic.input_tokens,
            output_tokens=traffic.output_tokens,
            room_requests=_room(model, row.shape, kind, traffic),
        ),
    )


def points_of(cases: Iterable[Case]) -> Points:
    """Where `cases` are among measured points."""
    return points_at([case.spot for case in cases])


def groups_on_one_machine(kind: GpuKind, shape: Shape) -> Groups:
    """The groups of a shape on one island of the GPU's usual machine."""
    links = default_links(gpu_of(kind))

    def group(ranks: int) -> Group:
        return Group(ranks=ranks, links=links, gpu=kind.kind)

    return Groups(tensor=group(shape.tp), experts=group(shape.tp * shape.dp), boundaries=((group(2), shape.pp - 1),))


def _room(model: ModelSpec, shape: Shape, kind: GpuKind, traffic: Traffic) -> float:
    """Requests of the replica that the KV cache holds at once."""
    room = kv_room(
        model,
        shape,
        gpu_of(kind),
        context_tokens=traffic.context_tokens,
        kv_bytes_per_element=traffic.kv_bytes_per_element,
        utilisation=0.92,
    )
    # It ran: where the weights alone seem too large, what is known of the row is wrong, and no queue follows from it.
    return room.tokens / traffic.context_tokens * shape.dp or float("inf")


def _kv_bytes(row: Row, model: ModelSpec) -> float:
    """Benchmarks of quantised models keep the cache in fp8, but for vLLM's own default in steady fp8 runs."""
    if model.mlp_math == "bf16" and model.bytes_per_weight == 2:  # 16 bits
        return 2.0
    keeps_default = row.engine != "trtllm" and row.client != "inferencemax" and row.precision == "fp8"
    return 2.0 if keeps_default else 1.0


def _model(row: Row, *, or_similar: bool) -> ModelSpec:
    known = known_as(row.model_id)
    if known is None or (known != row.model_id and not or_similar):
        raise RowError(f"row {row.id}: model_path is {row.model_id!r}; it is not in the catalogue of known models.")
    model = _catalogued(known)
    if not row.precision or model.mlp_math in _NATIVE.get(row.precision, ()):
        return model
    return model if model.mlp_math == "mxfp4" else with_precision(model, row.precision)


@lru_cache(maxsize=256)
def _catalogued(model_id: str) -> ModelSpec:
    return ModelSpec.from_hf_config(catalogue.config(model_id) or {}, name=model_id)


@lru_cache(maxsize=256)
def known_as(model_id: str) -> str | None:
    """The id itself where the catalogue has it, else that of the model with the most similar name, if any is."""
    return model_id if catalogue.config(model_id) else catalogue.closest(model_id)


def _row(number: int, row: Mapping[str, str]) -> Row:
    where = f"row {number}"
    require_columns(where, row, NEEDED)
    if row["backend"] not in ENGINES:
        raise RowError(f"{where}: backend is {row['backend']!r}; it must be one of {', '.join(ENGINES)}.")
    tp, pp = _whole(where, row, "tp_size"), _whole(where, row, "pp_size")
    dp = _whole(where, row, "attention_dp_size")
    return Row(
        id=row["id"],
        engine=row["backend"],
        version=_version(row),
        model_id=row["model_path"],
        gpu=row["system"],
        precision=_precision(row),
        input_tokens=number_in(where, row, "isl"),
        output_tokens=number_in(where, row, "osl"),
        clients=number_in(where, row, "conc"),
        shape=Shape(tp=tp, pp=pp, dp=dp, ep=tp * dp if _whole(where, row, "moe_ep_size") > 1 else 1),
        client=_client(row),
        ttft_ms=number_in(where, row, "silicon_ttft_ms", 0.0),
        tpot_ms=number_in(where, row, "silicon_tpot_ms", 0.0),
    )


def _client(row: Mapping[str, str]) -> str:
    """The load generator, whoever published what it measured."""
    source = row.get("src") or ""
    passed_on = source == _PASSES_ON and (float(row["isl"]), float(row["osl"])) in _INFERENCEMAX_LENGTHS
    return "inferencemax" if passed_on else source


def _version(row: Mapping[str, str]) -> str:
    """The engine's version and the month of the run: unrecorded flags change from one campaign to the next."""
    return f"{row.get('backend_version') or ''} {(row.get('measured') or '')[:_MONTH]}".strip()


def _precision(row: Mapping[str, str]) -> str:
    return row.get("precision") or _PRECISION_OF_MODE.get(row.get("gemm_quant_mode") or "", "")


def _whole(where: str, row: Mapping[str, str], column: str) -> int:
    number = number_in(where, row, column, 1.0)
    if number != int(number):
        raise RowError(f"{where}: {column} is {row[column]!r}; it must be a whole number, 1 or more.")
    return int(number)


def require_columns(where: str, row: Mapping[str, str], needed: Iterable[str]) -> None:
    """Raise `RowError` unless every column of `needed` has something in it."""
    for column in needed:
        if not row.get(column):
            raise RowError(f"{where}: {column} is missing; the columns {', '.join(needed)} are needed.")


def number_in(where: str, row: Mapping[str, str], column: str, default: float | None = None) -> float:
    """The number above 0 in a column, or `default` where it is empty. Raises `RowError`."""
    text = row.get(column) or ""
    if not text and default is not None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise RowError(f"{where}: {column} is {text!r}; it must be a number above 0.")
    return number
