"""Prometheus's HTTP API: one question, one request. What goes wrong is an answer too, with a name."""

import json
import ssl
from pathlib import Path
from typing import Any, Self

import httpx

from autoscaling.observing.queries import Answer, Failure, Moment, Series, Span

_MAX_QUOTED = 200  # characters of a server's own words


class Prometheus:
    """Asks one Prometheus, or what speaks like it. Call it with a question.

    Args:
        url: where it is, with the path before `/api/v1` if there is one.
        token: sent as bearer token; or
        user, password: sent as basic authentication. None of these is ever in a message.
        ca_file: certificate authorities to trust instead of the system's.
        timeout_s: for each wait on the network, and for Prometheus's own evaluation.
        transport: what carries the requests; None is the network.

    Raises:
        ValueError: a URL or credentials that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        user: str | None = None,
        password: str = "",
        ca_file: Path | None = None,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked(url)
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            headers={} if token is None else {"Authorization": f"Bearer {_bearer(token, user)}"},
            auth=None if user is None else httpx.BasicAuth(user, password),
            verify=_trust(ca_file),
            timeout=timeout_s,
            transport=transport,
            trust_env=False,  # a proxy or .netrc of the environment would be shown the credentials, or replace them
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def __call__(self, question: Moment | Span) -> Answer | Failure:
        """Ask. A form in a POST, because a joined query is longer than some proxies take in a URL."""
        path, form = _form(question)
        try:
            response = self._http.post(f"{self.url}/api/v1/{path}", data=form | {"timeout": f"{self._timeout_s:g}s"})
        except httpx.TimeoutException:
            return Failure(kind="slow", why=f"{self.url} did not answer within {self._timeout_s:g} s.")
        except httpx.HTTPError as error:
            return Failure(kind="unreachable", why=f"{self.url} cannot be reached ({error}).")
        return self._read(response)

    def _read(self, response: httpx.Response) -> Answer | Failure:
        try:
            body = json.loads(response.content)
            if body["status"] == "error":
                return self._refusal(response.status_code, body)
            answer = _answer(body["data"])
        except (ValueError, KeyError, TypeError):
            if not response.is_success:
                return Failure(kind="refused", why=f"{self.url} answered HTTP {response.status_code}.")
            return Failure(kind="not-prometheus", why=f"{self.url} answered, but not as Prometheus would.")
        if body.get("warnings"):  # a remote store or a peer did not answer: what is there may be a part only
            return Failure(kind="partial", why=f"{self.url} answered in part: {_cut(body['warnings'])}.")
        return answer

    def _refusal(self, status: int, body: dict[str, Any]) -> Failure:
        if body.get("errorType") == "timeout":
            return Failure(kind="slow", why=f"{self.url} could not evaluate the query in {self._timeout_s:g} s.")
        return Failure(kind="refused", why=f"{self.url} answered HTTP {status}: {_cut(body.get('error'))}.")


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError("url: not a URL; give it like http://prometheus:9090.") from error
    if parsed.userinfo:
        raise ValueError("url: has a user or password in it; give them as user and password, or as token.")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ValueError(f"url: {url!r} is not where Prometheus can be; give it like http://prometheus:9090.")
    return url.rstrip("/")


def _bearer(token: str, user: str | None) -> str:
    if user is not None:
        raise ValueError("token and user are both given; Prometheus takes one of them.")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("token: empty, or with characters that a token does not have; give it as it was made.")
    return token


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca_file: {ca_file} cannot be read as certificates ({error}).") from error


def _form(question: Moment | Span) -> tuple[str, dict[str, str]]:
    match question:
        case Moment(promql=promql, at_s=at_s):
            return "query", {"query": promql, "time": f"{at_s:.3f}"}
        case Span(promql=promql, start_s=start_s, end_s=end_s, step_s=step_s):
            times = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:.3f}"}
            return "query_range", {"query": promql} | times


def _answer(data: dict[str, Any]) -> Answer:
    """Raises ValueError, KeyError or TypeError where this is no vector and no matrix."""
    if data["resultType"] not in ("vector", "matrix"):
        raise ValueError(data["resultType"])
    return tuple(_series(found) for found in data["result"])


def _series(found: dict[str, Any]) -> Series:
    points = found["values"] if "values" in found else [found["value"]]
    if not points:
        raise ValueError("a series without points")
    return Series(labels=dict(found["metric"]), points=tuple((float(at_s), float(value)) for at_s, value in points))


def _cut(words: object) -> str:
    text = "; ".join(map(str, words)) if isinstance(words, list) else str(words)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
