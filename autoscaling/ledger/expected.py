"""What the cost model expects of pools that serve, to hold against what they do: times at the SLO's percentile, and
how long a request should take at the concurrency that is seen.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from autoscaling.capacity.corrections import Correction, Corrections
from autoscaling.capacity.performance import Performance
from autoscaling.capacity.site import Site
from autoscaling.ledger.entries import Figures
from autoscaling.observation import Demand, PoolLoad, Pools, gpus_of
from placement import Shape, Slo, Workload, predict
from placement.cost.prediction import MAX_RUNNING
from placement.cost.simulation import at_percentile, lengths, poisson_arrivals, simulate, step_table
from placement.cost.simulation_replica import StepTable, slowed
from placement.models.memory import STEP_TOKENS

_REQUESTS, _SETTLING = 1200, 200  # of one run; the 95th percentile is then known to a few percent
_SEED = 5  # the same demand gets the same figures again


class Expectations:
    """Of one model at one site."""

    def __init__(self, site: Site, slo: Slo) -> None:
        self._slo = slo
        self._tabled = lru_cache(maxsize=16)(lambda shape, workload: _table(site, shape, workload))

    def figures(self, pools: Pools, demand: Demand, performance: Performance, corrections: Corrections) -> Figures:
        """What `pools` should bring for a demand; without any, or where they cannot answer it, there are no times.

        `performance` is the one that `corrections` went into.
        """
        found = Figures(
            requests_per_s=demand.requests_per_s,
            gpus=gpus_of(pools),
            attainment=performance.attainment(pools, demand, self._slo),
        )
        shares = self._shares(pools, demand, performance) if demand.requests_per_s > 0 else {}
        if not shares:
            return found
        times = [
            (*self._times(shape, rate, pools[shape], demand, corrections.get(shape, Correction())), rate)
            for shape, rate in shares.items()
        ]
        ttft_s, tpot_s = (
            math.fsum(time[column] * time[2] for time in times) / demand.requests_per_s for column in (0, 1)
        )
        return replace(
            found,
            ttft_s=ttft_s if math.isfinite(ttft_s) else None,
            tpot_s=tpot_s if math.isfinite(tpot_s) and tpot_s > 0 else None,
        )

    def step_factor(self, pool: PoolLoad, demand: Demand) -> float | None:
        """By how much longer the steps of a pool take than the uncorrected model says; None where nothing runs.

        By Little's law requests take running/rate in the mean. That needs no percentile of a histogram, whose buckets
        are twice as wide as the differences that are looked for.
        """
        if pool.requests_per_s <= 0 or pool.running <= 0 or not pool.replicas:
            return None
        table, _ = self._tabled(pool.shape, _workload(demand))
        running = pool.running / pool.replicas
        return (pool.running / pool.requests_per_s) / _residence_s(table, running, demand)

    def _shares(self, pools: Pools, demand: Demand, performance: Performance) -> Mapping[Shape, float]:
        """Requests per second of each pool that can answer any: replicas get what they are able to answer."""
        total = sum(pools.values())
        able = {
            shape: performance.capacity(shape, demand, self._slo, replicas=total).saturation_per_s * replicas
            for shape, replicas in pools.items()
        }
        most = math.fsum(able.values())
        return {shape: demand.requests_per_s * rate / most for shape, rate in able.items() if rate}

    def _times(
        self, shape: Shape, requests_per_s: float, replicas: int, demand: Demand, correction: Correction
    ) -> tuple[float, float]:
        """TTFT and TPOT of one pool at the percentile."""
        table, room_tokens = self._tabled(shape, _workload(demand))
        generator = np.random.default_rng(_SEED)
        tails = simulate(
            slowed(table, correction.step_factor),
            poisson_arrivals(requests_per_s, _REQUESTS, generator),
            lengths(demand.input_tokens, _REQUESTS, generator),
            lengths(demand.output_tokens, _REQUESTS, generator),
            room_tokens=room_tokens,
            max_running=MAX_RUNNING,
            slo=None,
            replicas=replicas,
            settling=_SETTLING,
        )
        percentile = self._slo.percentile
        return at_percentile(tails.ttft_s, percentile), at_percentile(tails.tpot_s, percentile)


def _workload(demand: Demand) -> Workload:
    return Workload(
        input_tokens=demand.input_tokens, output_tokens=demand.output_tokens, prefix_hit_rate=demand.prefix_hit_rate
    )


def _table(site: Site, shape: Shape, workload: Workload) -> tuple[StepTable, float]:
    """Step times, and the tokens of KV cache of one rank."""
    question, region = site.question(workload), site.region_of(shape)
    (prediction,) = predict(question, [(shape, region)])
    return step_table(question, shape, region), prediction.room.tokens


def _residence_s(table: StepTable, running: float, demand: Demand) -> float:
    """Mean time from admission to the last token while `running` requests share a replica."""
    computed = max(1.0, demand.input_tokens.mean_tokens * table.computed_share)
    batch = max(1.0, running)
    chunks = max(1.0, computed / STEP_TOKENS)
    decode_s = table.pass_s(batch, 0)
    # Of the steps that a request sees, those that read the prompts of the others are longer. Its own is among them.
    prompt_s = (table.pass_s(batch, computed / chunks) - decode_s) * chunks / table.stages
    return demand.output_tokens.mean_tokens * decode_s + batch * (prompt_s + table.request_s)
