"""Keys, certificates and addresses in a configuration file, before anything is started."""

from pathlib import Path
from typing import Any

import pytest
from access_builders import certificate, key_file, made_key

from deployments.access.checking import access_of, iter_access_notes, iter_access_problems, tls_of
from deployments.access.settings import Access, EdgeLimits
from deployments.config import Config, parse_config
from deployments.config_messages import ConfigError

MODEL = {"source": "tiny-llama"}
CLUSTERS: dict[str, Any] = {"simulated": {}, "local": {"kind": "local"}, "ray": {"kind": "ray"}}


def config(*, cluster: str = "simulated", **sections: Any) -> Config:
    kind = {"cluster": CLUSTERS[cluster]} if CLUSTERS[cluster] else {}
    return Config.model_validate({"models": (MODEL,), **kind, **sections})


def problems(given: Config, **environ: str) -> list[str]:
    return list(iter_access_problems(given, environ))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with good files and bad ones, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    key_file(tmp_path / "users.json", made_key()[1])
    key_file(tmp_path / "readers.json", made_key("r", role="read")[1])
    (tmp_path / "broken.json").write_text("{")
    certificate(tmp_path)
    certificate(tmp_path, "other")
    return tmp_path


GOOD_TLS = {"certificate": "server.pem", "key": "server.key"}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"endpoint": {"api_keys": "users.json", "tls": GOOD_TLS}, "control": {"api_keys": "readers.json"}}, None),
        ({"endpoint": {"api_keys": "nowhere.json"}}, "endpoint.api_keys: nowhere.json: cannot be read"),
        ({"endpoint": {"api_keys": "broken.json"}}, "endpoint.api_keys: broken.json: not JSON"),
        (
            {"endpoint": {"api_keys": "readers.json"}},
            "'readers.json' is not accepted; it has no key with role use",
        ),
        ({"control": {"api_keys": "users.json"}}, "it has no key with role operate or read; make one with"),
        ({"endpoint": {"tls": {**GOOD_TLS, "key": "other.key"}}}, "endpoint.tls: "),
        ({"control": {"tls": {**GOOD_TLS, "certificate": "x.pem"}}}, "control.tls: "),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_files_is_found(sections: dict[str, Any], words: str | None, files: Path) -> None:
    found = problems(config(**sections))
    assert len(found) == (0 if words is None else 1)
    assert words is None or words in found[0]
    # Elsewhere they are read by the processes there.
    assert problems(config(cluster="ray", **sections)) == []


def test_two_keys_at_once_are_too_many(files: Path) -> None:
    found = problems(config(endpoint={"api_keys": "users.json"}), VLLM_API_KEY="x")
    assert found == [
        "endpoint.api_keys: VLLM_API_KEY is set too, and vLLM would ask every client for that one; unset it, or leave "
        "this out"
    ]
    assert problems(config(), VLLM_API_KEY="x") == []


@pytest.mark.parametrize(
    ("sections", "fields"),
    [
        ({}, []),
        ({"endpoint": {"host": "127.0.0.2"}, "control": {"host": "localhost"}}, []),
        ({"endpoint": {"host": "0.0.0.0"}}, ["endpoint.host"]),
        ({"endpoint": {"host": "0.0.0.0", "api_keys": "k"}}, ["endpoint.tls"]),
        ({"endpoint": {"host": "::", "api_keys": "k", "tls": GOOD_TLS}}, []),
        ({"control": {"host": "10.0.0.1"}}, ["control.tls"]),
        ({"control": {"host": "10.0.0.1", "tls": GOOD_TLS}}, []),
    ],
    ids=str,
)
def test_what_is_open_to_others_is_said(sections: dict[str, Any], fields: list[str]) -> None:
    assert [note.partition(":")[0] for note in iter_access_notes(config(**sections))] == fields


@pytest.mark.parametrize(
    ("cluster", "host", "metrics_host", "expected"),
    [
        ("simulated", "0.0.0.0", None, "127.0.0.1"),
        ("local", "0.0.0.0", None, "127.0.0.1"),
        ("ray", "0.0.0.0", None, "0.0.0.0"),
        ("ray", "0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("local", "127.0.0.1", "10.0.0.1", "10.0.0.1"),
    ],
)
def test_metrics_of_a_cluster_on_this_machine_are_for_this_machine(
    cluster: str, host: str, metrics_host: str | None, expected: str
) -> None:
    given = config(cluster=cluster, endpoint={"host": host, "metrics_host": metrics_host})
    assert access_of(given).metrics_host == expected


def test_the_ingress_finds_the_files_wherever_it_runs(files: Path) -> None:
    access = access_of(config(endpoint={"api_keys": "users.json", "tls": GOOD_TLS}))
    assert access.keys == str(files / "users.json")
    assert access.tls is not None
    assert (access.tls.certificate, access.tls.key) == (str(files / "server.pem"), str(files / "server.key"))
    assert tls_of(None) is None


def test_the_defaults_of_the_file_are_those_of_the_server() -> None:
    assert access_of(config()) == Access(limits=EdgeLimits())


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            "limits: {max_headers: 1}",
            "endpoint.limits.max_headers: 1 is not accepted; give an integer from 10",
        ),
        ("limits: {body_timeout_s: 0}", "endpoint.limits.body_timeout_s: 0 is not accepted; give a number above 0"),
        ("limits: {max_body: 5}", "endpoint.limits.max_body: unknown name; did you mean max_body_bytes?"),
        ("tls: {certificate: a.pem}", "endpoint.tls.key: missing; give a non-empty string"),
        ("api_keys: ''", "endpoint.api_keys: '' is not accepted; give a non-empty string or null"),
    ],
)
def test_a_mistake_in_these_fields_is_named(section: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"models: [{{source: tiny-llama}}]\nendpoint: {{{section}}}")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(words)
