"""What can be found wrong with keys, certificates and addresses before anything is started."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from deployments.access.fields import TlsConfig
from deployments.access.keys import KeyFileError, Role, read_keys
from deployments.access.settings import Access, EdgeLimits, Tls
from deployments.access.tls import TlsError, server_context
from deployments.config import Config, RayCluster
from deployments.config_messages import refused

LOOPBACK = "127.0.0.1"
_OWN_HOSTS = ("127.", "::1", "localhost")


def access_of(config: Config) -> Access:
    """What a configuration says about who may use the endpoints. Files are found from the working directory."""
    endpoint = config.endpoint
    # The nodes of a cluster on this machine are reached by loopback addresses, and so is its Prometheus.
    default_host = endpoint.host if isinstance(config.cluster, RayCluster) else LOOPBACK
    return Access(
        keys=absolute(endpoint.api_keys),
        tls=tls_of(endpoint.tls),
        limits=EdgeLimits(**endpoint.limits.model_dump()),
        metrics_host=endpoint.metrics_host or default_host,
    )


def tls_of(config: TlsConfig | None) -> Tls | None:
    """The same files by absolute paths."""
    if config is None:
        return None
    return Tls(certificate=str(Path(config.certificate).absolute()), key=str(Path(config.key).absolute()))


def absolute(path: str | None) -> str | None:
    """A path as the process that reads it needs it: its working directory is another."""
    return None if path is None else str(Path(path).absolute())


def iter_access_problems(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the files that are named. Those of a cluster elsewhere are not looked for here."""
    if config.endpoint.api_keys is not None and environ.get("VLLM_API_KEY"):
        yield (
            "endpoint.api_keys: VLLM_API_KEY is set too, and vLLM would ask every client for that one; unset it, or "
            "leave this out"
        )
    if isinstance(config.cluster, RayCluster):
        return
    yield from _iter_key_problems("endpoint.api_keys", config.endpoint.api_keys, {"use"})
    yield from _iter_key_problems("control.api_keys", config.control.api_keys, {"read", "operate"})
    yield from _iter_tls_problems("endpoint.tls", tls_of(config.endpoint.tls))
    yield from _iter_tls_problems("control.tls", tls_of(config.control.tls))


def _iter_key_problems(field: str, path: str | None, roles: set[Role]) -> Iterator[str]:
    if path is None:
        return
    try:
        keys = read_keys(Path(path))
    except KeyFileError as error:
        yield f"{field}: {error}"
        return
    if not any(key.role in roles for key in keys):
        wanted = " or ".join(sorted(roles))
        yield refused(field, path, f"it has no key with role {wanted}; make one with `archipelago keys add`")


def _iter_tls_problems(field: str, tls: Tls | None) -> Iterator[str]:
    try:
        if tls is not None:
            server_context(tls)
    except TlsError as error:
        yield f"{field}: {error}"


def iter_access_notes(config: Config) -> Iterator[str]:
    """What is open that a user may not expect to be."""
    endpoint, control = config.endpoint, config.control
    if not is_own(endpoint.host) and endpoint.api_keys is None:
        yield (
            f"endpoint.host: {endpoint.host} is for other machines, and endpoint.api_keys is not given: whoever "
            "reaches it may use the models"
        )
    for section, host, keys, tls in (
        ("endpoint", endpoint.host, endpoint.api_keys, endpoint.tls),
        ("control", control.host, True, control.tls),
    ):
        if not is_own(host) and keys and tls is None:
            yield f"{section}.tls: not given, so keys cross the network to {host} as plain text"


def is_own(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host.startswith(_OWN_HOSTS)
