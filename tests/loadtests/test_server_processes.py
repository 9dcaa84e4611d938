"""Which processes a server has, what they are for, and what they use."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from loadtests.cpu_use import CpuReading, CpuUse, cpu_use, read_cpu
from loadtests.server_memory import memory_by_role, processes_with, role_of, with_descendants

RAY = "/v/lib/python3.11/site-packages/ray"


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        (f"{RAY}/core/src/ray/gcs/gcs_server --log_dir=/tmp/a/logs --session-name=s", "GCS"),
        (
            f"{RAY}/core/src/ray/raylet/raylet --worker={RAY}/default_worker.py --agent={RAY}/log_monitor.py -x",
            "raylet",
        ),
        (f"/v/bin/python -u {RAY}/_private/log_monitor.py --session-dir=/tmp/a", "Ray services"),
        (f"/v/bin/python -u {RAY}/autoscaler/_private/monitor.py --logs-dir=/tmp/a", "Ray services"),
        (f"/v/bin/python {RAY}/dashboard/dashboard.py --host=127.0.0.1", "Ray services"),
        ("/v/bin/python -m ray.util.client.server --address=127.0.0.2:1", "Ray services"),
        ("ray::DashboardAgent   ", "Ray services"),
        ("ray::ServeController.listen_for_change   ", "Serve controller"),
        ("ray::ProxyActor   ", "Serve proxy"),
        ("ray::ServeReplica:bench--ingress--0:ingress", "ingress"),
        ("ray::ServeReplica:bench--tp1--0:replica   ", "replica"),
        ("VLLM::EngineCore   ", "EngineCore"),
        ("ray::RayWorkerProc.run   ", "worker"),
        ("VLLM::Worker_TP1   ", "worker"),
        ("/v/bin/python -m vllm.entrypoints.openai.api_server --model=/m", "API server"),
        ("ray::IDLE   ", "idle Ray workers"),
        (f"/v/bin/python {RAY}/_private/workers/default_worker.py --node-ip-address=127.0.0.2", "idle Ray workers"),
        ("/v/bin/python -B -c from multiprocessing.resource_tracker import main;main(77)", "other"),
        ("", "other"),
    ],
)
def test_a_process_is_known_by_its_command_line_or_title(command_line: str, role: str) -> None:
    assert role_of(command_line) == role


def test_processes_are_found_by_their_environment_with_their_children() -> None:
    mark = f"{os.getpid()}-{os.urandom(4).hex()}"
    # The child has lost the variable, as processes do that overwrite their environment with a title.
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], env={}); print(p.pid); input()"
    )
    env = {**os.environ, "ARCHIPELAGO_TEST_MARK": mark}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        try:
            roots = processes_with("ARCHIPELAGO_TEST_MARK", mark)
            assert {process.pid for process in roots} == {parent.pid}
            members = with_descendants([*roots, *roots])
            assert [process.pid for process in members] == [parent.pid, child_pid]
            (memory,) = memory_by_role(members)
            assert (memory.role, memory.processes) == ("other", 2)
            assert memory.pss_bytes > 2**20
        finally:
            psutil.Process(child_pid).kill()
            parent.kill()


def test_cores_in_use_between_two_readings() -> None:
    before = CpuReading(at_s=10, machine_s=100, load_s=3, server_s={1: 5.0, 2: 7.0, 3: 1.0})
    after = CpuReading(at_s=14, machine_s=107, load_s=4, server_s={1: 8.0, 2: 8.0, 4: 2.0})
    assert cpu_use(before, after) == CpuUse(server=1.0, load=0.25, others=0.5)
    assert cpu_use(before, replace(after, machine_s=104)).others == 0


def test_this_process_is_the_load() -> None:
    before = read_cpu([])
    while time.process_time() < before.load_s + 0.2:
        pass
    after = read_cpu([psutil.Process()])
    assert after.load_s - before.load_s >= 0.1
    assert after.server_s[os.getpid()] == pytest.approx(after.load_s, abs=0.1)
