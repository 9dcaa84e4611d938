"""Sites, demands and SLOs by name, for the tests of `autoscaling`."""

from functools import cache

from autoscaling.capacity.performance import PlannedPerformance
from autoscaling.capacity.site import Site, site_of
from autoscaling.observation import Demand
from placement.clusters.cluster_reading import read_cluster
from placement.models import catalogue
from placement.models.model import ModelSpec
from placement.shape import Shape
from placement.workload import Lengths, Slo

LLAMA_70B = "meta-llama/Llama-3.1-70B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"

TP2, TP4, TP8 = Shape(tp=2), Shape(tp=4), Shape(tp=8)
TP4PP2 = Shape(tp=4, pp=2)


@cache
def model(name: str = LLAMA_70B) -> ModelSpec:
    config = catalogue.config(name)
    assert config is not None
    return ModelSpec.from_hf_config(config, name=name)


@cache
def site(name: str = LLAMA_70B, cluster: str = "4x dgx-h100", shapes: tuple[Shape, ...] | None = None) -> Site:
    return site_of(model(name), read_cluster(cluster), shapes=shapes)


@cache
def performance(
    name: str = LLAMA_70B, cluster: str = "4x dgx-h100", shapes: tuple[Shape, ...] | None = None
) -> PlannedPerformance:
    """Shared by all tests of a process: what it has computed once is there for the next."""
    return PlannedPerformance(site(name, cluster, shapes))


def demand(
    requests_per_s: float = 4.0,
    tokens_in: float = 1024,
    tokens_out: float = 256,
    *,
    spread: float = 0.75,
    hits: float = 0.0,
    dispersion: float = 1.0,
) -> Demand:
    return Demand(
        requests_per_s=requests_per_s,
        input_tokens=Lengths(mean_tokens=tokens_in, spread=spread),
        output_tokens=Lengths(mean_tokens=tokens_out, spread=spread),
        prefix_hit_rate=hits,
        dispersion=dispersion,
    )


def slo(ttft_ms: float | None = 1000, tpot_ms: float | None = 30, percentile: float = 0.9) -> Slo:
    return Slo(
        ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
        tpot_s=None if tpot_ms is None else tpot_ms / 1e3,
        percentile=percentile,
    )
