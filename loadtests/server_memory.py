"""Which processes a server consists of, and how much memory each kind of them takes.

Memory is the proportional set size: a page that several processes share counts in each by its share, so the sum over a
server is what the machine would get back.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

# The first pattern found in a command line names the role. Ray and vLLM replace the command lines of their processes by
# titles, while that of the raylet holds the command lines of all it may start: hence the anchors and the order.
ROLES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("GCS", re.compile(r"^\S*/gcs_server ")),
    ("raylet", re.compile(r"^\S*/raylet ")),
    (
        "Ray services",
        re.compile(
            r"^ray::(DashboardAgent|RuntimeEnvAgent)|/(log_monitor|monitor|dashboard)\.py | ray\.util\.client\.server "
        ),
    ),
    ("Serve controller", re.compile(r"^ray::ServeController")),
    ("Serve proxy", re.compile(r"^ray::ProxyActor")),
    ("ingress", re.compile(r"^ray::ServeReplica:\S*--ingress--\d+:")),
    ("replica", re.compile(r"^ray::ServeReplica:")),
    ("EngineCore", re.compile(r"^VLLM::EngineCore")),
    ("worker", re.compile(r"^(VLLM::Worker|ray::\S*Worker)")),
    ("API server", re.compile(r" vllm\.entrypoints\.openai\.api_server ")),
    ("idle Ray workers", re.compile(r"^ray::IDLE|/default_worker\.py ")),
)
OTHER_ROLE = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """The processes of one role, taken together."""

    role: str
    processes: int
    pss_bytes: int


def memory_by_role(processes: Iterable[psutil.Process]) -> tuple[RoleMemory, ...]:
    """Measure now, in the order of `ROLES`; processes that end meanwhile are left out."""
    found: dict[str, list[int]] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            role = role_of(" ".join(process.cmdline()))
            found.setdefault(role, []).append(process.memory_full_info().pss)
    order = [*(role for role, _ in ROLES), OTHER_ROLE]
    return tuple(
        RoleMemory(role=role, processes=len(found[role]), pss_bytes=sum(found[role])) for role in order if role in found
    )


def role_of(command_line: str) -> str:
    """What a process is for, by its command line or title."""
    return next((role for role, pattern in ROLES if pattern.search(command_line)), OTHER_ROLE)


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """All processes that have ``variable=value`` in their environment, except this one."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
    return found


def with_descendants(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes and all that descend from them, each once."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (root, *root.children(recursive=True)):
                found[process.pid] = process
    return list(found.values())
