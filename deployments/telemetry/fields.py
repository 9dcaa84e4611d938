"""The section `telemetry` of a configuration, and the section `slo` of a model."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, field_validator, model_validator

from deployments.config_section import Section
from placement.promised import USUAL_SHARE, promised_latency_s, promised_share

# A configuration is written out and read again on its way (cli.py), hence the serializer.
Latency = Annotated[
    float,
    BeforeValidator(promised_latency_s),
    PlainSerializer(lambda latency_s: f"{latency_s!r}s"),
    WithJsonSchema({"type": "string"}),
]
Share = Annotated[float, BeforeValidator(promised_share)]


class SloConfig(Section):
    """What clients of this model are promised, written as in the autoscaler's settings."""

    ttft: Latency | None = Field(
        default=None, description="Slowest first token, such as 500ms. Default: telemetry.ttft_s."
    )
    tpot: Latency | None = Field(
        default=None, description="Slowest further token, such as 40ms. Default: telemetry.tpot_s."
    )
    percentile: Share | None = Field(
        default=None,
        description="Share of the requests that keep both: p95, 95% or 0.95. Default: telemetry.percentile.",
    )

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        if self.ttft is None and self.tpot is None and self.percentile is None:
            raise ValueError("give ttft, tpot, percentile or several of them")
        return self


class TelemetryConfig(Section):
    """What is told about requests, beside metrics, and what clients were promised where `models[].slo` does not say."""

    ttft_s: float = Field(
        default=2.0, gt=0, description="Seconds to the first token that a request may take to keep the SLO."
    )
    tpot_s: float = Field(
        default=0.05, gt=0, description="Seconds for each token after the first that it may take, on average."
    )
    percentile: Share = Field(
        default=USUAL_SHARE, description="Share of the requests that keep both, which alerts go by: p99, 99% or 0.99."
    )
    request_log: bool = Field(
        default=False,
        description="Write one line of JSON for each finished request to the ingress's log; never text of a prompt.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="Where OpenTelemetry traces go, by OTLP over HTTP: the address of a collector, such as "
        "http://collector:4318. Default: where OTEL_EXPORTER_OTLP_ENDPOINT says, and nowhere without it.",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_http(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ValueError("give an address that begins with http:// or https://")
        return endpoint

    def promising(self, slo: SloConfig | None) -> "TelemetryConfig":
        """With what one model promises of its own."""
        own = {} if slo is None else {"ttft_s": slo.ttft, "tpot_s": slo.tpot, "percentile": slo.percentile}
        return self.model_copy(update={name: value for name, value in own.items() if value is not None})
