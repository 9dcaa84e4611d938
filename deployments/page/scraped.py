"""What an ingress tells Prometheus, as the control API reads it: load and times of its replicas. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from deployments.metrics.ingress_series import PREFIX

# prometheus_client's parser takes 24 us a line, and each replica has 75 lines: of 256 replicas that is 0.45 s of the
# controller's time with every look. What comes is always of our own exporter, so a pattern does, in a sixth of it.
_SAMPLE = re.compile(rf"^{PREFIX}([a-z_]+)\{{(.*)\}} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_DURATIONS = {
    "replica_time_to_first_token_seconds_bucket": "ttft",
    "replica_time_per_output_token_seconds_bucket": "tpot",
}
_FIELDS = {
    "replica_running_requests": "running",
    "replica_waiting_requests": "waiting",
    "replica_kv_cache_usage_ratio": "kv_usage",
    "replica_requests_total": "requests",
    "replica_generated_tokens_total": "generated_tokens",
}
_PROMISED = {
    "slo_time_to_first_token_seconds": "ttft_s",
    "slo_time_per_output_token_seconds": "tpot_s",
    "slo_objective_ratio": "percentile",
}
_BELOW = Mapping[float, float]  # seconds -> how many requests took no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What an ingress holds its requests to, in seconds, and how many of them, 0 to 1; None where it does not say."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float | None = None


class ScrapeError(Exception):
    """What an ingress told cannot be read. The message is a sentence."""


@dataclass(slots=True, kw_only=True)
class ReplicaSeries:
    """One replica, as one ingress tells of it. All but the gauges count from the ingress's start."""

    shape: str
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    requests: float = 0.0
    generated_tokens: float = 0.0
    ttft: Counter[float] = field(default_factory=Counter)
    tpot: Counter[float] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one ingress tells: of replicas by name, and of all requests."""

    replicas: Mapping[str, ReplicaSeries]
    promised: Promised


def told_in(exposition: str) -> Told:
    """Everything else, such as vLLM's own series, is passed over. Raises `ScrapeError`."""
    replicas: dict[str, ReplicaSeries] = {}
    promised: dict[str, float] = {}
    try:
        for name, labels, value in _samples(exposition):
            if name in _PROMISED:
                promised[_PROMISED[name]] = value
                continue
            series = replicas.setdefault(labels["replica"], ReplicaSeries(shape=labels["shape"]))
            if name in _FIELDS:
                setattr(series, _FIELDS[name], value)
            else:
                getattr(series, _DURATIONS[name])[float(labels["le"])] = value
    except (ValueError, KeyError) as error:
        raise ScrapeError(f"its series cannot be read ({error!r})") from error
    return Told(replicas=replicas, promised=Promised(**promised))


def _samples(exposition: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    wanted = {*_FIELDS, *_DURATIONS, *_PROMISED}
    for name, labels, value in _SAMPLE.findall(exposition):
        if name in wanted:
            yield name, dict(_LABEL.findall(labels)), float(value)


def increase(now: float, before: float) -> float:
    """Of a counter, which begins at 0 again with its process."""
    return now - before if now >= before else now


def increases(now: _BELOW, before: _BELOW) -> Counter[float]:
    """Of a histogram, bound by bound; one whose total went down has begun anew."""
    total = max(now, default=0.0)
    is_new = now.get(total, 0.0) < before.get(total, 0.0)
    return Counter({bound: count - (0.0 if is_new else before.get(bound, 0.0)) for bound, count in now.items()})


def summed(histograms: Iterable[_BELOW]) -> Counter[float]:
    """All requests of several histograms with the same bounds."""
    total: Counter[float] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return total


def quantile(histogram: _BELOW, share: float) -> float | None:
    """How long `share` of the requests took at most, in seconds; None without any.

    Within a bucket they are taken to lie evenly. Beyond the last finite bound that bound is the answer.
    """
    bounds = sorted(histogram)
    total = histogram[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    low_s, below = 0.0, 0.0
    for bound_s in bounds[:-1]:
        if histogram[bound_s] >= share * total and histogram[bound_s] > below:
            return low_s + (bound_s - low_s) * max(0.0, share * total - below) / (histogram[bound_s] - below)
        low_s, below = bound_s, histogram[bound_s]
    return low_s
