"""Machines for `ray up` on this machine: each has a network, processes, a home, a /tmp and an sshd of its own.

             +------------------- archipelago-<pid>-fabric ------------------+
             |                bridge `fabric`, 10.89.0.254                   |
             +---+------------------+------------------+------------------+--+
        eth0 10.89.0.1         10.89.0.2          10.89.0.3          10.89.0.4     in archipelago-<pid>-<name>

Network, mount, process and host name namespaces: Ray stops every Ray process that it can see, so machines must not see
each other's. The rest of the file system is this machine's, which is how Python and the installed packages get there.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import psutil
from running_system import until

from deployments import install
from deployments.crossover import namespaces
from deployments.crossover.namespaces import PREFIX, NamespaceError, run_all

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
NETWORK = "10.89.0"
GATEWAY = f"{NETWORK}.254"
SSHD = "/usr/sbin/sshd"
TOOLS = ("unshare", "nsenter", "ssh", "ssh-keygen", "rsync", "make", "curl", "hostname", "prometheus", SSHD)
HOME = Path("/root")

# Runs as process 1 of a machine, before its root directory is the one made here. A tree of bind mounts is a copy of all
# this machine's mounts; what is mounted on top of it is seen by this machine alone, and gone with its last process.
BOOT = f"""
set -e
root=$1; own=$2; name=$3; shift 3
hostname "$name"
mount --rbind / "$root"
mount -t proc proc "$root/proc"
for memory in /run /dev/shm; do mount -t tmpfs tmpfs "$root$memory"; done
chmod 1777 "$root/dev/shm"
mkdir "$root/run/sshd"
for folder in {HOME} /tmp; do mount --bind "$own$folder" "$root$folder"; done
while [ $# -gt 0 ]; do
    [ -e "$root$2" ] || mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
exec chroot "$root" {SSHD} -D -f {HOME}/.ssh/sshd_config
"""

SSHD_CONFIG = f"""
HostKey {HOME}/.ssh/host_key
AuthorizedKeysFile {HOME}/.ssh/authorized_keys
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A running machine. `pid` is of its first process, as this machine counts."""

    name: str
    ip: str
    pid: int

    def run(self, command: str, *, given: str = "", timeout_s: float = 60) -> str:
        """What a command prints that its user gives in a shell, with `given` at its input; fails where it does."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", "--root", "--wd"]
        environ = {"HOME": str(HOME), "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        shell = [*enter, "bash", "-c", f"cd && source .bashrc && {command}"]
        done = subprocess.run(
            shell, env=environ, input=given, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{self.name}: {command}: {done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def processes(self) -> list[str]:
        """Command lines of all its processes but sshd, in any state."""
        return self._told(lambda process: process.name() != "sshd" and (" ".join(process.cmdline()) or process.name()))

    def environments(self, program: str) -> list[dict[str, str]]:
        """Of those of its processes that run a program."""
        return self._told(lambda process: process.name() == program and process.environ())

    def _told(self, tell: Callable[[psutil.Process], T | Literal[False]]) -> list[T]:
        """What is told of each of its processes; those of which nothing is are left out."""
        mine = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == mine and (told := tell(process)):
                    found.append(told)
        return found


def missing() -> str | None:
    """What this machine lacks for others on it, as a sentence; None when it has all."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    return namespaces.missing() or (f"machines of namespaces need {', '.join(lacking)}" if lacking else None)


@contextlib.contextmanager
def machines(folder: Path, homes: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Machine]]:
    """Machines that reach each other by ssh, by the key ~/.ssh/id_ed25519, with Archipelago's packages installed.

    Args:
        folder: an empty one. The homes and /tmp of all are in it and stay there: so do their logs.
        homes: by the name of a machine, what its home has, by path. A file that begins with ``#!`` can be run.

    Raises:
        NamespaceError: the network could not be made.
    """
    prefix = f"{PREFIX}-{os.getpid()}"
    fabric = f"{prefix}-fabric"
    networks = {name: f"{prefix}-{name}" for name in homes}
    ips = {name: f"{NETWORK}.{index}" for index, name in enumerate(homes, start=1)}
    begun: list[subprocess.Popen[bytes]] = []
    try:
        run_all(_network(fabric, networks, ips))
        _keys(folder)
        up = {}
        for name, home in homes.items():
            process = _boot(folder, name, home, networks[name])
            begun.append(process)
            up[name] = Machine(name=name, ip=ips[name], pid=_first_process(process))
        for machine in up.values():
            until(lambda one=machine: _answers(one.ip, networks[one.name]), f"{machine.name}: sshd", timeout_s=20)
        yield up
    finally:
        for process in begun:
            process.send_signal(signal.SIGKILL)  # unshare heeds no other; --kill-child takes process 1, and so all
            process.wait()
        for network in (*networks.values(), fabric):
            with contextlib.suppress(NamespaceError):  # it was never made
                run_all([["ip", "netns", "delete", network]])


def left_over() -> list[str]:
    """Namespaces, links, mounts and processes that `machines` of this process should have taken along."""
    prefix = f"{PREFIX}-{os.getpid()}"
    listings = [["ip", "netns", "list"], ["ip", "-brief", "link"], ["cat", "/proc/self/mounts"]]
    printed = [subprocess.run(one, capture_output=True, text=True, check=True).stdout for one in listings]
    lines = [line for text in printed for line in text.splitlines()]
    processes = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return [line for line in lines if prefix in line or "machine-root" in line] + processes


def _network(fabric: str, networks: Mapping[str, str], ips: Mapping[str, str]) -> list[list[str]]:
    commands = [["ip", "netns", "add", network] for network in (fabric, *networks.values())]
    in_fabric = ["ip", "-n", fabric]
    commands += [
        [*in_fabric, "link", "add", "fabric", "type", "bridge"],
        [*in_fabric, "address", "add", f"{GATEWAY}/24", "dev", "fabric"],
        [*in_fabric, "link", "set", "fabric", "up"],
    ]
    for name, network in networks.items():
        inside = ["ip", "-n", network]
        port = ["link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", network]
        commands += [
            [*in_fabric, *port],
            [*in_fabric, "link", "set", f"to-{name}", "master", "fabric", "up"],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "address", "add", f"{ips[name]}/24", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            # Ray takes as a machine's address the one by which it would reach the internet.
            [*inside, "route", "add", "default", "via", GATEWAY],
        ]
    return commands


def _keys(folder: Path) -> None:
    for name in ("id_ed25519", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)


def _boot(folder: Path, name: str, home: Mapping[str, str], network: str) -> subprocess.Popen[bytes]:
    own, root = folder / name, folder / name / "machine-root"
    for made in (own / "root", own / "tmp", root):
        made.mkdir(parents=True)
    for path, text in _home(folder, home).items():
        file = own / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o700 if text.startswith("#!") else 0o600)
    stamp = folder / name / "stamp"
    stamp.write_text(f"cpu {install.digest(install.ENGINES['cpu'], install.platform.python_version())}\n")
    venv = HOME / "archipelago" / ".venv"
    binds = [(path, path) for path in (ROOT, sys.base_prefix, sys.prefix)]
    binds += [(sys.prefix, venv), (stamp, venv / install.STAMP.name)]  # `make install` has been there before
    arguments = [root, own, name, *(path for bind in binds for path in bind)]
    unshare = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
    command = ["nsenter", f"--net=/run/netns/{network}", *unshare, "bash", "-c", BOOT, "boot", *map(str, arguments)]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _home(folder: Path, home: Mapping[str, str]) -> dict[str, str]:
    private, public, host = (folder / name for name in ("id_ed25519", "id_ed25519.pub", "host_key"))
    prometheus = Path(str(shutil.which("prometheus"))).parent
    return {
        ".ssh/id_ed25519": private.read_text(),
        ".ssh/authorized_keys": public.read_text(),
        ".ssh/host_key": host.read_text(),
        ".ssh/sshd_config": SSHD_CONFIG,
        # The Python that the packages are for, and what this machine puts in place of hardware.
        ".bashrc": f"export PATH=$HOME/bin:{sys.base_prefix}/bin:$PATH:{prometheus}\n",
        **home,
    }


def _first_process(unshare: subprocess.Popen[bytes]) -> int:
    children: Callable[[], list[psutil.Process]] = psutil.Process(unshare.pid).children
    (first,) = until(children, "process 1 of a machine", timeout_s=20, every_s=0.02)
    return int(first.pid)


def _answers(ip: str, network: str) -> bool:
    ask: Sequence[str] = ["ip", "netns", "exec", network, "bash", "-c", f"exec 3<>/dev/tcp/{ip}/22"]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0
