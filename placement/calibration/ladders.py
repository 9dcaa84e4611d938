"""Whether more GPUs in a tensor-parallel group gain or lose throughput, against NVIDIA's TensorRT-LLM tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from placement.clusters.machines import cluster_of
from placement.clusters.terrain import regions
from placement.cost.constants import Constants
from placement.cost.prediction import Question, predict
from placement.models import catalogue
from placement.models.model import ModelSpec
from placement.models.precision import with_precision
from placement.shape import Shape
from placement.workload import Lengths, Workload

_MACHINES = {
    "A100 PCIe": "a100-pcie-8",
    "A100 SXM 80GB": "dgx-a100",
    "B200": "dgx-b200",
    "B200 SXM": "dgx-b200",
    "GB200": "gb200-nvl72",
    "H100": "dgx-h100",
    "H100 SXM": "dgx-h100",
    "H200": "dgx-h200",
    "H200 SXM": "dgx-h200",
    "L40S": "l40s-pcie-8",
    "RTX PRO 6000 Blackwell SE": "rtx-pro-6000-8",
}
_MODELS = {"Mixtral-8x7B": "Mixtral-8x7B-v0.1", "Mixtral-8x22B": "Mixtral-8x22B-v0.1"}
_FREE_MEMORY_SHARE = 0.95  # trtllm-bench's --kv_cache_free_gpu_mem_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Published output tokens/s of one model under full load, by the number of GPUs; names as the table has them."""

    model: str
    hardware: str
    precision: str
    input_tokens: float
    output_tokens: float
    attention_dp: bool
    tokens_per_s: Mapping[int, float] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Throughput of more GPUs over that of fewer; `predicted` is None for what is not known or does not fit."""

    ladder: Ladder
    measured: float
    predicted: float | None


def ladders(table: Iterable[Mapping[str, str]]) -> list[Ladder]:
    """The tensor-parallel ladders of NVIDIA's TensorRT-LLM tables: full load, one pipeline stage, all GPUs together."""
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in table:
        if row["metric"] == "output_throughput" and row["pp"] == "1" and row["batch/concurrency"] == "max (offline)":
            key = tuple(row[name] for name in ("source", "model", "hardware", "isl", "osl", "dtype", "note"))
            found.setdefault(key, {})[int(row["tp"])] = float(row["value"])
    return [
        Ladder(
            model=model,
            hardware=hardware,
            precision=precision,
            input_tokens=float(isl),
            output_tokens=float(osl),
            attention_dp="attention_dp" in note,
            tokens_per_s=steps,
        )
        for (_, model, hardware, isl, osl, precision, note), steps in found.items()
    ]


def tp_ratios(found: Iterable[Ladder], constants: Constants, *, fewer: int = 4, more: int = 8) -> list[Ratio]:
    """Best throughput on `more` GPUs over that on `fewer`, for each ladder that has both."""
    return [
        Ratio(
            ladder=ladder,
            measured=ladder.tokens_per_s[more] / ladder.tokens_per_s[fewer],
            predicted=_predicted_ratio(ladder, constants, fewer, more),
        )
        for ladder in found
        if fewer in ladder.tokens_per_s and more in ladder.tokens_per_s
    ]


def _predicted_ratio(ladder: Ladder, constants: Constants, fewer: int, more: int) -> float | None:
    config = catalogue.config(_MODELS.get(ladder.model, ladder.model))
    machine = _MACHINES.get(ladder.hardware)
    if config is None or machine is None:
        return None
    model = ModelSpec.from_hf_config(config, name=ladder.model)
    narrow = ladder.precision in ("fp8", "fp4")
    question = Question(
        model=with_precision(model, ladder.precision) if narrow else model,
        workload=Workload(
            input_tokens=Lengths(mean_tokens=ladder.input_tokens),
            output_tokens=Lengths(mean_tokens=ladder.output_tokens),
        ),
        constants=constants,
        engine="trtllm",
        kv_bytes_per_element=1 if narrow else 2,
        utilisation=_FREE_MEMORY_SHARE,
    )
    divided = ladder.attention_dp and model.is_moe
    shapes = [Shape(dp=gpus, ep=gpus) if divided else Shape(tp=gpus) for gpus in (fewer, more)]
    [region] = regions(cluster_of(machine))
    low, high = (
        max((load.requests_per_s for load in each.loads), default=0.0)
        for each in predict(question, [(shape, region) for shape in shapes])
    )
    return high / low if low and high else None
