"""Installs Archipelago into `.venv`: `make serve`, `make test` and the Dockerfile all come through here.

Standard library only, because nothing is installed yet when it runs. One lock per engine build (`locks/cpu.txt`,
`locks/cuda.txt`) names the exact version of every package and the SHA-256 of each of its files, so nothing is resolved
at install time and nothing else is installed. A stamp in `.venv` holds the digest of what was installed: a second run
only reads a few files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deployments" / "locks"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "archipelago.stamp"
OLDEST_PYTHON = (3, 11)
GPU_LIST_TIMEOUT_S = 20  # nvidia-smi takes seconds where the driver is not kept loaded
# PyPI takes no local versions (PEP 440), so torch==2.13.0+cpu comes from PyTorch's index or from a folder of wheels,
# of which another machine may have other ones: the hashes that `make lock` sees here could be wrong there.
LOCAL_VERSION = re.compile(r"^(\S+==\S+\+\S+)(?: \\\n +--hash=\S+)*$", re.MULTILINE)
WITHOUT_HASH = "# Without a hash: not from PyPI, see .github/SECURITY.md.\n"


class Engine(NamedTuple):
    """A build of vLLM: its extra in pyproject.toml, its lock, and the newest Python that all its wheels exist for."""

    name: str
    newest_python: tuple[int, int]
    overrides: bool

    @property
    def lock(self) -> Path:
        return LOCKS / f"{self.name}.txt"


ENGINES = {
    "cpu": Engine("cpu", newest_python=(3, 13), overrides=True),
    "cuda": Engine("cuda", newest_python=(3, 12), overrides=False),
}


class InstallError(Exception):
    """Why the installation cannot go on: one sentence for the user."""


def check_python(version: tuple[int, int], engine: Engine) -> None:
    """Raises InstallError if this Python cannot run the locked packages."""
    if OLDEST_PYTHON <= version <= engine.newest_python:
        return
    accepted = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {engine.newest_python[0]}.{engine.newest_python[1]}"
    raise InstallError(
        f"Archipelago ({engine.name}) needs Python {accepted}, but this is Python {version[0]}.{version[1]}; "
        "name another one, for example: make serve PYTHON=python3.12"
    )


def check_machine(system: str, machine: str) -> None:
    """Raises InstallError where the locked wheels do not exist."""
    if (system, machine) != ("Linux", "x86_64"):
        raise InstallError(f"Archipelago's locked packages are for Linux on x86_64, but this is {system} on {machine}.")


def choose_engine(wanted: str, installed: str | None, gpu_list: str) -> Engine:
    """The engine build to install: what was asked for, else what is there already, else what the machine has.

    `wanted` is $ENGINE ("" if unset), `installed` the name in the stamp, `gpu_list` what `nvidia-smi -L` printed.
    """
    if wanted:
        if wanted not in ENGINES:
            raise InstallError(f"ENGINE={wanted} is unknown; accepted are: {', '.join(ENGINES)}.")
        return ENGINES[wanted]
    if installed in ENGINES:
        return ENGINES[installed]
    return ENGINES["cuda" if gpu_list.startswith("GPU ") else "cpu"]


def list_gpus() -> str:
    """What `nvidia-smi -L` prints, one line for each GPU; empty without a driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=GPU_LIST_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return listing.stdout if listing.returncode == 0 else ""


def find_links(pip_config: str) -> list[str]:
    """The extra places for wheels that pip is configured with, from the output of `pip config list`.

    uv does not read pip's configuration, but a machine without the internet usually has only that.
    """
    places: list[str] = []
    for line in pip_config.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".find-links"):
            places += [place for place in str(ast.literal_eval(value)).split() if place not in places]
    return places


def needs_torch_backend(engine: Engine, links: list[str]) -> bool:
    """Whether uv has to fetch torch from PyTorch's own index: the CPU build is not on the default one."""
    return engine.name == "cpu" and not any(list(Path(link).glob("torch-*+cpu-*.whl")) for link in links)


def locked_requirement(lock: str, package: str) -> str:
    """What the text of a lock asks for in a package: its version, and its hashes if it has any."""
    found = re.search(rf"^{re.escape(package)}==\S+(?: \\\n +--hash=\S+)*$", lock, re.MULTILINE)
    if not found:
        raise InstallError(f"deployments/locks does not pin {package}; run: make lock")
    return found[0]


def without_local_hashes(lock: str) -> str:
    """The text of a lock as it is the same on every machine."""
    return LOCAL_VERSION.sub(rf"{WITHOUT_HASH}\1", lock)


def digest(engine: Engine, python: str) -> str:
    """Changes whenever an installation would come out differently."""
    parts = [python.encode(), engine.lock.read_bytes(), (ROOT / "pyproject.toml").read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(stamp: Path) -> tuple[str | None, str | None]:
    """(engine, digest) of a finished installation; (None, None) if there is none."""
    words = stamp.read_text().split() if stamp.exists() else []
    return (words[0], words[1]) if len(words) == 2 else (None, None)


def step(title: str, command: list[str], *, quiet: bool = False) -> None:
    """Runs one command, with its elapsed time; a failing one becomes an InstallError.

    Shows what uv says as it goes (downloads take minutes), without its line for each package.
    """
    print(f"-> {title}", flush=True)
    started_s = time.monotonic()
    said: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout or ():
            said.append(line.rstrip())
            if not quiet and not re.match(r" [-+~] ", line):
                print(f"   {line.rstrip()}", flush=True)
    if run.returncode != 0:
        raise InstallError(f"{title} failed: {reason(said) or f'exit code {run.returncode}'}")
    print(f"   {time.monotonic() - started_s:.1f} s", flush=True)


def reason(said: Sequence[str]) -> str:
    """Why uv or pip failed, from the lines that it printed; empty if it printed none."""
    for line in said:
        if found := re.search(r"hash mismatch.*|these packages do not match the hashes", line, re.IGNORECASE):
            return f"{found[0]}. What came is not the file that was locked, so it was not installed."
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return last and f"{last}. Installing needs the network and some disk space."


def ensure_uv(requirement: str) -> str:
    """Makes `.venv` if there is none for this Python, with uv in it; returns uv's path.

    `requirement` is a line of a requirements file, since pip takes hashes only there.
    """
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise InstallError("This Python cannot make virtual environments; on Debian and Ubuntu install python3-venv.")
    uv, config = VENV / "bin" / "uv", VENV / "pyvenv.cfg"
    other_python = config.exists() and f" {platform.python_version()}" not in config.read_text()
    if other_python or not (uv.exists() and VENV_PYTHON.exists()):
        make = [sys.executable, "-m", "venv", *(["--clear"] if other_python else []), str(VENV)]
        step(f"virtual environment .venv with Python {platform.python_version()}", make, quiet=True)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(requirement)
            file.flush()
            pip = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--retries", "2", "--requirement", file.name]
            step(requirement.split()[0], pip, quiet=True)
    return str(uv)


def pip_find_links() -> list[str]:
    """`find_links` of whichever pip there is: the system's Python or the one in `.venv` may each lack it."""
    pips = ([python, "-m", "pip", "config", "list"] for python in (sys.executable, str(VENV_PYTHON)))
    return find_links("".join(subprocess.run(pip, capture_output=True, text=True).stdout for pip in pips))


def sync_command(uv: str, python: Path, links: Sequence[str], lock: Path) -> list[str]:
    """Brings the environment of `python` to exactly the lock; a file with another hash than the lock's is refused.

    Wheels only: to build one uv would fetch tools that no lock names.
    """
    places = [f"--find-links={link}" for link in links]
    return [uv, "pip", "sync", "--python", str(python), "--no-build", *places, str(lock)]


def install(engine: Engine) -> None:
    """Brings `.venv` to exactly the lock plus this project, unless it is there already."""
    wanted = digest(engine, platform.python_version())
    if read_stamp(STAMP) == (engine.name, wanted) and VENV_PYTHON.exists():
        return
    STAMP.unlink(missing_ok=True)
    started_s = time.monotonic()
    pins = engine.lock.read_text()
    uv = ensure_uv(locked_requirement(pins, "uv"))
    target, links = ["--python", str(VENV_PYTHON)], pip_find_links()
    if needs_torch_backend(engine, links):
        # By itself: with a torch backend uv also takes triton from PyTorch's index, which need not have the locked one.
        torch = locked_requirement(pins, "torch")
        step(torch, [uv, "pip", "install", *target, "--no-deps", "--torch-backend", "cpu", torch])
    step(f"the packages of {engine.lock.relative_to(ROOT)}", sync_command(uv, VENV_PYTHON, links, engine.lock))
    project = [uv, "pip", "install", *target, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    step("Archipelago itself", project, quiet=True)
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(f"{engine.name} {wanted}\n")
    fresh.replace(STAMP)
    print(f"Installed ({engine.name}) in {time.monotonic() - started_s:.0f} s.", flush=True)


def lock(engine: Engine) -> None:
    """Writes the lock of one engine anew.

    Pins that still fit stay, and so do their hashes: delete the file first for the newest versions and files.
    """
    uv, links = ensure_uv("uv"), pip_find_links()
    command = [uv, "pip", "compile", "--quiet", "pyproject.toml", "--extra", engine.name, "--extra", "dev"]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--constraints", str(LOCKS / "constraints.txt")]
    command += ["--override", str(LOCKS / "cpu-overrides.txt")] if engine.overrides else []
    command += [f"--find-links={link}" for link in links]
    command += ["--torch-backend", "cpu"] if needs_torch_backend(engine, links) else []
    command += ["--no-annotate", "--generate-hashes", "--custom-compile-command", "make lock"]
    step(f"{engine.lock.relative_to(ROOT)}", [*command, "--output-file", str(engine.lock)])
    engine.lock.write_text(without_local_hashes(engine.lock.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Installs Archipelago into .venv, or writes its locks anew.")
    parser.add_argument("action", nargs="?", choices=["install", "lock"], default="install")
    action = parser.parse_args().action
    try:
        wanted, installed = os.environ.get("ENGINE", ""), read_stamp(STAMP)[0]
        engine = choose_engine(wanted, installed, "" if wanted or installed else list_gpus())
        check_python(sys.version_info[:2], engine)
        check_machine(platform.system(), platform.machine())
        if action == "install":
            install(engine)
        else:
            for each in ENGINES.values():
                lock(each)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
