"""What demand does in the live experiments, what the system answers, and what is told of it afterwards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from live_system import Asked, Look, Phase, live_system, model_directory, play

from autoscaling.decision import Kind
from autoscaling.ledger.entries import Entry, change_of, entry_json
from autoscaling.ledger.ledger import read_ledger
from autoscaling.observation import gpus_of
from placement import Slo

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deployments" / "configs" / "autoscaled.yaml"
REAL_CONFIG = CONFIG.with_name("local.yaml")
SETTINGS = ROOT / "autoscaling" / "examples" / "autoscaler.yaml"
SEED = 5
# One processor core as a GPU: what makes the planner's steps those that `deployments.crossover` measured of this model
# (one core: 38 ms for a token, 335 ms for a prompt of 256). A replica more is a core more, as long as there is one.
CORES = {
    "gpu": {"name": "CORE", "memory": "1 GiB", "memory_bandwidth": "13 GB/s", "flops": {"bf16": "250 GFLOPS"}},
    "gpus_per_machine": 2,
    "machines": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is served at first, demand that changes once, the SLO, and the kind of change that alone answers it."""

    name: str
    shape: str
    replicas: int = 1
    slo: Slo
    calm: Phase
    after: Phase
    answer: Kind
    is_real: bool = False
    settle_s: float = 45.0


VOLUME = Case(
    name="volume",
    shape="tp4",
    slo=Slo(ttft_s=1.0, tpot_s=0.075, percentile=0.9),
    calm=Phase(length_s=75, requests_per_s=1.8, prompt_tokens=2048, answer_tokens=48),
    after=Phase(length_s=420, requests_per_s=5.4, prompt_tokens=2048, answer_tokens=48),
    answer="replicas",
)
# A prompt of 4,800 tokens takes tp2 more than half a second even alone, whatever the number of replicas.
SHIFT = Case(
    name="shift",
    shape="tp2",
    replicas=2,
    slo=Slo(ttft_s=0.5, tpot_s=0.075, percentile=0.9),
    calm=Phase(length_s=75, requests_per_s=1.1, prompt_tokens=600, answer_tokens=48),
    after=Phase(length_s=480, requests_per_s=1.1, prompt_tokens=4800, answer_tokens=48),
    answer="repartition",
)
REAL = Case(
    name="real",
    shape="tp1",
    slo=Slo(ttft_s=2.5, tpot_s=0.2, percentile=0.9),
    calm=Phase(length_s=75, requests_per_s=1, prompt_tokens=128, answer_tokens=32),
    after=Phase(length_s=420, requests_per_s=3, prompt_tokens=128, answer_tokens=32),
    answer="replicas",
    is_real=True,
)
CASES = {case.name: case for case in (VOLUME, SHIFT, REAL)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What happened. Times are seconds since the clients began, but for those in `entries`, which are of the clock."""

    case: Case
    began_s: float
    asked: Sequence[Asked]
    looks: Sequence[Look]
    entries: Sequence[Entry]
    decisions: str

    @property
    def changes(self) -> list[Entry]:
        """Decisions that were carried out."""
        return [entry for entry in self.entries if entry.state == "acted"]

    @property
    def lost(self) -> list[Asked]:
        """Requests that did not get their whole answer."""
        return [one for one in self.asked if one.error is not None]

    @property
    def cured_s(self) -> float | None:
        """When the target of the last change served, and nothing else."""
        if not self.changes:
            return None
        last = self.changes[-1]
        target, held = {str(shape): replicas for shape, replicas in last.target.items()}, gpus_of(last.target)
        begun_s = last.at_s - self.began_s
        there = (
            look.at_s for look in self.looks if look.at_s > begun_s and (look.serving, look.gpus) == (target, held)
        )
        return next(there, None)

    def attainment(self, from_s: float, to_s: float) -> float | None:
        """Share of the requests due then that kept the SLO; None where none were."""
        kept = [keeps(one, self.case.slo) for one in self.asked if from_s <= one.due_s < to_s]
        return sum(kept) / len(kept) if kept else None

    def summary(self) -> dict[str, Any]:
        """The figures that say whether it worked."""
        shifted_s, end_s, cured_s = self.case.calm.length_s, self.asked[-1].due_s, self.cured_s
        return {
            "case": self.case.name,
            "requests": len(self.asked),
            "lost": len(self.lost),
            "errors": sorted({one.error for one in self.lost if one.error}),
            "attainment_before": self.attainment(0, shifted_s),
            "attainment_until_cured": self.attainment(shifted_s, cured_s or end_s),
            "attainment_after": None if cured_s is None else self.attainment(cured_s, end_s),
            "changes": [
                {
                    "number": entry.number,
                    "kind": entry.decision.kind,
                    "change": change_of(entry),
                    "after_s": entry.at_s - self.began_s - shifted_s,
                    "verdict": entry.outcome.verdict if entry.outcome else None,
                }
                for entry in self.changes
            ],
            "cured_after_s": None if cured_s is None else cured_s - shifted_s,
        }

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return self.summary() | {
            "slo": asdict(self.case.slo),
            "phases": [asdict(self.case.calm), asdict(self.case.after)],
            "asked": [asdict(one) for one in self.asked],
            "looks": [asdict(one) for one in self.looks],
            "decisions": [entry_json(entry) for entry in self.entries],
        }


def keeps(one: Asked, slo: Slo) -> bool:
    """Whether a request was answered in full and within the SLO."""
    limits = ((one.ttft_s, slo.ttft_s), (one.tpot_s, slo.tpot_s))
    return one.error is None and all(limit is None or (took is not None and took <= limit) for took, limit in limits)


def perform(case: Case, folder: Path, prometheus: str) -> Experiment:
    """Start a system in an empty folder, have the demand change, and go on until the answer has been judged."""
    config, settings = _configured(case, folder)
    directory = folder / settings["directory"]
    with live_system(folder, config, settings, prometheus) as live:
        began_s, asked, looks = play(live, (case.calm, case.after), SEED, has_enough=lambda: _is_judged(directory))
        decisions = "\n".join(_told(live.archipelago, directory))
    entries = tuple(read_ledger(directory).entries.values())
    return Experiment(case=case, began_s=began_s, asked=asked, looks=looks, entries=entries, decisions=decisions)


def _configured(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The examples as they are shipped, but for the model of the case, its SLO, and a quicker verdict."""
    config, settings = (
        yaml.safe_load(path.read_text()) for path in (REAL_CONFIG if case.is_real else CONFIG, SETTINGS)
    )
    (served,), (watched,) = config["models"], settings["models"]
    if case.is_real:
        (folder / "cores.yaml").write_text(yaml.safe_dump(CORES))
        served["source"] = "bench-100m"
        watched |= {"model": "bench-100m", "source": "bench-100m", "cluster": "cores.yaml", "gpus": {"max": 2}}
    else:
        served["source"] = watched["source"] = str(model_directory(folder, served["source"]))
    served |= {"shape": case.shape, "replicas": case.replicas}
    watched["slo"] = {"ttft": f"{case.slo.ttft_s}s", "tpot": f"{case.slo.tpot_s}s", "percentile": case.slo.percentile}
    settings |= {"mode": "auto", "settle_s": case.settle_s, "directory": "ledger"}
    return config, settings


def _is_judged(directory: Path) -> bool:
    """Whether the last change was carried out and its outcome is known."""
    changes = [entry for entry in read_ledger(directory).entries.values() if entry.state == "acted"]
    return bool(changes) and changes[-1].outcome is not None


def _told(archipelago: Callable[..., str], directory: Path) -> Iterator[str]:
    """What the command line says of it."""
    yield archipelago("decisions", "--directory", str(directory))
    for entry in read_ledger(directory).entries.values():
        if entry.state == "acted":
            yield archipelago("decisions", "--directory", str(directory), "--why", str(entry.number))
