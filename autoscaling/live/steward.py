"""One model from tick to tick: what is seen, what is learnt from it, what is decided, and what is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from autoscaling.capacity.corrections import Corrections
from autoscaling.decision import Decision
from autoscaling.ledger.entries import Basis, Figures
from autoscaling.ledger.learnt import Learnt
from autoscaling.ledger.ledger import Ledger
from autoscaling.ledger.settling import Settling
from autoscaling.ledger.verdicts import basis_of, revert
from autoscaling.live.acting import Actor, Seen
from autoscaling.live.exported import Metrics
from autoscaling.live.fleet_client import Overview, cluster_of, fleet_of
from autoscaling.observation import Blind, Demand, Fleet, Observation, PoolLoad, Pools
from autoscaling.policy.bounds import bounds
from autoscaling.policy.decide import unseen
from autoscaling.policy.memory import Memory
from autoscaling.policy.rules import Rules
from placement import Cluster, Shape

BARRED_S = 6 * 3600.0  # a repartition that was regretted is not tried again for so long


class Advisor(Protocol):
    """The policy and the cost model behind it, for one model on one cluster."""

    def decide(
        self,
        observation: Observation | Blind,
        memory: Memory,
        rules: Rules,
        *,
        corrections: Corrections,
        starts_s: Mapping[Shape, float],
    ) -> tuple[Decision, Memory]:
        """The decision at a tick; `starts_s` are measured times to start a replica."""
        ...

    def figures(self, pools: Pools, demand: Demand, corrections: Corrections) -> Figures:
        """What pools should bring for a demand."""
        ...

    def step_factor(self, pool: PoolLoad, demand: Demand) -> float | None:
        """By how much longer the steps of a pool take than predicted without corrections; None where unknown."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One model: its rules, what its GPUs are (None: as the control API says), how it is observed, and who decides.

    `advisor` is made for the cluster as it is and the shapes that run, and anew when either has changed.
    """

    model: str
    rules: Rules
    hardware: Cluster | None
    observe: Callable[[Fleet, float], Observation | Blind] = field(hash=False)
    advisor: Callable[[Cluster, frozenset[Shape]], Advisor] = field(hash=False)


class Steward:
    """Of one model. `learnt` is to be kept over a restart."""

    def __init__(
        self, watched: Watched, *, actor: Actor, ledger: Ledger, learnt: Learnt, settle_s: float, metrics: Metrics
    ) -> None:
        self.watched, self.learnt = watched, learnt
        self._actor, self._ledger, self._metrics = actor, ledger, metrics
        self._settling = Settling(settle_s=settle_s, slo=watched.rules.slo)
        self._made_for: tuple[Cluster, frozenset[Shape]] | None = None
        self._advisor: Advisor | None = None

    def tick(self, overview: Overview | None, why: str, at_s: float, *, is_frozen: bool) -> None:
        """Look once. `overview` is None where the control API did not answer, and `why` says so."""
        model = self.watched.model
        view = overview.fleet(model) if overview else None
        if overview is None or view is None:
            blind = Blind(at_s=at_s, kind="no-fleet", why=why or f"The control API knows no model {model}.")
            return self._decide(blind, None, {}, is_frozen=is_frozen)
        fleet = fleet_of(view, overview, self.watched.hardware)
        self._prepare(cluster_of(overview, self.watched.hardware), fleet)
        self._actor.settle(model, fleet, at_s)
        observation = self.watched.observe(fleet, at_s)
        if isinstance(observation, Observation):
            self._learn(observation)
        return self._decide(observation, fleet, view.starts_s, is_frozen=is_frozen)

    def _prepare(self, cluster: Cluster, fleet: Fleet) -> None:
        """An advisor for what is there now."""
        shapes = frozenset({*fleet.desired, *fleet.serving, *fleet.starting})
        known = self._made_for
        if known is None or known[0] != cluster or not shapes <= known[1]:
            shapes = shapes | (known[1] if known and known[0] == cluster else frozenset())
            self._advisor, self._made_for = self.watched.advisor(cluster, shapes), (cluster, shapes)

    def _learn(self, observation: Observation) -> None:
        """From what the pools bring: corrections, and verdicts on changes."""
        advisor, model = self._advisor, self.watched.model
        assert advisor is not None
        self._settling.see(observation)
        corrections = self._settling.learnt(self.learnt.corrections, advisor.step_factor)
        self.learnt = replace(self.learnt, corrections=corrections)
        self._metrics.learnt(model, corrections)

        def predict(pools: Pools, demand: Demand) -> Figures:
            return advisor.figures(pools, demand, corrections)

        for entry, outcome in self._settling.outcomes(self._ledger.of(model), observation, predict):
            self._actor.judge(entry, outcome, observation.at_s)
            self._metrics.judged(model, outcome)
            if outcome.predicted is not None and outcome.realised is not None:
                self._metrics.compared(model, outcome.predicted, outcome.realised)
            if outcome.is_regretted:
                memory = self.learnt.memory.barring(entry.before, entry.target, observation.at_s + BARRED_S)
                self.learnt = replace(self.learnt, memory=memory)

    def _decide(
        self, observation: Observation | Blind, fleet: Fleet | None, starts_s: Mapping[Shape, float], *, is_frozen: bool
    ) -> None:
        model, at_s = self.watched.model, observation.at_s
        if isinstance(observation, Blind):
            self._metrics.blind(model, observation.kind)
        rules = replace(self.watched.rules, frozen=self.watched.rules.frozen or is_frozen)
        decision = self._decision(observation, rules, starts_s)
        if fleet is not None:
            decision = self._way_back(fleet, rules, at_s) or decision
        seen = Seen(model=model, at_s=at_s, fleet=fleet, basis=self._basis(fleet, decision))
        entry = self._actor.handle(seen, decision)
        self._metrics.decided(model, decision, entry)
        self._metrics.waiting(model, sum(one.state == "waiting" for one in self._ledger.of(model)))

    def _decision(self, observation: Observation | Blind, rules: Rules, starts_s: Mapping[Shape, float]) -> Decision:
        """The policy's, which remembers it."""
        memory, corrections = self.learnt.memory, self.learnt.corrections
        if self._advisor is None:
            assert isinstance(observation, Blind), "what is seen has a fleet, and that an advisor"
            decision, memory = unseen(observation, memory)
        else:
            decision, memory = self._advisor.decide(
                observation, memory, rules, corrections=corrections, starts_s=starts_s
            )
        self.learnt = replace(self.learnt, memory=memory)
        return decision

    def _way_back(self, fleet: Fleet, rules: Rules, at_s: float) -> Decision | None:
        """From a repartition that did worse, within the rules: else it would be asked for in vain, and nothing else."""
        model = self.watched.model
        back = revert(self._ledger.of(model), fleet, at_s)
        if back is None or self._actor.is_rejected(model, back, at_s):
            return None
        may_change = rules.is_in_window(at_s) and not rules.frozen
        return back if may_change and bounds(rules, fleet.gpus, at_s).allow(back.target) else None

    def _basis(self, fleet: Fleet | None, decision: Decision) -> Basis | None:
        """How far off the cost model is now; only a change is ever compared with what was before it."""
        advisor, corrections = self._advisor, self.learnt.corrections
        if advisor is None or fleet is None or decision.kind == "hold":
            return None
        return basis_of(
            fleet.serving, self._settling.now, lambda pools, demand: advisor.figures(pools, demand, corrections)
        )
