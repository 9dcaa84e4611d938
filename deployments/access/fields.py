"""The sections of a configuration file about who may use the endpoint and what one client may cost the others."""

from pydantic import Field

from deployments.config_section import Section


class TlsConfig(Section):
    """A certificate to show. Both files are in PEM, are read by the process that listens, and may be replaced."""

    certificate: str = Field(
        min_length=1, description="File with the certificate, and behind it those between it and its authority."
    )
    key: str = Field(min_length=1, description="File with the certificate's private key, not encrypted.")


class EdgeLimitsConfig(Section):
    """What one client may cost the others, at each ingress."""

    max_connections: int = Field(
        default=8192, ge=16, le=1_000_000, description="Connections at a time; idle ones make room for new ones."
    )
    max_header_bytes: int = Field(
        default=32 * 1024, ge=1024, le=2**20, description="Bytes of a request line and its headers; beyond it 431."
    )
    max_headers: int = Field(default=100, ge=10, le=10_000, description="Headers of a request; beyond it 431.")
    max_body_bytes: int = Field(
        default=64 * 2**20, ge=1024, le=2**40, description="Bytes of the body of a request; beyond it 413."
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds for a request line and its headers to arrive."
    )
    body_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds for the body to arrive, from the headers; beyond it 408."
    )
    request_timeout_s: float = Field(
        default=3600.0, gt=0, description="Seconds that one request may take, its stream included; then it is cut off."
    )
