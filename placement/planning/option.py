"""One way to serve a workload: a shape, the load of each replica, how many replicas; and whether it keeps the SLO."""

import math
from dataclasses import dataclass

from placement.cost.prediction import Load, Prediction
from placement.cost.simulation import Tails
from placement.layout import Layout
from placement.shape import Shape
from placement.workload import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A shape, run `replicas` times, each at `load`. `layouts` has the first replicas; `reason` says why it ranks here.
    `tails` are those of one simulated replica at its share of the rate; only the best few have them.

    `usd_per_hour` is None where the price of the GPUs is not known.
    """

    prediction: Prediction
    load: Load
    replicas: int
    meets_slo: bool
    tails: Tails | None = None
    layouts: tuple[Layout, ...] = ()
    reason: str = ""

    @property
    def shape(self) -> Shape:
        return self.prediction.shape

    @property
    def gpus(self) -> int:
        return self.replicas * self.shape.gpus

    @property
    def usd_per_hour(self) -> float | None:
        price = self.prediction.region.usd_per_gpu_hour
        return None if price is None else price * self.gpus

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Output tokens of one replica at its load."""
        return self.load.running / self.load.tpot_s / self.shape.gpus


def tail(load: Load, percentile: float) -> tuple[float, float]:
    """TTFT and TPOT (s) at a percentile, from means: waits are taken as exponential, steps as they are."""
    wait = -math.log(1 - percentile)
    return load.ttft_s + load.queue_s * max(0.0, wait - 1), load.tpot_s


def meets(load: Load, slo: Slo) -> bool:
    """Whether a replica at `load` keeps the SLO."""
    return excess(load, slo) <= 1


def excess(load: Load, slo: Slo) -> float:
    """How many times slower than the SLO, by the worse of TTFT and TPOT; at most 1 when it is met."""
    ttft_s, tpot_s = tail(load, slo.percentile)
    return max(ttft_s / slo.ttft_s if slo.ttft_s else 0.0, tpot_s / slo.tpot_s if slo.tpot_s else 0.0)
