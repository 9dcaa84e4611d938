"""The HTTP edge: what goes out, and what a broken server, a slow one and none at all are called."""

import base64
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from prometheus_builders import free_port, prometheus

from autoscaling.observing.prometheus import Prometheus
from autoscaling.observing.queries import Failure, Moment, Series, Span

URL = "http://prometheus.test/at/a/path"
NOW = Moment(promql="up", at_s=1_700_000_000.25)
PAST = Span(promql="up", start_s=600.0, end_s=1200.0, step_s=60.0)


def answering(body: object, status: int = 200, seen: list[httpx.Request] | None = None) -> httpx.MockTransport:
    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(status, content=content)

    return httpx.MockTransport(handle)


def success(kind: str, result: object, **more: object) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": kind, "result": result}, **more}


def error(kind: str, sentence: str) -> dict[str, str]:
    return {"status": "error", "errorType": kind, "error": sentence}


def asked(body: object, status: int = 200, question: Moment | Span = NOW) -> Any:
    with Prometheus(URL, transport=answering(body, status)) as ask:
        return ask(question)


def test_a_moment_and_a_span_go_out_as_forms_at_the_time_given() -> None:
    seen: list[httpx.Request] = []
    with Prometheus(URL + "/", timeout_s=2.5, transport=answering(success("vector", []), seen=seen)) as ask:
        ask(NOW)
        ask(PAST)
    assert [(request.method, str(request.url)) for request in seen] == [
        ("POST", f"{URL}/api/v1/query"),
        ("POST", f"{URL}/api/v1/query_range"),
    ]
    forms = [parse_qs(request.content.decode()) for request in seen]
    assert forms[0] == {"query": ["up"], "time": ["1700000000.250"], "timeout": ["2.5s"]}
    assert forms[1] == {
        "query": ["up"], "start": ["600.000"], "end": ["1200.000"], "step": ["60.000"], "timeout": ["2.5s"],
    }  # fmt: skip


def test_values_that_json_cannot_hold_are_read() -> None:
    found = asked(success("vector", [{"metric": {"a": "b"}, "value": [7, text]} for text in ("1.5", "+Inf", "-Inf")]))
    assert [series.value for series in found] == [1.5, float("inf"), float("-inf")]
    assert found[0] == Series(labels={"a": "b"}, points=((7.0, 1.5),))
    nan = asked(success("vector", [{"metric": {}, "value": [7, "NaN"]}]))[0].value
    assert nan != nan
    over_time = asked(success("matrix", [{"metric": {}, "values": [[60, "1"], [120, "2"]]}]), question=PAST)
    assert over_time == (Series(labels={}, points=((60.0, 1.0), (120.0, 2.0))),)


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        (error("bad_data", "1:1: parse error"), 400, "refused", "HTTP 400: 1:1: parse error"),
        (error("timeout", "query timed out"), 503, "slow", "could not evaluate"),
        (error("unavailable", "not ready"), 503, "refused", "not ready"),
        (b"<html>Bad gateway</html>", 502, "refused", "HTTP 502"),
        (b"", 401, "refused", "HTTP 401"),
        (b"", 302, "refused", "HTTP 302"),
        (b"<html>Welcome</html>", 200, "not-prometheus", "not as Prometheus would"),
        (b"\xff\xfe", 200, "not-prometheus", "not as Prometheus would"),
        ([], 200, "not-prometheus", "not as Prometheus would"),
        ({"status": "success"}, 200, "not-prometheus", "not as Prometheus would"),
        (success("scalar", [1, "2"]), 200, "not-prometheus", "not as Prometheus would"),
        (success("vector", [{"metric": {}, "value": [1, "many"]}]), 200, "not-prometheus", "not as Prometheus would"),
        (success("vector", [{"metric": {}, "value": [1]}]), 200, "not-prometheus", "not as Prometheus would"),
        (success("matrix", [{"metric": {}, "values": []}]), 200, "not-prometheus", "not as Prometheus would"),
        (success("vector", [], warnings=["store s3 is down"]), 200, "partial", "store s3 is down"),
    ],
)
def test_what_is_no_answer_has_a_name(body: object, status: int, kind: str, words: str) -> None:
    failure = asked(body, status)
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert words in failure.why


def test_long_words_of_a_server_are_cut() -> None:
    assert len(asked(error("bad_data", "x" * 10_000), 400).why) < 400


def test_nobody_there_is_unreachable() -> None:
    with Prometheus(f"http://127.0.0.1:{free_port()}") as ask:
        assert ask(NOW).kind == "unreachable"  # type: ignore[union-attr]


def test_a_server_that_does_not_answer_is_slow() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_s = time.monotonic()
        with Prometheus(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3) as ask:
            failure = ask(NOW)
    assert isinstance(failure, Failure)
    assert failure.kind == "slow"
    assert time.monotonic() - started_s < 5


def test_a_server_that_hangs_up_is_unreachable() -> None:
    with hanging_up() as url, Prometheus(url) as ask:
        assert ask(NOW).kind == "unreachable"  # type: ignore[union-attr]


@contextmanager
def hanging_up() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_real_prometheus_that_is_stopped_is_unreachable_and_a_bad_query_refused(
    prometheus_binary: str, tmp_path: Path
) -> None:
    with prometheus(prometheus_binary, tmp_path) as (url, process), Prometheus(url) as ask:
        assert ask(Moment(promql="vector(3)", at_s=1_700_000_000))[0].value == 3  # type: ignore[index]
        refused = ask(Moment(promql="sum(", at_s=1_700_000_000))
        too_many = ask(Span(promql="vector(1)", start_s=0, end_s=11_001, step_s=1))
        process.kill()
        process.wait()
        gone = ask(Moment(promql="vector(3)", at_s=1_700_000_000))
    assert [failure.kind for failure in (refused, too_many, gone)] == ["refused", "refused", "unreachable"]  # type: ignore[union-attr]
    assert "parse error" in refused.why  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ({"token": "a-secret"}, "Bearer a-secret"),
        ({"user": "reader", "password": "a-secret"}, "Basic " + base64.b64encode(b"reader:a-secret").decode()),
        ({}, None),
    ],
)
def test_credentials_go_into_the_header_and_into_no_message(given: dict[str, str], header: str | None) -> None:
    seen: list[httpx.Request] = []
    with Prometheus(URL, **given, transport=answering(b"", 401, seen)) as ask:  # type: ignore[arg-type]
        failure = ask(NOW)
        shown = repr(ask) + repr(failure)
    assert seen[0].headers.get("Authorization") == header
    assert "a-secret" not in shown


def test_the_environment_gives_no_proxy_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with hanging_up() as url, Prometheus(url) as ask:
        why = ask(NOW).why  # type: ignore[union-attr]
    assert "disconnected" in why or "reset" in why  # by the server itself: nothing listens where the proxy would be


def test_only_a_certificate_of_a_known_authority_is_trusted(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=prometheus"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with over_tls(certificate, key) as url:
        kinds = []
        for given in ({}, {"ca_file": certificate}):
            with Prometheus(url, **given) as ask:
                found = ask(NOW)
            kinds.append(found.kind if isinstance(found, Failure) else found)
    assert kinds == ["unreachable", ()]


@contextmanager
def over_tls(certificate: Path, key: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(success("vector", [])).encode())

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_that_holds_no_certificates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ca_file"):
        Prometheus("https://prometheus.test", ca_file=tmp_path / "absent.pem")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Prometheus("prometheus:9090"), "give it like http://prometheus:9090"),
        (lambda: Prometheus("ftp://prometheus"), "give it like"),
        (lambda: Prometheus("http://prometheus?x=1"), "give it like"),
        (lambda: Prometheus("http://a:b@prometheus"), "give them as user and password"),
        (lambda: Prometheus(URL, token="a", user="b"), "one of them"),
        (lambda: Prometheus(URL, token="two words"), "give it as it was made"),
        (lambda: Prometheus(URL, token="line\nbreak"), "give it as it was made"),
        (lambda: Prometheus(URL, token=""), "give it as it was made"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_could(make: Callable[[], Prometheus], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        make()
    assert "a:b" not in str(raised.value)
