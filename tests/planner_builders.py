"""Models, clusters and workloads by name, for the tests of the planner."""

from functools import cache
from typing import Any

from placement.clusters.cluster_reading import read_cluster
from placement.clusters.hardware import Cluster
from placement.clusters.terrain import Region, regions
from placement.layout import Infeasible
from placement.models import catalogue
from placement.models.model import ModelSpec
from placement.models.precision import with_precision
from placement.planning.option import Option
from placement.planning.plan import Plan
from placement.workload import Lengths, Slo, Workload

LLAMA_70B = "meta-llama/Llama-3.1-70B"
DEEPSEEK_V3 = "deepseek-ai/DeepSeek-V3"


@cache
def model(name: str = LLAMA_70B, precision: str = "", **changed: Any) -> ModelSpec:
    """A model of the catalogue, with `changed` fields in its config and its weights in `precision` where given."""
    config = catalogue.config(name)
    assert config is not None, name
    spec = ModelSpec.from_hf_config({**config, **changed}, name=name)
    return with_precision(spec, precision) if precision else spec


@cache
def cluster(text: str = "4x dgx-h100") -> Cluster:
    return read_cluster(text)


def region(text: str = "4x dgx-h100") -> Region:
    return regions(cluster(text))[0]


def requests(tokens_in: float = 1024, tokens_out: float = 256, **asked: Any) -> Workload:
    """`requests(requests_per_s=8)`, `requests(concurrency=64)` or `requests()`."""
    return Workload(input_tokens=Lengths(mean_tokens=tokens_in), output_tokens=Lengths(mean_tokens=tokens_out), **asked)


def slo(ttft_ms: float | None = None, tpot_ms: float | None = None, percentile: float = 0.9) -> Slo:
    return Slo(
        ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
        tpot_s=None if tpot_ms is None else tpot_ms / 1e3,
        percentile=percentile,
    )


def best(found: Plan) -> Option:
    """The best option, which there must be."""
    assert found.best is not None, found.infeasible
    return found.best


def infeasible(found: Plan) -> Infeasible:
    """Why there is no option."""
    assert found.infeasible is not None
    assert (found.best, found.partition, found.options) == (None, None, ())
    return found.infeasible
