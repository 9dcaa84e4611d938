"""Reads this machine, with the best tool that is here: NVML, else `nvidia-smi`, else the kernel's list of devices."""

import importlib
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deployments.discovery.machine import DiscoveryError, Machine, read_machines
from deployments.discovery.nvml import read_nvml
from deployments.discovery.smi_text import COMMANDS, machine_from_text
from deployments.discovery.sysfs import read_sysfs

_COMMAND_TIMEOUT_S = 120  # `topo -m` took 112 s on a machine with a loose bridge (nccl#557)


def read_machine(root: Path = Path("/")) -> Machine:
    """This machine, with at least one GPU. Raises `DiscoveryError`, which says what was tried."""
    host = socket.gethostname()
    tried = []
    readers: tuple[Callable[[str], Machine], ...] = (_from_nvml, _from_smi, lambda host: read_sysfs(root, host))
    for reader in readers:
        try:
            machine = reader(host)
        except DiscoveryError as error:
            tried.append(str(error))
            continue
        if machine.gpus:
            # The user should know why a lesser source was used, since it sees less.
            return replace(machine, notes=(*machine.notes, *tried))
        tried.append(f"{machine.source} lists no NVIDIA GPU")
    raise DiscoveryError(f"this machine has no GPU that can be seen: {'; '.join(tried)}.")


def read_file(path: Path) -> tuple[Machine, ...]:
    """What another machine printed: `archipelago islands --json`, or `nvidia-smi`; the file is named after the machine.

    Raises `DiscoveryError`.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DiscoveryError(f"{path}: {error.strerror or error}.") from error
    if not text.lstrip().startswith("{"):
        return (machine_from_text(text, path.stem),)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DiscoveryError(f"{path} is not JSON: {error}.") from error
    return read_machines(document.get("machines"), str(path))


def _from_nvml(host: str) -> Machine:
    try:
        pynvml = importlib.import_module("pynvml")  # of nvidia-ml-py, which only machines with GPUs need
    except ImportError:
        raise DiscoveryError("NVML cannot be asked, since nvidia-ml-py is not installed") from None
    try:
        return read_nvml(pynvml, host)
    except pynvml.NVMLError as error:
        raise DiscoveryError(f"NVML says: {error}") from error


def _from_smi(host: str) -> Machine:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise DiscoveryError("nvidia-smi is not installed")
    outputs = []
    for arguments in COMMANDS:
        try:
            done = subprocess.run(
                [tool, *arguments], capture_output=True, text=True, errors="replace", timeout=_COMMAND_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DiscoveryError(f"nvidia-smi {' '.join(arguments)} failed: {error}") from error
        if arguments == ("-L",) and done.returncode != 0:
            raise DiscoveryError(f"nvidia-smi says: {' '.join((done.stdout + done.stderr).split())[:200]}")
        outputs.append(done.stdout)
    return machine_from_text("\n".join(outputs), host)
