"""Commands of the tutorial that need no cluster, in a shell, as operations.md has them and in its order."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from discovery_builders import MACHINES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "deployments" / "operations.md").read_text().partition("## Every day")[0]
COMMANDS = re.findall(r"^archipelago (?:plan|scaling|check|islands) .*$", TUTORIAL, re.MULTILINE)
# What the GPUs of a machine say, where there are none.
DRIVER = f'#!/bin/sh\n[ "$1" != topo ] || cat {MACHINES / "dgx-h100.txt"}\n'


def test_a_plan_a_configuration_and_the_description_of_two_machines_come_out(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(DRIVER)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}/bin:{sys.prefix}/bin:{os.environ['PATH']}"
    for command in COMMANDS:
        if "node-b.json" in command:  # what the other machine printed
            other = (tmp_path / "node-a.json").read_text().replace(json.dumps(socket.gethostname()), '"node-b"')
            (tmp_path / "node-b.json").write_text(other)
        ran = ["bash", "-c", command]
        done = subprocess.run(ran, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert len(COMMANDS) == 7
    made = {"serve.yaml", "scaling.html", "node-a.json", "cluster.yaml"}
    assert made <= {file.name for file in tmp_path.iterdir()}
    assert "TTFT and TPOT" in done.stdout  # of the plan on the machines that were described
