"""What the autoscaler knows of one model at one moment: what is asked, how it is served, and what runs.

Demand is measured in tokens, prompt and answer apart: requests alone do not say what they cost (in a public trace the
rate rises by a third while the tokens to write fall by a tenth). What is not known is `Blind`, never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from placement import Cluster, Lengths, Shape

Array = npt.NDArray[np.float64]
Pools = Mapping[Shape, int]  # replicas by shape; no zeros
BlindKind = Literal["unreachable", "slow", "missing", "stale", "not-a-number", "contradiction", "no-fleet"]


def pools_of(replicas: Mapping[Shape, int]) -> Pools:
    """Pools in one order and without empty ones, so that equal fleets compare, print and hash alike."""
    ordered = sorted(replicas, key=lambda shape: (shape.gpus, str(shape)))
    return {shape: replicas[shape] for shape in ordered if replicas[shape]}


def gpus_of(pools: Pools) -> int:
    """GPUs that pools hold."""
    return sum(shape.gpus * replicas for shape, replicas in pools.items())


def spelled(pools: Pools) -> str:
    """`2 x tp4 + 1 x tp8`; `nothing` without any."""
    return " + ".join(f"{replicas} x {shape}" for shape, replicas in pools.items()) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests that arrive, and how long they are. `prefix_hit_rate` is the share of prompt tokens found in a cache.

    Refused requests (429 and 503) have arrived, so a full fleet does not look like one that is asked for less.
    `dispersion` is the variance of the arrivals in a short window over their mean: 1 for independent arrivals.
    """

    requests_per_s: float
    input_tokens: Lengths
    output_tokens: Lengths
    prefix_hit_rate: float = 0.0
    dispersion: float = 1.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens to compute."""
        return self.requests_per_s * self.input_tokens.mean_tokens * (1 - self.prefix_hit_rate)

    @property
    def decode_tokens_per_s(self) -> float:
        """Answer tokens to write."""
        return self.requests_per_s * self.output_tokens.mean_tokens


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class History:
    """Demand so far, in steps of `step_s`, oldest first; the last step ended at `end_s`. NaN where nothing is known.

    All arrays have the same length and are per second. `requests_per_s` arrived; `answered_per_s` were answered to the
    end, and the tokens, those of whole prompts and answers, are theirs. So lengths are quotients by the latter: a
    queue that is worked off has more answers than arrivals, and no longer ones.
    """

    step_s: float
    end_s: float
    requests_per_s: Array
    answered_per_s: Array
    input_tokens_per_s: Array
    output_tokens_per_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One replica: requests in its batch, those that wait for a place in it, and the share of its KV cache in use."""

    replica: str
    running: float
    waiting: float
    kv_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """All serving replicas of one shape, over the last window. None: nothing was answered, so there is no time.

    `ttft_s` and `tpot_s` are at the percentile of the SLO. `kv_usage` is the mean share of the KV cache in use. `each`
    are the replicas that report of themselves.
    """

    shape: Shape
    replicas: int
    running: float
    waiting: float
    kv_usage: float
    requests_per_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    preemptions_per_s: float = 0.0
    each: tuple[ReplicaLoad, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What runs, as the control API says. `desired` is the last target, `serving` and `starting` what there is now.

    `changing`: the target is not reached yet. `cluster` has the GPUs that this model may use, those it holds included,
    without nodes that are about to go. `version` goes up with every target.
    """

    version: int
    desired: Pools = field(hash=False)
    serving: Pools = field(hash=False)
    starting: Pools = field(hash=False)
    changing: bool
    cluster: Cluster
    shortfall: str | None = None

    @property
    def gpus(self) -> int:
        """All that the cluster has."""
        return self.cluster.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One model at `at_s` (seconds since the epoch, or since the start of a simulation).

    `ttft_s` and `tpot_s` are at the percentile of the SLO over all answers of the last `window_s`, None without any;
    so is `queue_s`, what requests waited in a replica for a place in its batch, None also where that is short;
    `attainment` is the share of that window's arrivals that kept the SLO, refused ones among those that did not, None
    where it is not known.
    """

    at_s: float
    window_s: float
    demand: Demand
    history: History
    pools: tuple[PoolLoad, ...]
    fleet: Fleet
    ttft_s: float | None = None
    tpot_s: float | None = None
    queue_s: float | None = None
    attainment: float | None = None

    @property
    def running(self) -> float:
        return sum(pool.running for pool in self.pools)

    @property
    def waiting(self) -> float:
        return sum(pool.waiting for pool in self.pools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blind:
    """Nothing can be said of the model now, and why, in a sentence."""

    at_s: float
    kind: BlindKind
    why: str
