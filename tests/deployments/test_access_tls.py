"""HTTPS with given certificates, for clients of both servers."""

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from access_builders import DEADLINE_S, Echo, certificate, served
from control_builders import CALLERS, MODEL, WRITE, MemoryFleet

from deployments.access import tls as tls_module
from deployments.access.settings import Access, Tls
from deployments.access.tls import CONTROL_CA_ENV, TlsError, control_context, pinned, server_context
from deployments.control.api import control_app
from deployments.control.client import ControlClient, ControlError
from deployments.control.gate import known_tokens


def test_the_endpoint_speaks_https_and_nothing_else(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    with served(Echo(), Access(tls=files)) as port:
        trusted = ssl.create_default_context(cafile=files.certificate)
        assert httpx.get(f"https://localhost:{port}/", verify=trusted).text == "0"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://localhost:{port}/")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}/")


def test_a_control_client_trusts_the_certificate_of_its_own_server_alone(tmp_path: Path) -> None:
    """By an address that is not in it: the certificate is the one that was given, which is more than a name says."""
    files, stranger = certificate(tmp_path), certificate(tmp_path, "stranger", ("127.0.0.1",))
    app = control_app(MemoryFleet(), known_tokens(CALLERS))
    with served(app, Access(tls=files)) as port:
        url = f"https://127.0.0.1:{port}"
        with ControlClient(url, WRITE, tls=control_context({}, files.certificate)) as client:
            assert client.fleet(MODEL).model == MODEL
        for context in (None, pinned(stranger.certificate)):
            with ControlClient(url, WRITE, tls=context) as client, pytest.raises(ControlError, match="VERIFY_FAILED"):
                client.fleet(MODEL)


def test_of_a_chain_only_the_servers_own_certificate_is_trusted(tmp_path: Path) -> None:
    files, above = certificate(tmp_path), certificate(tmp_path, "authority")
    chain = tmp_path / "chain.pem"
    chain.write_text(Path(files.certificate).read_text() + Path(above.certificate).read_text())
    for shown, is_trusted in ((replace(files, certificate=str(chain)), True), (above, False)):
        with served(Echo(), Access(tls=shown)) as port:
            url, context = f"https://127.0.0.1:{port}/", pinned(str(chain))
            if is_trusted:
                assert httpx.get(url, verify=context).status_code == 200
            else:
                with pytest.raises(httpx.ConnectError, match="VERIFY_FAILED"):
                    httpx.get(url, verify=context)


def test_authorities_of_the_environment_come_first_and_names_are_checked_then(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    context = control_context({CONTROL_CA_ENV: files.certificate}, "/nowhere")
    assert context is not None
    assert context.check_hostname
    assert control_context({}, None) is None
    with pytest.raises(TlsError, match=f"^{CONTROL_CA_ENV}: /nowhere cannot be used; give a file in PEM$"):
        control_context({CONTROL_CA_ENV: "/nowhere"}, None)


@pytest.mark.parametrize(
    ("certificate_of", "key_of", "words"),
    [
        ("nobody", "server", "nobody.pem cannot be read (No such file or directory); give a file in PEM"),
        ("server", "other", "cannot be used: the key is not that of the certificate"),
        ("text", "text", "cannot be used: not both in PEM, unencrypted"),
    ],
)
def test_files_that_are_no_certificate_are_a_message(
    certificate_of: str, key_of: str, words: str, tmp_path: Path
) -> None:
    certificate(tmp_path)
    certificate(tmp_path, "other")
    for suffix in ("pem", "key"):
        (tmp_path / f"text.{suffix}").write_text("hello")
    files = Tls(certificate=str(tmp_path / f"{certificate_of}.pem"), key=str(tmp_path / f"{key_of}.key"))
    with pytest.raises(TlsError) as caught:
        server_context(files)
    assert words in str(caught.value)
    with pytest.raises(TlsError):
        pinned(str(tmp_path / "text.pem"))


def test_a_certificate_that_is_replaced_is_shown_to_those_who_come_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls_module, "LOOK_EVERY_S", 0.01)
    files = certificate(tmp_path)
    first = Path(files.certificate).read_text()
    with caplog.at_level(logging.WARNING, "ray.serve"), served(Echo(), Access(tls=files)) as port:
        assert shown_at(port) == first
        Path(files.key).write_text("torn")
        until(lambda: "the certificate stays as it was" in caplog.text)
        assert shown_at(port) == first
        certificate(tmp_path)
        second = Path(files.certificate).read_text()
        until(lambda: shown_at(port) == second)
    assert first != second


def shown_at(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
