"""Who may use an endpoint, and what one client may cost the others. Where it comes from is `deployments.config`."""

from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """What holds at each server by itself. A head is the request line and the headers of a request."""

    max_connections: int = 8192
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    max_body_bytes: int = 64 * MIB
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    request_timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM: a certificate, with those between it and its authority behind it, and its key."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use an endpoint, and how. ``keys`` is the file of API keys; without it anybody may.

    It names files and holds no secret, so it may be shown. ``metrics_host`` is where each ingress tells its metrics.
    """

    keys: str | None = None
    tls: Tls | None = None
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    metrics_host: str = "127.0.0.1"
