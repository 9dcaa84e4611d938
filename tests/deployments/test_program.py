"""The program `archipelago` as a shell starts it."""

import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_builders import even_trace

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
LONG_S = 200_000  # a trace of so many seconds is replayed for seconds, and several times by the policy below


def heed_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so does all that this starts (POSIX, 2.11)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("flags", "sign"),
    [
        pytest.param(["-X", "importtime"], r"^import time:.* yaml$", id="while it is loaded"),
        pytest.param([], r"made ready", id="while it works"),
    ],
)
def test_ctrl_c_ends_it_without_a_traceback(flags: list[str], sign: str, tmp_path: Path) -> None:
    module, function = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]["archipelago"].split(":")
    program = f"import sys; from {module} import {function}; sys.exit({function}())"  # as an installer writes it
    trace = even_trace(tmp_path, LONG_S)
    asked = [
        "--model",
        "meta-llama/Llama-3.1-8B",
        "--cluster",
        "1x dgx-h100",
        "--policy",
        "best-static",
        "--ttft",
        "2s",
    ]
    command = [sys.executable, *flags, "-c", program, "simulate", "--trace", str(trace), *asked]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        assert process.stderr is not None
        assert any(re.search(sign, line) for line in process.stderr), "it has ended by itself"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
