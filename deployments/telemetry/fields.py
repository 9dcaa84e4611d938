"""The section `telemetry` of a configuration."""

from pydantic import Field, field_validator

from deployments.config_section import Section


class TelemetryConfig(Section):
    """What is told about requests, beside metrics, and what clients were promised."""

    ttft_s: float = Field(
        default=2.0, gt=0, description="Seconds to the first token that a request may take to keep the SLO."
    )
    tpot_s: float = Field(
        default=0.05, gt=0, description="Seconds for each token after the first that it may take, on average."
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
