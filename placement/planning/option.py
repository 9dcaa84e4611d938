"""One way to serve a workload: a shape, how many replicas, the load of each; and how surely it keeps the SLO."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from placement.cost.prediction import Load, Prediction
from placement.cost.simulation import Tails, at_percentile
from placement.cost.work import Array
from placement.layout import Layout
from placement.planning.chance import Spread, chances, least_expected_cost
from placement.shape import Shape
from placement.workload import Slo, Workload

_HEADROOM = 0.85  # of a replica's steady rate: arrivals come in bursts, and a queue at full load has no end


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is the same for all options in one region: free GPUs of each island, and how far predictions are off."""

    island_gpus: tuple[int, ...]
    spread: Spread

    def most_replicas(self, shape: Shape) -> int:
        """How many the islands hold, each tensor-parallel group inside one."""
        return sum(gpus // shape.tp for gpus in self.island_gpus) // (shape.pp * shape.dp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A shape, run `replicas` times. `reason` says why it ranks here, `layouts` has the first replicas.

    `load` is what each replica carries: its share of the asked rate with headroom, or of the asked clients; without
    either, as much as is worth the risk of a broken SLO. `fullest` is the most that is still predicted to keep it.
    `chance` is that of keeping the SLO at `load`, 1 without one. `tails` are those of one simulated replica at its
    share of the rate; only the best few have them.

    `usd_per_hour` is None where the price of the GPUs is not known.
    """

    prediction: Prediction
    ground: Ground
    load: Load
    fullest: Load
    replicas: int
    meets_slo: bool
    chance: float
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
    def most_replicas(self) -> int:
        """How many there is room for."""
        return self.ground.most_replicas(self.shape)

    @property
    def usd_per_hour(self) -> float | None:
        price = self.prediction.region.usd_per_gpu_hour
        return None if price is None else price * self.gpus

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Output tokens of one replica at its load."""
        return _tokens_per_s(self.load) / self.shape.gpus

    @property
    def most_requests_per_s(self) -> float:
        """Of all replicas, at the most that is predicted to keep the SLO."""
        return self.fullest.requests_per_s * self.replicas


def sized(prediction: Prediction, ground: Ground, workload: Workload, slo: Slo) -> Option:
    """The number of replicas, and the load of each, that cost least for what is asked, chances counted.

    Where no load keeps the SLO, one replica at the load that comes closest; where there is no room for as many replicas
    as any would need, the fewest.
    """
    loads = prediction.loads
    fast = [load for load in loads if meets(load, slo)]
    fullest = (
        max(fast, key=lambda load: load.requests_per_s) if fast else min(loads, key=lambda load: excess(load, slo))
    )
    most = ground.most_replicas(prediction.shape)
    roomy = [load for load in fast if replicas_for(load, workload) <= most] or [fullest]
    costs = np.array([_cost(load, workload) for load in roomy])
    load = roomy[least_expected_cost(costs, *_excesses(roomy, slo), ground.spread)]
    return Option(
        prediction=prediction,
        ground=ground,
        load=load,
        fullest=fullest,
        replicas=replicas_for(load, workload) if fast else 1,
        meets_slo=bool(fast),
        chance=_chance(load, ground, slo),
    )


def with_replicas(option: Option, replicas: int, workload: Workload, slo: Slo) -> Option:
    """`option` with so many replicas, each with the smallest load that is enough."""
    enough = (load for load in option.prediction.loads if replicas_for(load, workload) <= replicas)
    load = next(enough, option.load)
    return replace(option, replicas=replicas, load=load, chance=_chance(load, option.ground, slo), tails=None)


def with_tails(option: Option, tails: Tails, slo: Slo) -> Option:
    """`option` with what a simulation says: its SLO must hold there too, and its chance is the lesser of both."""
    kept = not tails.overloaded and not tails.unfinished_share and (tails.attainment or 0.0) >= slo.percentile
    times = at_percentile(tails.ttft_s, slo.percentile), at_percentile(tails.tpot_s, slo.percentile)
    chance = float(chances(*_over(*times, slo), option.ground.spread))
    return replace(option, tails=tails, meets_slo=kept, chance=min(option.chance, chance))


def replicas_for(load: Load, workload: Workload) -> int:
    """How many replicas at `load` answer what is asked: 1 for a workload that does not say how much."""
    if workload.requests_per_s is not None:
        return math.ceil(workload.requests_per_s / (load.requests_per_s * _HEADROOM))
    if workload.concurrency is not None:
        return math.ceil(workload.concurrency / load.running)
    return 1


def tail(load: Load, percentile: float) -> tuple[float, float]:
    """TTFT and TPOT (s) at a percentile, from means: waits are taken as exponential, steps as they are."""
    wait = -math.log(1 - percentile)
    return load.ttft_s + load.queue_s * max(0.0, wait - 1), load.tpot_s


def meets(load: Load, slo: Slo) -> bool:
    """Whether a replica at `load` keeps the SLO."""
    return excess(load, slo) <= 1


def excess(load: Load, slo: Slo) -> float:
    """How many times slower than the SLO, by the worse of TTFT and TPOT; at most 1 when it is met."""
    return max(_over(*tail(load, slo.percentile), slo))


def _over(ttft_s: float, tpot_s: float, slo: Slo) -> tuple[float, float]:
    """TTFT and TPOT over their limits, 0 without one."""
    return ttft_s / slo.ttft_s if slo.ttft_s else 0.0, tpot_s / slo.tpot_s if slo.tpot_s else 0.0


def _excesses(loads: Sequence[Load], slo: Slo) -> tuple[Array, Array]:
    ttft, tpot = zip(*(_over(*tail(load, slo.percentile), slo) for load in loads), strict=True)
    return np.array(ttft), np.array(tpot)


def _chance(load: Load, ground: Ground, slo: Slo) -> float:
    return float(chances(*_over(*tail(load, slo.percentile), slo), ground.spread))


def _cost(load: Load, workload: Workload) -> float:
    """Of one shape: replicas, or time for a token where nobody says how much is asked."""
    if workload.requests_per_s is None and workload.concurrency is None:
        return 1 / _tokens_per_s(load)
    return float(replicas_for(load, workload))


def _tokens_per_s(load: Load) -> float:
    return load.running / load.tpot_s
