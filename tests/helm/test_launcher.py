"""When the launcher submits a configuration: never twice, and again wherever Ray has forgotten it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rendered_charts import CHART


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
        self.jobs: list[Any] = [self._job(None, "RUNNING")]  # a driver that nobody submitted
        self.entrypoints: list[str] = []

    def _job(self, name: str | None, status: str) -> Any:
        start = len(getattr(self, "jobs", ()))
        return SimpleNamespace(submission_id=name, status=SimpleNamespace(value=status), start_time=start)

    def list_jobs(self) -> list[Any]:
        return list(self.jobs)

    def submit_job(self, *, entrypoint: str, submission_id: str) -> None:
        assert submission_id not in {job.submission_id for job in self.jobs}, "Ray refuses an id that it knows"
        self.entrypoints.append(entrypoint)
        self.jobs.append(self._job(submission_id, self.outcome))

    def delete_job(self, name: str) -> None:
        self.jobs = [job for job in self.jobs if job.submission_id != name]

    def get_job_logs(self, name: str) -> str:
        return f"log of {name}"


def submissions(launcher: ModuleType, ray: FakeRay, texts: list[str]) -> int:
    """Look once for each text; how often it was submitted."""
    before = len(ray.entrypoints)
    for number, text in enumerate(texts):
        launcher.turn(text, ray, number + 1000 * len(ray.jobs))
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
    assert submissions(launcher, ray, ["a"]) == 1
    assert launcher.turn("a", ray, 2) == launcher.SERVED


def test_a_failed_change_does_not_count_as_the_configuration_before(launcher: ModuleType) -> None:
    ray = FakeRay()
    submissions(launcher, ray, ["a"])
    ray.outcome = "FAILED"
    assert submissions(launcher, ray, ["b", "b", "b"]) == 2
    ray.outcome = "SUCCEEDED"
    assert submissions(launcher, ray, ["a"]) == 1


def test_the_configuration_arrives_as_it_is(launcher: ModuleType, tmp_path: Path) -> None:
    """Through a shell, as Ray runs it; with a record of an earlier run, which would have `serve` refuse."""
    text = 'models:\n- {name: it\'s "$HOME" `x` \\n %s {a}, source: ä}\n\n'
    fake = tmp_path / "archipelago"
    fake.write_text('#!/bin/sh\ncp "$2" "$ARCHIPELAGO_STATE_DIR/got"\necho "$1" > "$ARCHIPELAGO_STATE_DIR/command"\n')
    fake.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    (state / "run.json").write_text("{}")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ARCHIPELAGO_STATE_DIR": str(state)}
    subprocess.run(launcher.entrypoint(text), shell=True, check=True, env=env, timeout=30)
    assert (state / "got").read_text() == text
    assert (state / "command").read_text() == "serve\n"
    assert not (state / "run.json").exists()
