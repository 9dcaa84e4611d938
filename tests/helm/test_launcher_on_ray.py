"""The launcher as the chart starts it, against a real Ray cluster as KubeRay starts it: dashboard, token, islands."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pods
import pytest
import yaml
from pods import Container, Manifests
from ray_up_machines import Machine, left_over, machines, missing
from rendered_charts import needs_helm, objects
from running_system import until

pytestmark = [needs_helm, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]

ISLANDS = ("worker-1", "worker-2")
GPUS = 4
# No GPU is here: KubeRay tells Ray how many there are, and who asks the driver for their memory gets an answer.
DRIVER = "#!/bin/sh\n" + "echo 81559\n" * GPUS
SERVE_TIMEOUT_S = 420
END_TIMEOUT_S = 15  # of the 30 that Kubernetes gives
SERVICES = ("demo.serving.svc", "demo-control.serving.svc", "demo-head-svc.serving.svc.cluster.local")
MODEL = "tiny-llama"
TOKENS = 48  # of each answer

# Streams of two clients, one after the other; in the end how many were whole, and what was wrong with the others.
CLIENTS = f"""
import json, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from openai import OpenAI, OpenAIError

over, whole, faults = threading.Event(), [], []
signal.signal(signal.SIGTERM, lambda *_: over.set())
client = OpenAI(base_url="http://demo.serving.svc:8000/v1", api_key=sys.argv[1], max_retries=0)
extra = {{"extra_body": {{"ignore_eos": True}}, "stream_options": {{"include_usage": True}}}}

def ask():
    while not over.is_set():
        try:
            said = [{{"role": "user", "content": "Tell me more."}}]
            *_, last = client.chat.completions.create(
                model="{MODEL}", messages=said, max_tokens={TOKENS}, stream=True, **extra
            )
            (whole if last.usage.completion_tokens == {TOKENS} else faults).append(str(last.usage))
        except OpenAIError as error:
            faults.append(repr(error))
            over.wait(0.5)

with ThreadPoolExecutor() as clients:
    for _ in range(2):
        clients.submit(ask)
print(json.dumps({{"whole": len(whole), "faults": faults}}))
"""

JOBS = """
import json, os
from ray.job_submission import JobSubmissionClient
jobs = JobSubmissionClient(os.environ["RAY_DASHBOARD_URL"]).list_jobs()
print(json.dumps([job.submission_id for job in jobs if job.submission_id]))
"""


def values(shape: str, replicas: int) -> str:
    """A user's values file."""
    model = {
        "source": MODEL,
        "shape": shape,
        "replicas": replicas,
        "simulated": {"gpu": "h100_sxm"},
        "engine": {"max_model_len": 2048, "max_num_seqs": 64},
    }
    island = {"name": "island", "count": len(ISLANDS), "nodes": 1, "gpusPerNode": GPUS, "cpu": 8, "memory": "8Gi"}
    config = {"models": [model], "limits": {"start_timeout_s": SERVE_TIMEOUT_S}}
    return yaml.safe_dump({"config": config, "islands": [island], "head": {"cpu": 8, "memory": "8Gi"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """A launcher that runs, and its readinessProbe."""

    container: Container
    probe: Mapping[str, Any]

    def is_ready(self) -> bool:
        return self.container.run(*self.probe["exec"]["command"]).returncode == 0

    def wait(self) -> None:
        until(self.is_ready, f"the launcher is ready: {self.said()}", timeout_s=SERVE_TIMEOUT_S, every_s=1)

    def said(self) -> str:
        return self.container.log.read_text()

    def fleet(self) -> dict[str, Any]:
        """What the table of objects in helm/README.md promises: `kubectl exec ... -- archipelago fleet`."""
        return dict(json.loads(done(self.container, "archipelago", "fleet", MODEL, "--json")))

    def replicas(self) -> dict[str, float]:
        """How long each replica serves, in seconds."""
        return {replica["name"]: replica["in_phase_s"] for replica in self.fleet()["replicas"]}


@dataclass(slots=True, kw_only=True)
class Release:
    """An installed one."""

    up: Mapping[str, Machine]
    folder: Path
    first: Mapping[tuple[str, str], dict[str, Any]]  # the objects of `helm install`
    begun: list[Container] = field(default_factory=list)
    ray: list[Container] = field(default_factory=list)  # the head first

    def key(self) -> str:
        """What NOTES.txt has the user read."""
        return str(self.first["Secret", "demo-endpoint"]["stringData"]["api-key"])

    def launch(self, text: str) -> Launcher:
        """Start the launcher of a values file; an upgrade keeps the Secrets."""
        manifests = objects(text) | {key: each for key, each in self.first.items() if key[0] == "Secret"}
        pod = manifests["Deployment", "demo-launcher"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        running = self.start("elsewhere", pod, manifests, container["command"])
        return Launcher(container=running, probe=container["readinessProbe"])

    def start_head(self) -> None:
        """What KubeRay makes of the RayCluster's head group."""
        group = self.cluster["headGroupSpec"]
        local = "127.0.0.1:6379"
        command, environ = pods.ray_start(group, "--head"), self.kuberay_environ(local)
        head = self.start("head", group["template"]["spec"], self.first, command, **environ)
        is_alive = ("ray", "health-check", "--address", local)
        until(lambda: head.run(*is_alive).returncode == 0, f"Ray's head runs, see {head.log}", every_s=1)
        self.ray = [head]

    def start_islands(self) -> None:
        """What KubeRay makes of the worker group, once the head is there."""
        (group,) = self.cluster["workerGroupSpecs"]
        assert group["replicas"] == len(ISLANDS)
        gcs = f"{SERVICES[-1]}:6379"
        command, environ = pods.ray_start(group, f"--address={gcs}"), self.kuberay_environ(gcs)
        pod = group["template"]["spec"]
        self.ray += [self.start(name, pod, self.first, command, **environ) for name in ISLANDS]

    @property
    def cluster(self) -> dict[str, Any]:
        """What KubeRay is told."""
        return dict(self.first["RayCluster", "demo"]["spec"])

    def kuberay_environ(self, address: str) -> dict[str, str]:
        options = self.cluster["authOptions"]
        assert options["mode"] == "token"
        return pods.kuberay_environ(self.first["Secret", options["secretName"]]["stringData"]["auth_token"], address)

    def start_clients(self) -> Container:
        """Somebody else's pod."""
        environ = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": pods.HOME}
        command = ["python", "-c", CLIENTS, self.key()]
        clients = pods.start(self.up["elsewhere"], self.folder / "elsewhere", command, environ, {}, self.hosts())
        self.begun.append(clients)
        return clients

    def start(
        self, machine: str, pod: Mapping[str, Any], manifests: Manifests, command: Sequence[str], **more: str
    ) -> Container:
        (container,) = pod["containers"]
        environ = pods.environ_of(container, manifests) | more
        files = pods.files_of(pod, manifests)
        begun = pods.start(self.up[machine], self.folder / machine, command, environ, files, self.hosts())
        self.begun.append(begun)
        return begun

    def hosts(self) -> dict[str, str]:
        return dict.fromkeys(SERVICES, self.up["head"].ip)


def done(container: Container, *command: str) -> str:
    """What a command prints, which has to go well."""
    ended = container.run(*command)
    assert ended.returncode == 0, f"{shlex.join(command)}: {ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with_gpus = {name: {"bin/nvidia-smi": DRIVER} for name in ISLANDS}
    with machines(tmp_path, {"head": {}, "elsewhere": {}, **with_gpus}) as up:
        for name in up:
            for path in (tmp_path / name / "root", *(tmp_path / name / "root" / "bin").glob("*")):
                path.chmod(0o755)  # for the image's user
        made = Release(up=up, folder=tmp_path, first=objects(values("tp1", 2)))
        yield made
    for container in made.begun:
        container.process.wait(timeout=pods.START_TIMEOUT_S)
    assert left_over() == []


def test_the_life_of_a_release(release: Release) -> None:
    release.start_head()
    launcher = release.launch(values("tp1", 2))
    gpus = f"0 of the islands' {len(ISLANDS) * GPUS} GPUs"
    until(lambda: gpus in launcher.said(), "the launcher waits for the islands", every_s=1)
    release.start_islands()
    launcher.wait()
    chats(launcher, release.key())
    asks_for_tokens(launcher)
    launcher = finds_its_work_done_after_a_restart(release, launcher)
    launcher = upgrades_under_traffic(release, launcher)
    serves_again_on_a_new_head(release, launcher)
    stops(release, launcher)


def chats(launcher: Launcher, key: str) -> None:
    said = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": MODEL, "messages": said, "max_tokens": 8, "ignore_eos": True})
    headers = ("-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json")
    url = f"http://{SERVICES[0]}:8000/v1/chat/completions"
    answer = json.loads(done(launcher.container, "curl", "-s", *headers, "-d", body, url))
    assert answer["usage"]["completion_tokens"] == 8, answer


def asks_for_tokens(launcher: Launcher) -> None:
    """Without one neither Ray's dashboard nor the endpoint answers."""
    for url in (f"{launcher.container.environ['RAY_DASHBOARD_URL']}/api/jobs/", f"http://{SERVICES[0]}:8000/v1/models"):
        assert done(launcher.container, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url) == "401"


def finds_its_work_done_after_a_restart(release: Release, launcher: Launcher) -> Launcher:
    """Nothing that was changed since by hand or by the autoscaler is put back, and nothing starts anew."""
    done(launcher.container, "archipelago", "scale", MODEL, "tp1=3", "--yes")
    before, jobs = launcher.replicas(), done(launcher.container, "python", "-c", JOBS)
    assert len(before) == 3
    launcher.container.end(END_TIMEOUT_S)
    again = release.launch(values("tp1", 2))
    again.wait()
    assert "submitted" not in again.said()
    assert done(again.container, "python", "-c", JOBS) == jobs
    after = again.replicas()
    assert after.keys() == before.keys()
    assert all(after[name] >= before[name] for name in before)
    assert again.fleet()["desired_pools"] == {"tp1": 3}
    return again


def upgrades_under_traffic(release: Release, launcher: Launcher) -> Launcher:
    """To another shape, to one that cannot be, and back to the first configuration; no stream notices."""
    clients = release.start_clients()
    launcher = upgraded(release, launcher, "tp2", 2)
    launcher = refused(release, launcher, "tp8")
    assert launcher.fleet()["desired_pools"] == {"tp2": 2}
    launcher = upgraded(release, launcher, "tp1", 2)
    clients.end(END_TIMEOUT_S)
    counts = json.loads(clients.log.read_text().splitlines()[-1])
    assert (counts["faults"], counts["whole"] > 10) == ([], True)
    return launcher


def upgraded(release: Release, launcher: Launcher, shape: str, replicas: int) -> Launcher:
    launcher.container.end(END_TIMEOUT_S)
    after = release.launch(values(shape, replicas))
    after.wait()
    fleet = after.fleet()
    assert fleet["desired_pools"] == fleet["effective_pools"] == {shape: replicas}
    assert [replica["shape"] for replica in fleet["replicas"]] == [shape] * replicas
    return after


def refused(release: Release, launcher: Launcher, shape: str) -> Launcher:
    launcher.container.end(END_TIMEOUT_S)
    after = release.launch(values(shape, 1))
    until(lambda: "failed, as above" in after.said(), "the log says why", timeout_s=SERVE_TIMEOUT_S, every_s=1)
    assert shape in after.said()
    assert not after.is_ready()
    return after


def serves_again_on_a_new_head(release: Release, launcher: Launcher) -> None:
    """Ray has forgotten all; nobody touches the launcher."""
    for container in release.ray:
        container.kill()
    until(lambda: not launcher.is_ready(), "the launcher sees that Ray is gone", every_s=1)
    release.start_head()
    release.start_islands()
    launcher.wait()
    chats(launcher, release.key())


def stops(release: Release, launcher: Launcher) -> None:
    """As helm/README.md has it before `helm uninstall`."""
    head = release.ray[0]
    done(head, "archipelago", "stop")
    assert head.run("curl", "-s", f"http://{SERVICES[0]}:8000/health").returncode == 7, "nobody listens"
    assert "No resource" in done(head, "ray", "list", "actors", "--filter=state=ALIVE")
    launcher.container.end(END_TIMEOUT_S)
