"""When the launcher submits a configuration: never twice, and again wherever Ray has forgotten it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from rendered_charts import CHART

from deployments.check import Checked, check
from deployments.config import parse_config
from deployments.config_messages import ConfigError


@pytest.fixture(scope="module")
def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launcher", CHART / "files" / "launcher.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["launcher"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class FakeRay:
    """Ray's record of jobs. What is submitted ends as told."""

    def __init__(self, outcome: str = "SUCCEEDED") -> None:
        self.outcome = outcome
        self.entrypoints: list[str] = []
        # A driver that nobody submitted, and somebody else's job.
        self.jobs: list[Any] = [self._job(None, "RUNNING"), self._job("raysubmit_1", "FAILED")]

    def _job(self, name: str | None, status: str) -> Any:
        status_of_ray = SimpleNamespace(value=status)
        return SimpleNamespace(submission_id=name, status=status_of_ray, start_time=len(self.entrypoints))

    def list_jobs(self) -> list[Any]:
        return list(reversed(self.jobs))  # in no order that Ray promises

    def submit_job(self, *, entrypoint: str, submission_id: str) -> None:
        assert submission_id not in {job.submission_id for job in self.jobs}, "Ray refuses an id that it knows"
        self.entrypoints.append(entrypoint)
        self.jobs.append(self._job(submission_id, self.outcome))

    def delete_job(self, name: str) -> None:
        assert all(job.status.value != "RUNNING" for job in self.jobs if job.submission_id == name), "Ray refuses"
        self.jobs = [job for job in self.jobs if job.submission_id != name]

    def get_job_logs(self, name: str) -> str:
        return f"log of {name}"


def submissions(launcher: ModuleType, ray: FakeRay, texts: list[str]) -> int:
    """Look once for each text, as one launcher; how often it was submitted."""
    before, state = len(ray.entrypoints), ""
    for text in texts:
        state = launcher.turn(text, ray, len(ray.entrypoints), again=launcher.FAILED in state)
    return len(ray.entrypoints) - before


def test_a_configuration_is_submitted_once(launcher: ModuleType) -> None:
    ray = FakeRay()
    assert submissions(launcher, ray, ["a"] * 5) == 1
    assert launcher.turn("a", ray, 0) == launcher.SERVED


def test_a_launcher_that_starts_again_disturbs_nobody(launcher: ModuleType) -> None:
    """It may be evicted while the autoscaler has other pools than the configured ones; they have to stay."""
    ray = FakeRay()
    submissions(launcher, ray, ["a"])
    assert submissions(launcher, ray, ["a", "a"]) == 0


def test_a_change_and_its_rollback_are_both_carried_out(launcher: ModuleType) -> None:
    assert submissions(launcher, FakeRay(), ["a", "a", "b", "b", "a", "a"]) == 3


def test_a_new_head_is_served_on_again(launcher: ModuleType) -> None:
    ray = FakeRay()
    submissions(launcher, ray, ["a"])
    ray.jobs.clear()
    assert submissions(launcher, ray, ["a", "a"]) == 1


def test_nothing_is_submitted_beside_a_job_that_runs(launcher: ModuleType) -> None:
    assert submissions(launcher, FakeRay("RUNNING"), ["a", "a", "b"]) == 1


def test_a_failure_is_told_and_tried_again(launcher: ModuleType) -> None:
    ray = FakeRay("FAILED")
    submissions(launcher, ray, ["a"])
    said = launcher.turn("a", ray, 1)
    assert "log of archipelago-serve-" in said
    assert launcher.FAILED in said
    ray.outcome = "SUCCEEDED"
    assert launcher.turn("a", ray, 2, again=True).startswith("submitted ")
    assert launcher.turn("a", ray, 3) == launcher.SERVED


def test_who_starts_again_after_a_failure_tells_it_before_trying_again(launcher: ModuleType) -> None:
    """The log of the new pod is the one that people read."""
    ray = FakeRay("FAILED")
    submissions(launcher, ray, ["a", "a", "a"])
    assert submissions(launcher, ray, ["a"]) == 0
    assert submissions(launcher, ray, ["a", "a"]) == 1


def test_the_first_job_of_a_new_head_waits_for_the_islands(launcher: ModuleType) -> None:
    """On half of them `shape: auto` would be cut for half of them, and stay so."""
    ray = FakeRay()
    assert launcher.turn("a", ray, 1, lambda: "8 of 16") == "8 of 16"
    assert ray.entrypoints == []
    assert launcher.turn("a", ray, 1, lambda: "").startswith("submitted ")


def test_an_upgrade_does_not_wait_for_an_island_that_is_gone(launcher: ModuleType) -> None:
    ray = FakeRay()
    submissions(launcher, ray, ["a"])
    assert launcher.turn("a", ray, 2, lambda: "8 of 16") == launcher.SERVED
    assert launcher.turn("b", ray, 3, lambda: "8 of 16").startswith("submitted ")


@pytest.mark.parametrize(
    ("nodes", "left_s", "said"),
    [
        pytest.param([{"CPU": 8.0}], 900, "0 of the islands' 16 GPUs", id="only-the-head"),
        pytest.param([{"CPU": 8.0}, {"GPU": 8.0}], 0.1, "8 of the islands' 16 GPUs", id="half"),
        pytest.param([{"CPU": 8.0}, {"GPU": 8.0}], 0.0, "", id="half-for-too-long"),
        pytest.param([{"CPU": 8.0}, {"GPU": 8.0}, {"GPU": 8.0}], 900, "", id="all"),
        pytest.param([{"GPU": 8.0}] * 3, 900, "", id="more"),
    ],
)
def test_what_is_waited_for(launcher: ModuleType, nodes: list[dict[str, float]], left_s: float, said: str) -> None:
    assert launcher.lacking_gpus(16, nodes, left_s).startswith(said)
    assert bool(launcher.lacking_gpus(16, nodes, left_s)) == bool(said)


@pytest.mark.parametrize("looks", range(1, 6))
def test_a_change_that_failed_is_undone_by_the_configuration_before(launcher: ModuleType, looks: int) -> None:
    """The fleet may be half way to what failed, so the success before it counts for nothing."""
    ray = FakeRay()
    submissions(launcher, ray, ["a"])
    ray.outcome = "FAILED"
    assert submissions(launcher, ray, ["b"] * looks) == (looks + 1) // 2
    ray.outcome = "SUCCEEDED"
    assert submissions(launcher, ray, ["a", "a"]) == 1


def test_rays_record_does_not_grow(launcher: ModuleType) -> None:
    """Each entry holds a whole configuration and the end of a log, and every look reads all of them."""
    ray = FakeRay("FAILED")
    submissions(launcher, ray, ["a"] * 50)
    ours = [job for job in ray.jobs if str(job.submission_id).startswith(launcher.PREFIX)]
    assert len(ours) == 1
    assert "raysubmit_1" in {job.submission_id for job in ray.jobs}, "it is not ours"


def test_an_upgrade_is_served_on_the_ports_that_the_fleet_has_already(tmp_path: Path) -> None:
    """The job runs on the head, where the ingresses and the control API of what is to change listen."""
    served = "models: [{source: tiny-llama, shape: tp1}]\n"

    def checked(cluster: str) -> Checked:
        environ = {"HOME": str(tmp_path)}
        return check(parse_config(served + cluster), environ=environ, port_is_free=lambda host, port: False)

    assert checked("cluster: {kind: ray, address: auto}").models[0].port == 8000
    with pytest.raises(ConfigError, match=r"endpoint\.port: 8000 is not accepted"):
        checked("cluster: {kind: local}")


def test_the_configuration_arrives_as_it_is(launcher: ModuleType, tmp_path: Path) -> None:
    """Through a shell, as Ray runs it."""
    text = 'models:\n- {name: it\'s "$HOME" `x` \\n %s {a}, source: ä}\n\n'
    fake = tmp_path / "archipelago"
    fake.write_text('#!/bin/sh\ncp "$2" "$ARCHIPELAGO_STATE_DIR/got"\necho "$1" > "$ARCHIPELAGO_STATE_DIR/command"\n')
    fake.chmod(0o755)
    state = tmp_path / "state"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ARCHIPELAGO_STATE_DIR": str(state)}
    subprocess.run(launcher.entrypoint(text), shell=True, check=True, env=env, timeout=30)
    assert (state / "got").read_text() == text
    assert (state / "command").read_text() == "serve\n"


def test_it_ends_when_kubernetes_says_so_as_process_1_of_a_container(tmp_path: Path) -> None:
    """Else each upgrade waits 30 s for the launcher before."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode != 0:
        pytest.skip("process namespaces need root")
    config = tmp_path / "config.yaml"
    config.write_text("")
    inside = [sys.executable, str(CHART / "files" / "launcher.py"), str(config), "8"]
    environ = {"PATH": "/usr/bin:/bin", "RAY_DASHBOARD_URL": "http://127.0.0.1:1"}  # nobody listens there
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *inside], env=environ, stdout=subprocess.PIPE, text=True
    ) as container:
        assert container.stdout is not None
        try:
            assert container.stdout.readline().startswith("Ray's dashboard does not answer")
            (launcher,) = psutil.Process(container.pid).children()
            launcher.terminate()
            assert container.wait(timeout=10) == 0
        finally:
            container.kill()
