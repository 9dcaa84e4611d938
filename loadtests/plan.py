"""What the processes of one run have in common: a folder, with the plan for all of them and what each of them found."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.scenario import Scenario

_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # Documentation/scheduler/sched-stats.rst of Linux
PLAN_ENV = "ARCHIPELAGO_LOAD_PLAN"  # the folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The files of one run."""

    path: Path

    @property
    def plan(self) -> Path:
        """The scenario as it is run, and the model."""
        return self.path / "plan.json"

    @property
    def started(self) -> Path:
        """The wall-clock time at which the run starts; there once every worker is ready."""
        return self.path / "started.json"

    @property
    def records(self) -> Path:
        """The result."""
        return self.path / "records.jsonl"

    @property
    def log(self) -> Path:
        """What Locust printed."""
        return self.path / "locust.log"

    @property
    def rows(self) -> Path:
        """Locust's own figures, with rows for TTFT and TPOT."""
        return self.path / "locust_stats.csv"

    def worker_records(self, worker: int) -> Path:
        """What one worker wrote as its requests ended."""
        return self.path / f"worker-{worker}.jsonl"

    def worker_figures(self, worker: int) -> Path:
        """What one worker says of itself; there once it has come to its end."""
        return self.path / f"worker-{worker}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker must know. The URL of the scenario is the real one; its own path is `base_path`."""

    scenario: Scenario
    model: str
    base_path: str

    def to_json(self) -> str:
        """One document."""
        scenario = self.scenario.model_dump(mode="json")
        return json.dumps({"scenario": scenario, "model": self.model, "base_path": self.base_path}, indent=1)


def plan_of(text: str) -> Plan:
    """A plan from its document."""
    values = json.loads(text)
    return Plan(
        scenario=Scenario.model_validate(values["scenario"], strict=False),
        model=values["model"],
        base_path=values["base_path"],
    )


def milliseconds(lags_s: Sequence[float]) -> dict[str, Any]:
    """Percentiles of lags, for a header of records; null where there are none."""
    ordered = sorted(lags_s)
    return {
        name: round(1e3 * ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else None
        for name, share in (("p50", 0.50), ("p99", 0.99), ("max", 1.0))
    }


def processor_s() -> tuple[float, float] | None:
    """How long this thread has run, and how long it could have run and waited for a processor; None but on Linux."""
    try:
        ran_ns, waited_ns, _ = _SCHEDSTAT.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9
