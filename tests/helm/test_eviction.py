"""An evicted island is a drained node: Ray sees to that itself, if the pod gives it the time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pods
import psutil
import pytest
from rendered_charts import needs_helm, only

DRAIN_TIMEOUT = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
# In place of `ray`: it is asked to start, and told to end.
RAY = f"""#!{sys.executable}
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("drained"))
print(*sys.argv[1:], flush=True)
time.sleep(60)
"""


def island(limits: str = "{}") -> dict[str, Any]:
    (group,) = only("RayCluster", f"config: {{limits: {limits}}}")["spec"]["workerGroupSpecs"]
    return dict(group)


def drain_timeout_s(group: dict[str, Any]) -> float:
    (container,) = group["template"]["spec"]["containers"]
    (found,) = [float(entry["value"]) for entry in container["env"] if entry["name"] == DRAIN_TIMEOUT]
    return found


@needs_helm
@pytest.mark.parametrize(
    ("limits", "requests_s"), [("{}", 30), ("{drain_timeout_s: 300}", 300), ("{drain_timeout_s: 2.5}", 2)]
)
def test_an_island_has_the_time_that_its_requests_need(limits: str, requests_s: int) -> None:
    """The drain ends before Kubernetes kills, with time for Ray's own processes to end."""
    group = island(limits)
    assert drain_timeout_s(group) == requests_s + 30
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] == requests_s + 60


def test_the_ray_of_the_image_drains_for_as_long_as_it_is_told() -> None:
    code = f"from ray._private import ray_constants; print(ray_constants.{DRAIN_TIMEOUT})"
    command, environ = [sys.executable, "-c", code], os.environ | {DRAIN_TIMEOUT: "123"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "123.0\n", done.stderr


@needs_helm
def test_kubernetes_tells_ray_itself_to_end(tmp_path: Path) -> None:
    """KubeRay's command begins with a shell, which would not pass the signal on if it stayed process 1."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode != 0:
        pytest.skip("process namespaces need root")
    fake = tmp_path / "ray"
    fake.write_text(RAY)
    fake.chmod(0o755)
    command = pods.ray_start(island(), "--address=head:6379")
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *command],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as container:
        assert container.stdout is not None
        assert container.stderr is not None
        try:
            assert "--block" in container.stdout.readline().split()
            (process_1,) = psutil.Process(container.pid).children()
            process_1.terminate()
            container.wait(timeout=10)
            assert container.stderr.read().endswith("drained\n")
        finally:
            container.kill()
