"""Who uses how much of a model, by the names of API keys, as Prometheus series of one ingress.

No key has a series, nor has a hash of one. There is one value of the label for each key in the file, and one for
requests without a key.
"""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.access.admission import Admission
from deployments.access.quotas import MINUTE_S
from deployments.metrics.counting import KeyUse, RequestOutcome
from deployments.metrics.ingress_series import PREFIX

NOBODY = "(none)"  # no key can have this name (access/keys.py)


class KeySeries(Collector):
    """A collector for a registry of prometheus_client. It may be read from any thread.

    `admission` is None where no keys are asked for.
    """

    def __init__(self, model: str, used: Mapping[str, KeyUse], admission: Admission | None) -> None:
        self._model = model
        self._used = used
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now, of the keys that there are now; of a new one at 0, for `increase` to see its first
        request."""
        keys = () if self._admission is None else self._admission.users
        used = {name: self._used.get(name, KeyUse()) for name in ("", *(key.name for key in keys))}
        yield from self._uses(used)
        yield self._refused(used)
        for unit, limits in (
            ("requests", {key.name: key.requests_per_minute for key in keys}),
            ("tokens", {key.name: key.tokens_per_minute for key in keys}),
        ):
            yield self._quota(unit, limits)

    def _uses(self, used: Mapping[str, KeyUse]) -> Iterator[Metric]:
        requests = _counter("requests", "HTTP requests to generate that ended, by how.", "outcome")
        inputs = _counter("input_tokens", "Tokens of the prompts of these requests.")
        outputs = _counter("output_tokens", "Tokens generated for these requests.")
        for name, use in used.items():
            labels = [self._model, name or NOBODY]
            for outcome in get_args(RequestOutcome):
                requests.add_metric([*labels, outcome], use.requests[outcome])
            inputs.add_metric(labels, use.input_tokens)
            outputs.add_metric(labels, use.output_tokens)
        yield from (requests, inputs, outputs)

    def _refused(self, used: Mapping[str, KeyUse]) -> Metric:
        refused = _counter(
            "refused", "Requests of any kind: 401 without a key that is known, 429 beyond a quota.", "code"
        )
        if self._admission is not None:
            for name in used:
                code = HTTPStatus.TOO_MANY_REQUESTS if name else HTTPStatus.UNAUTHORIZED
                count = self._admission.refused[name, code]
                refused.add_metric([self._model, name or NOBODY, str(code.value)], count)
        return refused

    def _quota(self, unit: str, per_minute: Mapping[str, int | None]) -> Metric:
        text = f"What the quota of a key lets through at this ingress, in {unit}."
        quota = GaugeMetricFamily(f"{PREFIX}key_quota_{unit}_per_second", text, labels=["model", "key"])
        for name, limit in per_minute.items():
            if limit is not None:
                quota.add_metric([self._model, name], limit / MINUTE_S)
        return quota


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}key_{name}", text, labels=["model", "key", *labels])
