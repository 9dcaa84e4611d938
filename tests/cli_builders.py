"""The command line `archipelago` as tests run it, without the network."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments import hub
from deployments.cli import main
from deployments.local_cluster import LocalCluster, free_port
from deployments.run_record import RunRecord, ServedModel
from placement.given import HubError

Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever asks the hub is told that it does not answer."""

    def refuse(repo: str, environ: object, **options: object) -> None:
        raise HubError("it is not asked in tests")

    monkeypatch.setattr(hub, "fetch", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs a command line; returns its exit code, output and errors, none of which is ever a traceback."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in argv])
        output, errors = capsys.readouterr()
        assert "Traceback" not in output + errors
        return code, output, errors

    return run


def flags(options: Mapping[str, object]) -> list[str]:
    """Options of a command line by their names; one that is None is left out."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]


def even_trace(folder: Path, seconds: int) -> Path:
    """A trace with a request of 1000 tokens and an answer of 100 every second."""
    rows = "".join(f"{second},1000,100\n" for second in range(1, seconds))
    return written(folder / "day.csv", f"arrival_s,input_tokens,output_tokens\n{rows}")


def refused(answer: tuple[int, str, str]) -> str:
    """The one line of an error."""
    code, output, errors = answer
    assert (code, output) == (1, "")
    assert errors.startswith("archipelago: ")
    assert errors.count("\n") == 1
    return errors


def written(path: Path, text: str) -> Path:
    """`path`, with `text` in it."""
    path.write_text(text)
    return path


def strictly(text: str) -> Any:
    """JSON without the NaN and Infinity that other readers refuse."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def record(tmp_path: Path, **changes: Any) -> RunRecord:
    """A deployment whose cluster has no processes."""
    temp_dir = tmp_path / "archipelago-gone"
    cluster = LocalCluster(cluster_id=f"test-{os.getpid()}", address="127.0.0.2:1", temp_dir=str(temp_dir))
    fields: dict[str, Any] = {
        "ray_address": "127.0.0.2:1",
        "cluster": cluster,
        "models": (ServedModel(name="tiny-llama", url=f"http://127.0.0.1:{free_port()}"),),
        "control_url": f"http://127.0.0.1:{free_port()}",
        "drain_timeout_s": 0,
    }
    return RunRecord(**fields | changes)
