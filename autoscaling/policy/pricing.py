"""What an option brings and costs over the horizon, the way there included.

Arrivals are a fluid: what cannot be answered piles up, and who arrives while more waits than the TTFT allows for is
late. Everybody else is as well off as in steady state at that load.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from autoscaling.capacity.transitions import Transition
from autoscaling.decision import Kind, Price
from autoscaling.observation import Demand, Pools, gpus_of
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.options import Candidate
from autoscaling.policy.outlook import Outlook
from autoscaling.policy.past import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A candidate with its price.

    `load` is what is needed over what it serves within the SLO; up to 1 it keeps the SLO. `forgets` is a demand of the
    past, or one to come, that it would not serve. `shortfall` is the share of the arrivals that miss the SLO while more
    do than may. `cost_gpu_s` has the GPU-seconds after the horizon too.
    """

    kind: Kind
    pools: Pools = field(hash=False)
    price: Price
    load: float
    forgets: Asked | None
    shortfall: float
    cost_gpu_s: float

    @property
    def gpus(self) -> int:
        return gpus_of(self.pools)

    @property
    def keeps(self) -> bool:
        """Whether it keeps the SLO for what is needed, once it serves."""
        return self.load <= 1 + 1e-9


def priced(candidate: Candidate, way: Transition, outlook: Outlook, estimates: Estimates, payback_s: float) -> Offer:
    """The offer that `candidate` is, when it is reached by `way`."""
    pools = candidate.pools
    need = tuple(asked.demand for asked in outlook.need)
    attainment, shortfall, gpu_s = _over_the_horizon(way, outlook, estimates)
    remembered = outlook.lasting if candidate.kind == "repartition" else outlook.recent
    return Offer(
        kind=candidate.kind,
        pools=pools,
        price=Price(
            attainment=attainment,
            gpu_s=gpu_s,
            final_attainment=min(estimates.attainment(pools, demand) for demand in need),
            transition_s=way.serves_s,
            transition_gpu_s=_gpu_s_not_serving(way),
            stall_s=way.stall_s,
        ),
        load=estimates.worst_load(pools, need),
        forgets=next((asked for asked in remembered if not estimates.keeps(pools, (asked.demand,))), None),
        shortfall=shortfall,
        cost_gpu_s=gpu_s + gpus_of(pools) * payback_s,
    )


def _over_the_horizon(way: Transition, outlook: Outlook, estimates: Estimates) -> tuple[float, float, float]:
    """Shares of the arrivals that keep the SLO and that miss it beyond what may, and GPU-seconds."""
    # A stream that moves is read anew with what it has written: as much work as one that arrives, or nearly.
    waiting = outlook.backlog + way.moved * outlook.running
    arrived, kept, short, gpu_s = 0.0, 0.0, 0.0, 0.0
    for length_s, serving, gpus, demand in _stretches(way, outlook):
        arrivals = demand.requests_per_s * length_s
        late_s, waiting = _late(waiting, length_s, serving, demand, estimates)
        in_time = 1 - late_s / length_s
        attainment = estimates.attainment(serving, demand) if in_time else 0.0
        arrived += arrivals
        kept += arrivals * in_time * attainment
        short += arrivals * (
            (1 - in_time) * estimates.slo.percentile + in_time * max(0.0, estimates.slo.percentile - attainment)
        )
        gpu_s += gpus * length_s
    return (kept / arrived, short / arrived, gpu_s) if arrived else (1.0, 0.0, gpu_s)


def _late(waiting: float, length_s: float, serving: Pools, demand: Demand, estimates: Estimates) -> tuple[float, float]:
    """For how long of a stretch who arrives is late, and how many requests wait at its end."""
    saturation_per_s = estimates.saturation_per_s(serving, demand) if serving else 0.0
    spare_per_s = saturation_per_s - demand.requests_per_s
    if spare_per_s <= 0:
        return length_s, waiting - spare_per_s * length_s
    tolerable = saturation_per_s * (estimates.slo.ttft_s or 0.0)
    late_s = min(length_s, max(0.0, waiting - tolerable) / spare_per_s)
    return late_s, max(0.0, waiting - spare_per_s * length_s)


def _stretches(way: Transition, outlook: Outlook) -> Iterator[tuple[float, Pools, int, Demand]]:
    """Stretches of the horizon in which neither the fleet nor the demand changes: length, pools, GPUs held, demand."""
    ends_s = [*(stage.from_s for stage in way.stages[1:]), float("inf")]
    begun_s, at = 0.0, 0
    for one in outlook.path:
        end_s = begun_s + one.length_s
        while begun_s < end_s:
            until_s = min(end_s, ends_s[at])
            stage = way.stages[at]
            if until_s > begun_s:
                yield until_s - begun_s, stage.serving, stage.gpus, one.demand
            begun_s = until_s
            if until_s == ends_s[at]:
                at += 1


def _gpu_s_not_serving(way: Transition) -> float:
    ends_s = (*(stage.from_s for stage in way.stages[1:]), way.duration_s)
    return sum(
        max(0, stage.gpus - gpus_of(stage.serving)) * max(0.0, end_s - stage.from_s)
        for stage, end_s in zip(way.stages, ends_s, strict=True)
    )
