"""Containers of the rendered chart on machines made of namespaces (ray_up_machines.py), as a kubelet would start them.

A container here has the manifest's command, environment and files below /etc/archipelago, the image's user (1000, group
100, no capabilities), a /tmp and processes of its own, and the names of the Services in its /etc/hosts. What differs
from a cluster: the image is this checkout, /models is a folder of the container, and nobody asks the probes but a test.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray_up_machines import HOME as HOME_OF_ROOT
from ray_up_machines import Machine
from running_system import until

ETC = Path("/etc/archipelago")
HOME = "/tmp/home"
MODELS = "/tmp/models"
Manifests = Mapping[tuple[str, str], Mapping[str, Any]]
USER = ("setpriv", "--reuid=1000", "--regid=100", "--clear-groups", "--no-new-privs", "--bounding-set=-all")
START_TIMEOUT_S = 30

# Process 1 of a container, before it becomes the manifest's command. The machine's own /etc stays as it is.
BOOT = f"""
set -e
files=$1; hosts=$2; shift 2
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -m 777 {HOME} {MODELS}
cp -a /etc /tmp/etc
mount --bind /tmp/etc /etc
sed -i '/^[^:]*:[^:]*:1000:/d' /etc/passwd
echo 'ray:x:1000:100::{HOME}:/bin/bash' >> /etc/passwd
echo "$hosts" >> /etc/hosts
cp -r "$files" {ETC}
chmod -R a+rX {ETC}
cd {HOME}
exec {" ".join(USER)} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running one. `pid` is of its process 1, as this machine counts."""

    process: subprocess.Popen[bytes]
    pid: int
    environ: Mapping[str, str]
    log: Path

    def run(self, *command: str, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """As `kubectl exec` would."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", "--root", "--wd"]
        whole = [*enter, *USER, "env", "-i", *_assignments(self.environ), *command]
        return subprocess.run(whole, capture_output=True, text=True, timeout=timeout_s, check=False)

    def end(self, timeout_s: float) -> None:
        """As a kubelet does with a pod that was deleted; fails where it would have to kill."""
        os.kill(self.pid, signal.SIGTERM)
        self.process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """As when the machine goes."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(timeout=START_TIMEOUT_S)


def start(
    machine: Machine,
    folder: Path,
    command: Sequence[str],
    environ: Mapping[str, str],
    files: Mapping[Path, str],
    hosts: Mapping[str, str],
) -> Container:
    """Start a container.

    Args:
        machine: where.
        folder: that machine's, of those that `machines` was given.
        command: as in the manifest.
        environ: all of it.
        files: by path below /etc/archipelago.
        hosts: address by name.
    """
    number = len(list(folder.glob("*.container.log")))
    source = folder / "root" / f"files-{number}"
    source.mkdir()
    for path, text in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    listed = "\n".join(f"{address} {name}" for name, address in hosts.items())
    enter = ["nsenter", f"--target={machine.pid}", "--mount", "--uts", "--net", "--pid", "--root", "--wd"]
    unshare = ["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
    boot = ["bash", "-c", BOOT, "boot", f"{HOME_OF_ROOT / source.name}", listed, "env", "-i", *_assignments(environ)]
    log = folder / f"{number}.container.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*enter, *unshare, *boot, *command], stdout=out, stderr=out, start_new_session=True)
    first = until(lambda: _process_1(process.pid), f"{log} has a process 1", timeout_s=START_TIMEOUT_S, every_s=0.05)
    container = Container(process=process, pid=first, environ=environ, log=log)
    booted = ["test", "-e", str(ETC), "-a", "-d", HOME]
    until(lambda: container.run(*booted).returncode == 0, f"{log} has its files", timeout_s=START_TIMEOUT_S)
    return container


def _process_1(pid: int) -> int | None:
    """nsenter's child is unshare, whose child is process 1."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for unshare in psutil.Process(pid).children():
            for first in unshare.children():
                return int(first.pid)
    return None


def _assignments(environ: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environ.items()]


def environ_of(container: Mapping[str, Any], manifests: Manifests) -> dict[str, str]:
    """What the image and the manifest say, with the Secrets that it names."""
    # The image has its environment first on PATH; root has what this machine puts in place of hardware.
    environ = {"PATH": f"{sys.prefix}/bin:{HOME_OF_ROOT}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": HOME}
    for entry in container["env"]:
        ref = entry.get("valueFrom", {}).get("secretKeyRef")
        text = manifests["Secret", ref["name"]]["stringData"][ref["key"]] if ref else entry["value"]
        environ[entry["name"]] = text.replace("/models", MODELS)
    return environ


def files_of(pod: Mapping[str, Any], manifests: Manifests) -> dict[Path, str]:
    """What the ConfigMaps and Secrets of a pod put below /etc/archipelago."""
    (container,) = pod["containers"]
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container.get("volumeMounts", [])}
    files = {}
    for volume in pod["volumes"]:
        below = mounts[volume["name"]]
        if below.is_relative_to(ETC) and "configMap" in volume:
            files.update(
                _files(below, manifests["ConfigMap", volume["configMap"]["name"]]["data"], volume["configMap"])
            )
        if below.is_relative_to(ETC) and "secret" in volume:
            secret = volume["secret"]
            files.update(_files(below, manifests["Secret", secret["secretName"]]["stringData"], secret))
    return files


def _files(below: Path, data: Mapping[str, str], source: Mapping[str, Any]) -> dict[Path, str]:
    items = source.get("items") or [{"key": key, "path": key} for key in data]
    return {below.relative_to(ETC) / item["path"]: data[item["key"]] for item in items}


def ray_start(group: Mapping[str, Any], *options: str) -> list[str]:
    """KubeRay's command for a Ray container (1.7, ray-operator/controllers/ray/common/pod.go)."""
    asked = [f"--{name}={text}" for name, text in sorted(group["rayStartParams"].items())]
    always = ["--block", "--dashboard-agent-listen-port=52365", "--metrics-export-port=8080"]
    labels = [f"--labels={name}={text}" for name, text in group.get("labels", {}).items()]
    line = shlex.join(["ray", "start", *options, *always, *labels, *asked])
    return ["/bin/bash", "-c", "--", f"ulimit -n 65536; {line}"]


def kuberay_environ(token: str, address: str) -> dict[str, str]:
    """What KubeRay adds to a Ray container; the last two are of `authOptions: {mode: token}`."""
    return {
        # Not KubeRay's: the one resolver of gRPC's that reads /etc/hosts, which is all the DNS that there is here.
        "GRPC_DNS_RESOLVER": "native",
        "RAY_CLUSTER_NAME": "demo",
        "RAY_PORT": "6379",
        "RAY_ADDRESS": address,
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
        "REDIS_PASSWORD": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
    }
