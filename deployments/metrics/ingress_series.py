"""What one ingress knows, as Prometheus series: read from the link and its traffic when somebody scrapes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.link import FleetLink
from deployments.metrics.counting import REFUSALS, LostBy, SloOutcome
from deployments.telemetry.fields import TelemetryConfig
from deployments.traffic import ReplicaLoad, Traffic

PREFIX = "archipelago_"
USUAL = TelemetryConfig()
REPLICA_LABELS = ("model", "replica", "shape")

Reading = Callable[[ReplicaLoad], float]
Family = CounterMetricFamily | GaugeMetricFamily

# Name -> what it is, and how it is read. A counter's name gets `_total` from prometheus_client.
REPLICA_GAUGES: Mapping[str, tuple[str, Reading]] = {
    "running_requests": ("Requests in the batch of the replica.", lambda load: load.running),
    "waiting_requests": ("Requests that wait in the replica for a place in its batch.", lambda load: load.waiting),
    "kv_cache_usage_ratio": ("Share of the replica's KV cache in use, 0 to 1.", lambda load: load.kv_usage),
    "predicted_communication_ratio": (
        "Share of a decode step with a full batch that the planner expects to go into communication between GPUs.",
        lambda load: load.member.speed.communication_share,
    ),
}
REPLICA_COUNTERS: Mapping[str, tuple[str, Reading]] = {
    "requests": ("Requests sent to the replica, moved ones included.", lambda load: load.served.requests),
    "generated_tokens": ("Tokens generated for this ingress.", lambda load: load.served.generated_tokens),
    "prompt_tokens": ("Prompt tokens computed in first prefills.", lambda load: load.served.prompt_tokens),
    "prefix_hit_tokens": ("Prompt tokens found in the prefix cache.", lambda load: load.served.prefix_hit_tokens),
    "preemptions": ("Requests put back because the KV cache was full.", lambda load: load.served.preemptions),
}


class IngressSeries(Collector):
    """A collector for a registry of prometheus_client. It may be read from any thread."""

    def __init__(self, model: str, link: FleetLink, traffic: Traffic, promised: TelemetryConfig = USUAL) -> None:
        self._promised = promised
        self._model = model
        self._link = link
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        yield from self._of_clients()
        loads = self._traffic.loads()
        for name, (help_text, reading) in REPLICA_GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}replica_{name}", help_text, labels=REPLICA_LABELS)
            yield self._filled(gauge, loads, reading)
        for name, (help_text, reading) in REPLICA_COUNTERS.items():
            counter = CounterMetricFamily(f"{PREFIX}replica_{name}", help_text, labels=REPLICA_LABELS)
            yield self._filled(counter, loads, reading)
        broken = CounterMetricFamily(
            f"{PREFIX}replica_lost_connections",
            "Times that the connection to the replica broke.",
            labels=REPLICA_LABELS,
        )
        yield self._filled(broken, loads, lambda load: self._link.asked.broken[load.member.replica])
        yield from self._durations(loads)

    def _of_clients(self) -> Iterator[Metric]:
        report, asked = self._link.report(), self._link.asked
        totals: dict[str, tuple[str, float]] = {
            "arrivals": ("Requests to generate, refused ones included.", asked.arrivals),
            "moved_requests": ("Times that a request went on to another replica.", report.moved_requests),
        }
        for name, (help_text, value) in totals.items():
            counter = CounterMetricFamily(PREFIX + name, help_text, labels=["model"])
            counter.add_metric([self._model], value)
            yield counter
        gauges: dict[str, tuple[str, float]] = {
            "held_requests": ("Requests that wait in the ingress for a replica.", report.held_requests),
            "unfinished_requests": ("Requests that clients wait for.", report.unfinished_requests),
            "ready_replicas": ("Replicas that take new requests of this ingress now.", len(self._link.ready)),
            "slo_time_to_first_token_seconds": ("What the SLO allows until the first token.", self._promised.ttft_s),
            "slo_time_per_output_token_seconds": ("What it allows for each further token.", self._promised.tpot_s),
            "slo_objective_ratio": ("Share of the requests that are to keep both, 0 to 1.", self._promised.percentile),
        }
        for name, (help_text, value) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, help_text, labels=["model"])
            gauge.add_metric([self._model], value)
            yield gauge
        yield self._by(
            "refused", "Requests refused, by status.", "code", {str(one.value): asked.refused[one] for one in REFUSALS}
        )
        lost = {why: asked.lost[why] for why in get_args(LostBy)}
        yield self._by("lost_requests", "Requests that were let in and then given up, by why.", "cause", lost)
        slo = {outcome: asked.slo[outcome] for outcome in get_args(SloOutcome)}
        yield self._by("slo_requests", "HTTP requests that ended, by whether they kept the SLO.", "outcome", slo)

    def _by(self, name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
        counter = CounterMetricFamily(PREFIX + name, help_text, labels=["model", label])
        for value, count in values.items():
            counter.add_metric([self._model, value], count)
        return counter

    def _filled(self, family: Family, loads: Iterable[ReplicaLoad], reading: Reading) -> Family:
        for load in loads:
            family.add_metric(self._labels(load), reading(load))
        return family

    def _durations(self, loads: Iterable[ReplicaLoad]) -> Iterator[Metric]:
        ttft = HistogramMetricFamily(
            f"{PREFIX}replica_time_to_first_token_seconds",
            "From a request's arrival at the ingress to its first token, by the replica that made the token.",
            labels=REPLICA_LABELS,
        )
        tpot = HistogramMetricFamily(
            f"{PREFIX}replica_time_per_output_token_seconds",
            "(last token - first token)/(tokens - 1) of each request that ended, by the replica that it ended on.",
            labels=REPLICA_LABELS,
        )
        for load in loads:
            ttft.add_metric(self._labels(load), load.served.ttft.buckets(), load.served.ttft.sum_s)
            tpot.add_metric(self._labels(load), load.served.tpot.buckets(), load.served.tpot.sum_s)
        yield from (ttft, tpot)

    def _labels(self, load: ReplicaLoad) -> list[str]:
        return [self._model, load.member.replica, load.member.shape]
