"""TLS with certificates that somebody else makes and replaces."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

from deployments.access.settings import Tls

LOOK_EVERY_S = 30.0
CONTROL_CA_ENV = "ARCHIPELAGO_CONTROL_CA"

log = logging.getLogger("ray.serve")


class TlsError(Exception):
    """A certificate or a key cannot be used. The message names the files and holds nothing of them."""


def server_context(tls: Tls) -> ssl.SSLContext:
    """What a server speaks TLS with: 1.2 at least (RFC 8996). Raises `TlsError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load(context, tls)
    return context


def load(context: ssl.SSLContext, tls: Tls) -> None:
    """Have a context use these files from now on. Raises `TlsError`."""
    for path in (tls.certificate, tls.key):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise TlsError(f"{path} cannot be read ({error.strerror}); give a file in PEM") from error
    try:
        # Without a password function OpenSSL would ask for one at the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        why = "the key is not that of the certificate" if "MISMATCH" in str(error) else "not both in PEM, unencrypted"
        raise TlsError(f"{tls.certificate} and {tls.key} cannot be used: {why}") from error


def pinned(certificate: str) -> ssl.SSLContext:
    """What a client trusts exactly one certificate with, by whatever name it reaches the server. Raises `TlsError`.

    Of a file with several certificates it is the first, which is the server's own.
    """
    try:
        first = ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(_first_pem(Path(certificate).read_text())))
        context = ssl.create_default_context(cadata=first)
    except (OSError, ValueError) as error:
        raise TlsError(f"{certificate} cannot be used as a certificate; give a file in PEM") from error
    # It need not be its own authority, nor say that it is a server's: it is trusted because it was given.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    context.check_hostname = False
    return context


def control_context(environ: Mapping[str, str], certificate: str | None) -> ssl.SSLContext | None:
    """What to trust of a control API: the authorities of ``$ARCHIPELAGO_CONTROL_CA``, else its own `certificate`.

    None is what the system trusts. Raises `TlsError`.
    """
    if authorities := environ.get(CONTROL_CA_ENV):
        try:
            return ssl.create_default_context(cafile=authorities)
        except OSError as error:  # ssl.SSLError is one
            raise TlsError(f"{CONTROL_CA_ENV}: {authorities} cannot be used; give a file in PEM") from error
    return pinned(certificate) if certificate else None


def _first_pem(text: str) -> str:
    end = "-----END CERTIFICATE-----"
    return text[text.find("-----BEGIN CERTIFICATE-----") :].partition(end)[0] + end


async def refresh(context: ssl.SSLContext, tls: Tls) -> None:
    """Load the files again whenever they have changed; a pair that does not fit leaves the old one in use."""
    seen = _version_of(tls)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        version = _version_of(tls)
        if version in (seen, None):
            continue
        try:
            server_context(tls)  # a context that failed to load would be left without either
            load(context, tls)
        except TlsError as error:
            log.error("the certificate stays as it was: %s", error)  # noqa: TRY400
            continue
        seen = version
        log.warning("%s: a new certificate is in use", tls.certificate)


def _version_of(tls: Tls) -> tuple[int, int] | None:
    try:
        return Path(tls.certificate).stat().st_mtime_ns, Path(tls.key).stat().st_mtime_ns
    except OSError:
        return None
