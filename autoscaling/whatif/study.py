"""What came of a replay, ready to be told: each way to run the fleet with its figures."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoscaling.observation import Array, Pools
from autoscaling.simulation.result import Result
from autoscaling.simulation.traces import Trace
from autoscaling.whatif.past import Past
from autoscaling.whatif.reconstruction import Fidelity
from autoscaling.whatif.replay import AS_RUN, OURS
from placement import Slo

MEASURED = "measured"
TITLES = {
    MEASURED: "What you ran",
    AS_RUN: "What you ran, simulated",
    OURS: "Archipelago",
    "no-repartition": "Archipelago, replicas only",
    "no-forecast": "Archipelago without forecast",
    "ray-serve": "Ray Serve",
    "hpa-queue": "HPA on the queue",
    "hpa-kv": "HPA on KV use",
    "dynamo": "Dynamo-like planner",
    "dynamollm": "DynamoLLM-like policy",
    "best-static": "Best fixed fleet",
    "static": "The first fleet, unchanged",
    "queue": "Queue length",
    "clairvoyant": "Clairvoyant plan",
    "clairvoyant-no-repartition": "Clairvoyant plan, replicas only",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Way:
    """One way to run the fleet: measured, or simulated with its `result`. None is what nobody knows.

    `gpus` are by shape and minute, `shares` the attainment and `weights` the requests by step of `share_step_s`.
    """

    name: str
    title: str
    gpu_hours: float
    attainment: float | None
    worst_5_minutes: float | None
    gpus: dict[str, Array] = field(repr=False)
    shares: Array = field(repr=False)
    weights: Array = field(repr=False)
    share_step_s: float = 60.0
    result: Result | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Study:
    """A replay. `past` and `fidelity` are None where a trace was given; `source` is what the model's sizes are of."""

    model: str
    source: str
    cluster: str
    slo: Slo
    initial: Pools
    seed: int
    tick_s: float
    trace: Trace
    results: tuple[Result, ...]
    past: Past | None = None
    fidelity: Fidelity | None = None
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Until the last arrival."""
        return self.trace.duration_s

    @property
    def length_s(self) -> float:
        """Of the history, or of the trace."""
        return self.duration_s if self.past is None else self.past.steps * self.past.history.step_s

    @property
    def ways(self) -> tuple[Way, ...]:
        """What was measured first, if anything was."""
        measured = _measured(self)
        return (*(() if measured is None else (measured,)), *map(_simulated, self.results))

    def way(self, name: str) -> Way | None:
        return next((way for way in self.ways if way.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """Plain values: every way's figures, and the whole result of every policy."""
        return {
            "model": self.model,
            "source": self.source,
            "cluster": self.cluster,
            "slo": dataclasses.asdict(self.slo),
            "initial": {str(shape): replicas for shape, replicas in self.initial.items()},
            "seed": self.seed,
            "start_s": None if self.past is None else self.past.start_s,
            "duration_s": self.duration_s,
            "notes": list(self.notes),
            "reconstruction": None if self.fidelity is None else dataclasses.asdict(self.fidelity),
            "ways": [
                {
                    "name": way.name,
                    "title": way.title,
                    "gpu_hours": way.gpu_hours,
                    "attainment": way.attainment,
                    "worst_5_minutes": way.worst_5_minutes,
                }
                for way in self.ways
            ],
            "results": [result.as_json() for result in self.results],
        }


def _measured(study: Study) -> Way | None:
    past = study.past
    if past is None or past.ran is None:
        return None
    step_s, answers = past.history.step_s, past.answers
    steps = min(past.steps, math.ceil(study.duration_s / step_s))  # as a simulated run, until the last arrival
    gpus = past.ran.gpus(steps)
    shares = np.full(1, np.nan) if answers is None else answers.shares
    return Way(
        name=MEASURED,
        title=TITLES[MEASURED],
        gpu_hours=sum(float(row.sum()) for row in gpus.values()) * step_s / 3600,
        attainment=None if answers is None else answers.attainment,
        worst_5_minutes=float(np.nanmin(shares)) if np.isfinite(shares).any() else None,
        gpus={str(shape): row for shape, row in gpus.items()},
        shares=shares,
        weights=np.zeros(1) if answers is None else answers.ended,
        share_step_s=300.0,
    )


def _simulated(result: Result) -> Way:
    series = result.series
    return Way(
        name=result.policy,
        title=TITLES.get(result.policy, result.policy),
        gpu_hours=result.gpu_hours,
        attainment=result.attainment,
        worst_5_minutes=result.worst_5_minutes,
        gpus={shape: np.array(row) for shape, row in series.gpus.items()},
        shares=np.array([math.nan if share is None else share for share in series.attainment]),
        weights=np.array(series.requests_per_s) * 60,
        result=result,
    )
