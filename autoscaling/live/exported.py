"""The autoscaler's own metrics. Ratios are shares of requests; times are at the percentile of the SLO."""

import math
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from autoscaling.capacity.corrections import Corrections
from autoscaling.decision import Decision
from autoscaling.ledger.entries import Entry, Figures, Outcome, State, Verdict

_PREFIX = "archipelago_autoscaler"


class Metrics:
    """All of one autoscaler, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._decisions = self._counter("decisions", "Decisions written to the ledger", "model", "kind", "cause")
        self._actions = self._counter("changes", "Changes by what became of them", "model", "state")
        self._verdicts = self._counter("verdicts", "Changes by what they brought", "model", "verdict")
        self._blind = self._counter("blind", "Ticks at which nothing was known of a model", "model", "kind")
        self._errors = self._counter("errors", "Ticks that failed", "model")
        self._last = self._gauge("last_decision_timestamp_seconds", "When a model was last decided on", "model")
        self._ticked = self._gauge("last_tick_timestamp_seconds", "When the loop last came round")
        self._expected = self._gauge(
            "expected_requests_per_second",
            "The rate that a model was last decided on: a quantile of its forecast",
            "model",
        )
        self._acts = self._gauge("holds_lease", "1 where this autoscaler is the one that may act")
        self._frozen = self._gauge("frozen", "1 where a person has said that nothing shall change")
        self._waiting = self._gauge("waiting_proposals", "Proposals that wait for a person to answer", "model")
        self._factor = self._gauge("step_factor", "Learnt correction of the step times of a shape", "model", "shape")
        self._figures = {
            what: {
                "attainment": self._gauge(f"{what}_attainment_ratio", f"SLO attainment, {what}", "model"),
                "ttft_s": self._gauge(f"{what}_time_to_first_token_seconds", f"TTFT, {what}", "model"),
                "tpot_s": self._gauge(f"{what}_time_per_output_token_seconds", f"TPOT, {what}", "model"),
                "gpus": self._gauge(f"{what}_gpus", f"GPUs, {what}", "model"),
            }
            for what in ("predicted", "realised")
        }

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus at `/metrics` from a thread. Raises `OSError` where the port is taken."""
        start_http_server(port, addr=host, registry=self.registry)

    def ticked(self, *, may_act: bool, is_frozen: bool) -> None:
        """The state of the autoscaler itself, at the beginning of a tick."""
        self._ticked.set_to_current_time()
        self._acts.set(may_act)
        self._frozen.set(is_frozen)
        if not may_act:
            self._waiting.clear()  # an answer would do nothing while it stands by

    def decided(self, model: str, decision: Decision, entry: Entry | None) -> None:
        """A tick of one model; `entry` is what it wrote or moved, if anything."""
        self._last.labels(model).set(decision.at_s)
        if decision.expected is not None:
            self._expected.labels(model).set(decision.expected.requests_per_s)
        self._begin(model)
        if entry is not None and entry.at_s == decision.at_s:
            self._decisions.labels(model, decision.kind, decision.cause).inc()
        if entry is not None and entry.state != "noted":
            self._actions.labels(model, entry.state).inc()

    def waiting(self, model: str, proposals: int) -> None:
        """How many proposals for a model wait for an answer, 0 included."""
        self._waiting.labels(model).set(proposals)

    def blind(self, model: str, kind: str) -> None:
        """Nothing is known of a model."""
        self._blind.labels(model, kind).inc()

    def failed(self, model: str) -> None:
        """A tick of one model ended with an error."""
        self._errors.labels(model).inc()

    def judged(self, model: str, outcome: Outcome) -> None:
        """The outcome of a change."""
        self._verdicts.labels(model, outcome.verdict).inc()

    def compared(self, model: str, predicted: Figures, realised: Figures) -> None:
        """What the pools that serve should bring and do bring."""
        for what, figures in (("predicted", predicted), ("realised", realised)):
            for name, gauge in self._figures[what].items():
                value = getattr(figures, name)
                gauge.labels(model).set(math.nan if value is None else value)

    def learnt(self, model: str, corrections: Corrections) -> None:
        """The corrections as they are now."""
        for shape, known in corrections.items():
            self._factor.labels(model, str(shape)).set(known.step_factor)

    def _begin(self, model: str) -> None:
        """Have the counters that alerts ask for at 0 before anything happens: `increase` sees no series begin at 1."""
        self._errors.labels(model)
        for verdict in get_args(Verdict):
            self._verdicts.labels(model, verdict)
        for state in get_args(State):
            if state != "noted":
                self._actions.labels(model, state)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels, registry=self.registry)
