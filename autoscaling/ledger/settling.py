"""Watches what the pools of one model bring: whether a change did what was predicted, and how fast its shapes are."""

from collections import deque
from collections.abc import Callable

from autoscaling.capacity.corrections import Corrections, corrected, is_steady
from autoscaling.ledger.entries import Entry, Outcome
from autoscaling.ledger.verdicts import Measured, Predict, judged, measured
from autoscaling.observation import Demand, Observation, PoolLoad, Pools, spelled
from placement import Slo

StepFactor = Callable[[PoolLoad, Demand], float | None]


class Settling:
    """Of one model. What it has seen is not kept over a restart: a change is then measured from there on."""

    def __init__(self, *, settle_s: float, slo: Slo) -> None:
        self._settle_s, self._slo = settle_s, slo
        self._pools: Pools | None = None  # those that serve undisturbed
        self._since_s = self._learnt_s = 0.0
        self._seen: deque[Observation] = deque()  # whose whole window is since then, for as long as is settled over

    def see(self, observation: Observation) -> None:
        """One more observation, later than all before."""
        fleet, at_s = observation.fleet, observation.at_s
        undisturbed = None if fleet.changing or fleet.serving != fleet.desired else fleet.serving
        if undisturbed is None or undisturbed != self._pools:
            self._pools, self._since_s = undisturbed, at_s
            self._seen.clear()
        elif at_s - observation.window_s >= self._since_s:
            self._seen.append(observation)
        while self._seen and self._seen[0].at_s < at_s - self._settle_s:
            self._seen.popleft()

    @property
    def now(self) -> Measured | None:
        """What the pools that serve bring; None where they have not served undisturbed for long enough to say."""
        return measured(tuple(self._seen)) if self._seen else None

    def outcomes(self, entries: list[Entry], latest: Observation, predict: Predict) -> list[tuple[Entry, Outcome]]:
        """What became of changes of this model that were acted on and not judged yet, where that is known now."""
        open_ = [entry for entry in entries if entry.state == "acted" and entry.outcome is None]
        found = [(entry, _superseded(latest.fleet.desired)) for entry in open_[:-1]]
        for entry in open_[-1:]:
            if latest.fleet.desired != entry.target:
                found.append((entry, _superseded(latest.fleet.desired)))
            elif self._pools is not None and latest.at_s - self._since_s >= self._settle_s + latest.window_s:
                found.append((entry, judged(entry, self.now, predict=predict, slo=self._slo)))
        return found

    def learnt(self, corrections: Corrections, step_factor: StepFactor) -> Corrections:
        """The corrections after the last observation; windows that overlap count once."""
        if not self._seen or self._seen[-1].at_s - self._learnt_s < self._seen[-1].window_s:
            return corrections
        latest = self._seen[-1]
        self._learnt_s = latest.at_s
        for pool in latest.pools:
            factor = step_factor(pool, latest.demand) if is_steady(pool, latest.window_s) else None
            if factor is not None:
                corrections = corrected(corrections, pool.shape, factor)
        return corrections


def _superseded(desired: Pools) -> Outcome:
    return Outcome(verdict="superseded", why=f"Before it had settled the fleet was to be {spelled(desired)}.")
