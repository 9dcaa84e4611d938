"""No secret is where others look: reprs, command lines, environments, Ray's runtime environments."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from access_builders import made_key

from deployments import app as serve_apps
from deployments import local_cluster
from deployments.access.settings import Access
from deployments.app import ingress_app
from deployments.control.gate import Caller
from deployments.controller.records import Settings
from deployments.fleet import FleetPlan
from deployments.ingress import IngressPlan
from deployments.local_cluster import LocalCluster, start_simulated, token_environ
from deployments.routing import Limits

SECRET = "s3cret-of-the-fleet"
HUB_TOKEN = "hf_token_of_somebody"
ARGS = {"model": "x", "hf_token": HUB_TOKEN}


def ingress_plan() -> IngressPlan:
    return IngressPlan(
        model="m",
        serve_args=ARGS,
        host="127.0.0.1",
        port=1,
        ingresses=1,
        secret=SECRET,
        limits=Limits(),
        access=Access(keys="/k"),
    )


def fleet_plan() -> FleetPlan:
    return FleetPlan(
        model="m",
        source="x",
        engine_args=ARGS,
        frontend_args={},
        host="127.0.0.1",
        port=1,
        ingresses=1,
        drain_timeout_s=1.0,
        step_timeout_s=1.0,
        hold_s=1.0,
        admission=Limits(),
    )


def settings() -> Settings:
    return Settings(
        secret=SECRET,
        tokens={SECRET: Caller(name="operator", role="operate")},
        host="127.0.0.1",
        port=1,
        gpu_memory_bytes=None,
        state_dir="/s",
    )


@pytest.mark.parametrize("make", [ingress_plan, fleet_plan, settings], ids=lambda make: make.__name__)
def test_what_is_shown_of_a_plan_has_no_secret(make: Callable[[], Any]) -> None:
    for text in (repr(make()), str(make()), f"{make()!r}"):
        assert SECRET not in text
        assert HUB_TOKEN not in text


def test_ray_is_told_no_secret_in_what_its_dashboard_shows() -> None:
    """Options and runtime environments are shown there; the arguments of an actor are not."""
    deployment = ingress_app(ingress_plan(), {"A": "b"})._bound_deployment
    shown = json.dumps(deployment.ray_actor_options, default=repr) + repr(deployment._deployment_config)
    assert "VLLM_TARGET_DEVICE" in shown
    assert SECRET not in shown
    assert HUB_TOKEN not in shown
    assert serve_apps.INGRESS_DEPLOYMENT in deployment.name


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LocalCluster, str]:
    """A cluster whose Ray only notes how it was called, and what it noted."""
    notes, script = tmp_path / "notes", tmp_path / "ray"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {notes}\n/usr/bin/env >> {notes}\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    cluster = start_simulated(2, 1, {})
    return cluster, notes.read_text()


def test_rays_token_is_in_a_file_of_its_owner_and_nowhere_else(started: tuple[LocalCluster, str]) -> None:
    cluster, noted = started
    path = Path(token_environ(cluster)["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    assert len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert noted.count("RAY_AUTH_MODE=token") == 2
    assert noted.count(f"RAY_AUTH_TOKEN_PATH={path}") == 2
    assert token not in noted
    assert token not in repr(cluster)
    local_cluster.stop(cluster)
    assert not path.exists()


def test_two_clusters_have_two_tokens(started: tuple[LocalCluster, str]) -> None:
    other = start_simulated(1, 1, {})
    tokens = {Path(token_environ(one)["RAY_AUTH_TOKEN_PATH"]).read_text() for one in (started[0], other)}
    assert len(tokens) == 2
    for one in (started[0], other):
        local_cluster.stop(one)


def test_a_key_is_on_no_command_line(tmp_path: Path) -> None:
    """`keys add` prints it; every other command takes keys from files or the environment."""
    key, record = made_key()
    assert key not in repr(record)
    code = "import sys; from deployments.cli import parser; parser().print_help()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "--key" not in done.stdout
    assert "--token " not in done.stdout
