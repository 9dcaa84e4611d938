"""What one ingress knows, as Prometheus series: read from the link and its traffic when somebody scrapes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.link import FleetLink
from deployments.traffic import ReplicaLoad, Traffic

PREFIX = "archipelago_"
REFUSALS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
REPLICA_LABELS = ("model", "replica", "shape")

Reading = Callable[[ReplicaLoad], float]
Family = CounterMetricFamily | GaugeMetricFamily

# Name -> what it is, and how it is read. A counter's name gets `_total` from prometheus_client.
REPLICA_GAUGES: Mapping[str, tuple[str, Reading]] = {
    "running_requests": ("Requests in the batch of the replica.", lambda load: load.running),
    "waiting_requests": ("Requests that wait in the replica for a place in its batch.", lambda load: load.waiting),
    "kv_cache_usage_ratio": ("Share of the replica's KV cache in use, 0 to 1.", lambda load: load.kv_usage),
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

    def __init__(self, model: str, link: FleetLink, traffic: Traffic) -> None:
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
        yield from self._durations(loads)

    def _of_clients(self) -> Iterator[Metric]:
        report, asked = self._link.report(), self._link.asked
        totals = {
            "arrivals": ("Requests to generate, refused ones included.", asked.arrivals),
            "moved_requests": ("Times that a request went on to another replica.", report.moved_requests),
            "quarantined_requests": ("Requests given up as what ends replicas.", report.quarantined_requests),
        }
        for name, (help_text, value) in totals.items():
            counter = CounterMetricFamily(PREFIX + name, help_text, labels=["model"])
            counter.add_metric([self._model], value)
            yield counter
        gauges = {
            "held_requests": ("Requests that wait in the ingress for a replica.", report.held_requests),
            "unfinished_requests": ("Requests that clients wait for.", report.unfinished_requests),
        }
        for name, (help_text, value) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, help_text, labels=["model"])
            gauge.add_metric([self._model], value)
            yield gauge
        refused = CounterMetricFamily(f"{PREFIX}refused", "Requests refused, by status.", labels=["model", "code"])
        for status in REFUSALS:
            refused.add_metric([self._model, str(status.value)], asked.refused[status])
        yield refused

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
