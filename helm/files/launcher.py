"""Keeps one configuration served on a Ray cluster: submits `archipelago serve` as a Ray job where it is due.

It is due when no job of ours is on record, which is so on a new head, or when the newest one was for another
configuration or failed. Ray's record of jobs lives and dies with the fleet, so nothing has to be remembered here: this
process may end at any time, and starting it again disturbs nobody. `serve` ends when requests are answered; the fleet
stays, with the controller that it started.

On a new head the first job waits for the GPUs of all islands, since shapes are chosen for those that are there.
"""

import hashlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PREFIX = "archipelago-serve-"
POLL_S = 10.0
RETRY_S = 60.0  # after a failure
ISLANDS_S = 900.0  # then those that are there have to do: one machine may be broken
READY = Path("/tmp/ready")
SERVED = "requests are answered as configured"
FAILED = "`archipelago serve` failed, as above"
LACKING = "have joined the Ray cluster; the others are waited for"
COMMAND = 'mkdir -p "$ARCHIPELAGO_STATE_DIR" && '
COMMAND += 'file="$ARCHIPELAGO_STATE_DIR/serve.yaml" && printf %s {text} > "$file" && exec archipelago serve "$file"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job on Ray's record. `name` is its submission id."""

    name: str
    status: str
    start_ms: int


def digest(text: str) -> str:
    """Names a configuration."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entrypoint(text: str) -> str:
    """The shell command that serves a configuration; Ray runs it on the head."""
    return COMMAND.format(text=shlex.quote(text))


def due(jobs: Sequence[Job], wanted: str) -> str:
    """What to do for the configuration with the digest `wanted`; `done` is nothing, as it is served already.

    `jobs` are ours, the newest last.
    """
    if any(job.status in ("PENDING", "RUNNING") for job in jobs):
        return "wait"
    if not jobs or not jobs[-1].name.startswith(f"{PREFIX}{wanted}-"):
        return "submit"
    return "done" if jobs[-1].status == "SUCCEEDED" else "failed"


def turn(
    text: str, client: "JobSubmissionClient", now_ns: int, awaited: Callable[[], str] = str, *, again: bool = False
) -> str:
    """Look at the cluster, do what is due, say what that was. Raises whatever Ray raises when it does not answer.

    `awaited` says what the first job of a new head has to wait for, nothing by default. A failed configuration is
    submitted once more only with `again`: the failure is told first.
    """
    wanted = digest(text)
    jobs = _our_jobs(client)
    match due(jobs, wanted):
        case "done":
            return SERVED
        case "wait":
            return "`archipelago serve` is running"
        case "failed" if not again:
            return f"{client.get_job_logs(jobs[-1].name)}\n{FAILED}; it is tried again in {RETRY_S:g} s"
        case "submit" if not jobs and (lacking := awaited()):
            return lacking
    name = f"{PREFIX}{wanted}-{now_ns}"
    client.submit_job(entrypoint=entrypoint(text), submission_id=name)
    # Only now: the newest job tells what the fleet was last asked for, also when that failed half way.
    for job in jobs:
        client.delete_job(job.name)
    return f"submitted {name}"


def _our_jobs(client: "JobSubmissionClient") -> list[Job]:
    """The newest last."""
    jobs = [
        Job(name=job.submission_id, status=job.status.value, start_ms=job.start_time or 0)
        for job in client.list_jobs()
        if job.submission_id and job.submission_id.startswith(PREFIX)
    ]
    return sorted(jobs, key=lambda job: job.start_ms)


def lacking_gpus(wanted: int, nodes: Iterable[Mapping[str, float]], left_s: float) -> str:
    """What is waited for, as a sentence, by the resources of Ray's nodes; empty if nothing is, or not any longer."""
    joined = int(sum(resources.get("GPU", 0) for resources in nodes))
    if joined >= wanted or left_s <= 0:
        return ""
    return f"{joined} of the islands' {wanted} GPUs {LACKING}"


def main() -> None:
    """Look again and again. Ray may be away for a while; who reads the log sees why."""
    # Before Ray is loaded, which takes seconds. Process 1 of a container gets only the signals that it asks for, and
    # Kubernetes would wait 30 s before it starts the launcher with the next configuration.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    config, dashboard, wanted = Path(sys.argv[1]), os.environ["RAY_DASHBOARD_URL"], int(sys.argv[2])  # noqa: TID251
    state, said, left_s = "", "", ISLANDS_S

    def awaited() -> str:
        nodes = list_nodes(dashboard, filters=[("state", "=", "ALIVE")])
        return lacking_gpus(wanted, (node.resources_total for node in nodes), left_s)

    while True:
        try:
            client = JobSubmissionClient(dashboard)
            state = turn(config.read_text(), client, time.time_ns(), awaited, again=FAILED in state)
        except Exception as error:  # noqa: BLE001  (what the dashboard cannot answer now, it may with the next look)
            state = f"Ray's dashboard does not answer: {error}"
        if state == SERVED:
            READY.touch()
        else:
            READY.unlink(missing_ok=True)
        if state != said:
            print(state, flush=True)  # noqa: T201
            said = state
        pause_s = RETRY_S if FAILED in state else POLL_S
        time.sleep(pause_s)
        left_s = left_s - pause_s if LACKING in state else ISLANDS_S


if __name__ == "__main__":
    main()
