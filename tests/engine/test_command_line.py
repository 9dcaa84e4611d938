"""`archipelago serve`, `status` and `stop` as a user runs them, each a process of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from deployments import local_cluster, run_record

pytestmark = pytest.mark.engine

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def archipelago(tmp_path: Path) -> Run:
    """Runs a command with a state directory of its own."""
    env = os.environ | {run_record.STATE_DIR_ENV: str(tmp_path / "state"), "COLUMNS": "120"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("archipelago"), *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=400)

    return run


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_serve_answers_from_four_workers_and_stop_leaves_nothing(archipelago: Run, tmp_path: Path) -> None:
    port = local_cluster.free_port()
    try:
        served = archipelago("serve", "--port", str(port))
        assert served.returncode == 0, served.stderr
        record = run_record.read(tmp_path / "state" / "run.json")
        assert record is not None
        assert record.cluster is not None
        assert "1 of 1 replicas run; placed as planned" in served.stdout
        assert f"curl -N http://127.0.0.1:{port}/v1/chat/completions" in served.stdout

        body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        with httpx.stream(
            "POST", f"{record.models[0].url}/v1/chat/completions", json=body | {"stream": True}, timeout=60
        ) as one:
            lines = [line for line in one.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"

        status = archipelago("status")
        assert status.returncode == 0, status.stderr
        seats = [line for line in status.stdout.splitlines() if "island-" in line]
        assert [("island-0" in line, "island-1" in line) for line in seats] == [(True, False)] * 2 + [(False, True)] * 2

        elsewhere = local_cluster.free_port()
        again = archipelago("serve", "--port", str(elsewhere))
        assert again.returncode == 0, again.stderr
        assert f"changing what is served: tiny-llama at http://127.0.0.1:{port}" in again.stdout
        assert f"serving tiny-llama at http://127.0.0.1:{elsewhere}" in again.stdout
        assert "tiny-llama--tp2pp2--0" in again.stdout, "the replica is the one of before"
        assert not is_free(elsewhere)
    finally:
        stopped = archipelago("stop")
    assert stopped.returncode == 0
    assert not list(local_cluster.processes(record.cluster))
    assert is_free(port)
    assert is_free(elsewhere)
    assert not Path(record.cluster.temp_dir).exists()
    assert archipelago("status").returncode == 1


@pytest.mark.slow
def test_a_model_that_does_not_load_is_one_error_and_leaves_nothing(archipelago: Run, tmp_path: Path) -> None:
    port = local_cluster.free_port()
    shipped = Path(local_cluster.__file__).parent / "configs" / "local.yaml"
    config = tmp_path / "broken.yaml"
    # One layer more than the file has weights for: nothing that can be known before the engine loads them.
    text = shipped.read_text().replace("engine:", "engine:\n      hf_overrides: {num_hidden_layers: 5}", 1)
    config.write_text(text.replace("shape: tp2pp2", "shape: tp1"))
    failed = archipelago("serve", str(config), "--port", str(port))
    assert failed.returncode == 1
    assert "tiny-llama--tp1--0 did not start: " in failed.stderr
    assert "ValueError: Following weights were not initialized from checkpoint: " in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "taking back what was started" in failed.stdout
    assert not (tmp_path / "state" / "run.json").exists()
    assert is_free(port)
