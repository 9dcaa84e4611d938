"""What is simulated beside the requests: a model and its GPUs, the SLO, how the fleet behaves, and who decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autoscaling.capacity.site import Site
from autoscaling.capacity.times import Times
from autoscaling.decision import Decision
from autoscaling.observation import Blind, Observation, Pools, gpus_of, spelled
from autoscaling.policy.rules import Rules
from placement import Shape, Slo
from placement.fields import FieldError


class ScenarioError(FieldError):
    """A scenario that cannot be simulated. The message names the field, its value and what is accepted."""


class Policy(Protocol):
    """Who decides, every tick, from what was observed and its own state; it never sees the trace."""

    @property
    def name(self) -> str: ...

    def start(self) -> Any:
        """The state before the first tick."""

    def decide(self, observation: Observation | Blind, state: Any) -> tuple[Decision, Any]:
        """The decision at `observation.at_s`, and the state for the next tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything a run depends on beside trace, policy and seed.

    Attributes:
        site: the model and the cluster, as the policy prices them.
        slo: what good answers keep. TTFT counts from the arrival.
        initial: pools that serve from the start.
        max_gpus: the most that replicas may hold together, those that start or drain included.
        times: how long starts and drains take on average.
        start_spread: standard deviation over mean of the start times, which are drawn lognormally.
        tick_s: the policy is asked so often.
        scrape_delay_s: observations are so old. window_s: what rates and percentiles are over.
        history_step_s: of `Observation.history`.
        truth: how much longer passes of a shape really take than the cost model says; 1 where nothing is given.
        prefix_hit_rate: share of prompt tokens that are found in a cache instead of computed.
        patience_s: a client without a first token leaves after so long.
        max_ttft_s: a request that would wait longer for its first token everywhere is refused (429).
        max_queued_requests: a replica takes no more while so many wait on it.
        floor: share of GPUs that keeps serving during a repartition; with 0 a full cluster may swap.
        outages: from and until when the metrics are down, in seconds.
        settling_s: arrivals and GPU-hours before this are left out of the figures.
        rules: what our own policy keeps to, beside what is above; None for nothing else.
        begins_s: when the trace begins, in seconds since the epoch; it needs none where the rules have no times of day.
    """

    site: Site
    slo: Slo
    initial: Pools = field(hash=False)
    max_gpus: int
    times: Times
    start_spread: float = 0.1
    tick_s: float = 15.0
    scrape_delay_s: float = 15.0
    window_s: float = 60.0
    history_step_s: float = 60.0
    truth: Mapping[Shape, float] = field(default_factory=dict, hash=False)
    prefix_hit_rate: float = 0.0
    patience_s: float = 600.0
    max_ttft_s: float = 30.0
    max_queued_requests: int = 256
    floor: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    settling_s: float = 0.0
    rules: Rules | None = None
    begins_s: float | None = None

    def __post_init__(self) -> None:
        held, there = gpus_of(self.initial), self.site.cluster.gpus
        if not held <= self.max_gpus <= there:
            raise ScenarioError(
                f"is {self.max_gpus}; the cluster has {there} GPUs and the initial pools ({spelled(self.initial)}) "
                f"take {held}; it must be between the two.",
                "max_gpus",
            )
        for name in ("tick_s", "window_s", "history_step_s", "patience_s", "max_ttft_s"):
            if not getattr(self, name) > 0:
                raise ScenarioError(f"is {getattr(self, name)}; it must be above 0.", name)
        if self.scrape_delay_s < 0:
            raise ScenarioError(f"is {self.scrape_delay_s}; it must be 0 or more.", "scrape_delay_s")
        if self.start_spread < 0:
            raise ScenarioError(f"is {self.start_spread}; it must be 0 or more.", "start_spread")
        for shape, factor in self.truth.items():
            if not 0 < factor < float("inf"):
                raise ScenarioError(f"of {shape} is {factor}; it must be above 0 and finite.", "truth")
        if self.rules is not None:
            self._check_rules(self.rules)

    def _check_rules(self, rules: Rules) -> None:
        wanted = max((rules.min_gpus, *(one.min_gpus for one in rules.schedule)))
        if wanted > self.max_gpus:
            raise ScenarioError(
                f"is {self.max_gpus}; it must be at least {wanted}, which the settings want.", "max_gpus"
            )
        if self.begins_s is None and (rules.schedule or rules.windows):
            raise ScenarioError(
                "is not given; the settings have times of day and the trace has none: it must say when the trace "
                "begins, such as 2026-11-23T08:00+01:00.",
                "begins_s",
            )
