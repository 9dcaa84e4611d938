"""From the settings to what the loop needs of each model: its rules, its eyes, and the policy with the cost model."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from autoscaling.capacity.corrections import Corrections
from autoscaling.capacity.performance import PlannedPerformance
from autoscaling.capacity.site import Site, site_of
from autoscaling.capacity.times import times_of
from autoscaling.decision import Decision
from autoscaling.ledger.entries import Figures
from autoscaling.ledger.expected import Expectations
from autoscaling.live.steward import Watched
from autoscaling.observation import Blind, Demand, Fleet, Observation, PoolLoad, Pools
from autoscaling.observing.queries import Ask
from autoscaling.observing.reading import read
from autoscaling.policy.decide import decide
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from autoscaling.policy.rules_given import rules_of
from autoscaling.settings.settings import ModelSettings
from placement import Cluster, ModelSpec, Shape, Slo

_LEAST_WINDOW_S = 60.0
_LEAST_SCRAPES = 4  # in a window: a rate of fewer is mostly of when they happened to be


def watched(
    settings: ModelSettings,
    *,
    model: ModelSpec,
    hardware: Cluster | None,
    ask: Ask,
    scrape_interval_s: float,
) -> Watched:
    """What the loop needs of one model."""
    rules = rules_of(settings)
    eyes = _Eyes(ask, settings.model, rules.slo, scrape_interval_s)

    def advisor(cluster: Cluster, running: frozenset[Shape]) -> "PlannedAdvisor":
        return PlannedAdvisor(_site(model, cluster, settings.shapes, running), rules.slo, may_choose=settings.shapes)

    return Watched(model=settings.model, rules=rules, hardware=hardware, observe=eyes.look, advisor=advisor)


def _site(model: ModelSpec, cluster: Cluster, allowed: Iterable[Shape] | None, running: Iterable[Shape]) -> Site:
    """Where the allowed shapes, or those worth a look, are priced; and those that run, whatever they are."""
    chosen = tuple(allowed) if allowed is not None else site_of(model, cluster).shapes
    return site_of(model, cluster, shapes=(*chosen, *running))


class _Eyes:
    """Looks at one model, and keeps the last observation so that only what is new is asked for."""

    def __init__(self, ask: Ask, model: str, slo: Slo, scrape_interval_s: float) -> None:
        self._ask, self._model, self._slo, self._scrape_interval_s = ask, model, slo, scrape_interval_s
        self._last: Observation | None = None

    def look(self, fleet: Fleet, now_s: float) -> Observation | Blind:
        """What is seen of the model now."""
        seen = read(
            self._ask,
            model=self._model,
            slo=self._slo,
            fleet=fleet,
            now_s=now_s,
            window_s=max(_LEAST_WINDOW_S, _LEAST_SCRAPES * self._scrape_interval_s),
            scrape_interval_s=self._scrape_interval_s,
            last=self._last,
        )
        if isinstance(seen, Observation):
            self._last = seen
        return seen


class PlannedAdvisor:
    """The policy and the cost model of `placement`, on one site. `may_choose` are shapes to change to; None for all."""

    def __init__(self, site: Site, slo: Slo, *, may_choose: tuple[Shape, ...] | None) -> None:
        self._site, self._shapes = site, site.shapes if may_choose is None else may_choose
        self._performance = PlannedPerformance(site)
        self._expectations = Expectations(site, slo)

    def decide(
        self,
        observation: Observation | Blind,
        memory: Memory,
        rules: Rules,
        *,
        corrections: Corrections,
        starts_s: Mapping[Shape, float],
    ) -> tuple[Decision, Memory]:
        performance = self._performance.corrected(corrections)
        times = times_of(self._site, measured_s=starts_s)
        return decide(observation, memory, replace(rules, shapes=self._shapes), performance, times)

    def figures(self, pools: Pools, demand: Demand, corrections: Corrections) -> Figures:
        performance = self._performance.corrected(corrections)
        return self._expectations.figures(pools, demand, performance, corrections)

    def step_factor(self, pool: PoolLoad, demand: Demand) -> float | None:
        return self._expectations.step_factor(pool, demand)
