"""The command line with a configuration of several models."""

import socket
from pathlib import Path

import pytest
from cli_builders import Ran, no_network, ran

from deployments import cli, launch
from deployments.check import port_is_free
from deployments.config import ModelConfig
from deployments.config_messages import ConfigError
from deployments.local_cluster import free_port
from deployments.run_record import STATE_DIR_ENV, RunRecord, ServedModel, write

__all__ = ["no_network", "ran"]

TWO = """
models:
- {source: tiny-llama, port: PORT, shape: tp2, engine: {kv_cache_memory_bytes: 67108864}}
- {source: tiny-moe, port: 9, shape: tp1, engine: {kv_cache_memory_bytes: 67108864}}
"""


@pytest.fixture(autouse=True)
def nothing_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is, from this directory."""
    monkeypatch.setenv(STATE_DIR_ENV, str(tmp_path / "state"))
    # What is served on this machine beside the tests has the default port of the control API.
    monkeypatch.setattr(cli, "port_is_free", lambda host, port: port == 8001 or port_is_free(host, port))


@pytest.fixture
def something_served(tmp_path: Path) -> None:
    """There is a record of it; what it says does not matter."""
    record = RunRecord(ray_address="", cluster=None, models=(), control_url="", drain_timeout_s=1.0)
    write(tmp_path / "state" / "run.json", record)


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """A configuration of two models."""
    path = tmp_path / "two.yaml"
    first, second = free_port(), free_port()
    path.write_text(TWO.replace("port: 9,", f"port: {second},").replace("PORT", str(first)))
    return path


def test_check_shows_every_replica_of_every_model(ran: Ran, two_models: Path) -> None:
    assert ran("check", two_models) == (
        0,
        "tiny-llama, replica 0: tp2: rank 0 on node-0 in island-0, rank 1 on node-0 in island-0\n"
        "tiny-moe, replica 0: tp1: rank 0 on node-1 in island-1\nno mistakes found\n",
        "",
    )


@pytest.mark.parametrize("option", ["--model", "--shape"])
def test_what_replaces_one_model_is_refused_where_there_are_several(option: str, ran: Ran, two_models: Path) -> None:
    assert ran("check", two_models, option, "tp1") == (
        1,
        "",
        "archipelago: the configuration has mistakes\n"
        f"{option}: 'tp1' is not accepted; the configuration has 2 models; change it in the file\n",
    )


def test_the_port_replaces_that_of_the_first_model(ran: Ran, two_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        code, _, errors = ran("check", two_models, "--port", port)
    assert code == 1
    assert errors.splitlines()[1:] == [
        f"endpoint.port: {port} is not accepted; nothing can listen on it at 127.0.0.1 now; "
        "give a free port, and an address of this machine"
    ]


def test_a_config_that_cannot_be_downloaded_names_its_model(
    ran: Ran, two_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: ModelConfig, environ: object) -> None:
        raise ConfigError([f"models[0].source: {model.source!r} is not accepted; the hub is away"])

    monkeypatch.setattr(cli, "download_config", refuse)
    two_models.write_text(two_models.read_text().replace("source: tiny-moe", "source: acme/nowhere"))
    code, _, errors = ran("serve", two_models)
    assert code == 1
    assert errors.splitlines()[1:] == ["models[1].source: 'acme/nowhere' is not accepted; the hub is away"]


@pytest.mark.usefixtures("something_served")
@pytest.mark.parametrize(("states", "wanted"), [(({"a": "deploying"}, {}), 1), (({}, {"b": "gone"}), 1), (({}, {}), 0)])
def test_status_shows_every_model_and_fails_when_one_is_not_as_planned(
    states: tuple[dict[str, str], ...], wanted: int, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [ServedModel(name=name, url=f"http://127.0.0.1:{port}") for name, port in (("one", 1), ("two", 2))]
    monkeypatch.setattr(launch, "status", lambda path: list(zip(models, states, strict=True)))
    monkeypatch.setattr(launch, "is_serving", lambda url: True)
    code, output, _ = ran("status")
    assert code == wanted
    assert [line.rstrip() for line in output.splitlines() if " at http" in line] == [
        "one at http://127.0.0.1:1",
        "two at http://127.0.0.1:2",
    ]


@pytest.mark.usefixtures("something_served")
def test_a_model_that_was_removed_is_no_fault(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [ServedModel(name=name, url=f"http://127.0.0.1:{port}") for name, port in (("one", 1), ("two", 2))]
    monkeypatch.setattr(launch, "status", lambda path: list(zip(models, [{}, None], strict=True)))
    monkeypatch.setattr(launch, "is_serving", lambda url: url.endswith(":1"))
    code, output, _ = ran("status")
    assert code == 0
    assert "two was removed, and is not served any more; `archipelago events two` says why" in output


@pytest.mark.usefixtures("something_served")
def test_an_endpoint_that_does_not_answer_is_told_of_its_own_model(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [ServedModel(name=name, url=f"http://127.0.0.1:{port}") for name, port in (("one", 1), ("two", 2))]
    monkeypatch.setattr(launch, "status", lambda path: [(model, {}) for model in models])
    monkeypatch.setattr(launch, "is_serving", lambda url: url.endswith(":1"))
    code, output, _ = ran("status")
    assert code == 1
    assert "http://127.0.0.1:2/health does not answer 200" in output
    assert "http://127.0.0.1:1/health" not in output
