"""TLS between ingress and replica: where Ray encrypts its own connections, this one gets the same certificates.

As in Ray, both ends show a certificate of the same authority. Who connects also checks that the other's is for the
address that it dialled: so does gRPC, and Ray dials nodes at the addresses where replicas listen, so what serves Ray
serves here. Who listens takes every certificate of the authority. A process reads the files once, when it starts.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path

from deployments.access.settings import Tls
from deployments.access.tls import TlsError, load

USE_TLS = "RAY_USE_TLS"
CERTIFICATE = "RAY_TLS_SERVER_CERT"
KEY = "RAY_TLS_SERVER_KEY"
AUTHORITIES = "RAY_TLS_CA_CERT"


def listening_context(environ: Mapping[str, str]) -> ssl.SSLContext | None:
    """What a replica listens with; None where Ray does not use TLS. Raises `TlsError`."""
    return _context(environ, ssl.PROTOCOL_TLS_SERVER)


def dialling_context(environ: Mapping[str, str]) -> ssl.SSLContext | None:
    """What an ingress connects with; None where Ray does not use TLS. Raises `TlsError`."""
    return _context(environ, ssl.PROTOCOL_TLS_CLIENT)  # which checks the address


def _context(environ: Mapping[str, str], end: int) -> ssl.SSLContext | None:
    if environ.get(USE_TLS, "0").lower() not in ("1", "true"):  # as ray/_common/tls_utils.py reads it
        return None
    certificate, key, authorities = (_file(environ, name) for name in (CERTIFICATE, KEY, AUTHORITIES))
    context = ssl.SSLContext(end)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are of one version of ours
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        load(context, Tls(certificate=certificate, key=key))
    except TlsError as error:
        raise TlsError(f"{CERTIFICATE}, {KEY}: {error}") from error
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise TlsError(f"{AUTHORITIES}: {authorities} has no certificate in PEM") from error
    return context


def _file(environ: Mapping[str, str], name: str) -> str:
    path = environ.get(name)
    if not path:
        raise TlsError(f"{name} is not set, but {USE_TLS} is: give a file in PEM")
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise TlsError(f"{name}: {path} cannot be read ({error.strerror}); give a file in PEM") from error
    return path
