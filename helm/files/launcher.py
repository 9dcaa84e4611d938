"""Keeps one configuration served on a Ray cluster: submits `archipelago serve` as a Ray job where it is due.

It is due when no job of ours is on record, which is so on a new head, or when the newest one was for another
configuration or failed. Ray's record of jobs lives and dies with the fleet, so nothing has to be remembered here: this
process may end at any time, and starting it again disturbs nobody. `serve` ends when requests are answered; the fleet
stays, with the controller that it started.
"""

import hashlib
import os
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PREFIX = "archipelago-serve-"
POLL_S = 10.0
RETRY_S = 60.0  # after a failure
READY = Path("/tmp/ready")
SERVED = "requests are answered as configured"
FAILED = "`archipelago serve` failed, as above"
# The record of an earlier run would have `serve` refuse; what runs already it finds at the fleet controller.
COMMAND = 'mkdir -p "$ARCHIPELAGO_STATE_DIR" && rm -f "$ARCHIPELAGO_STATE_DIR/run.json" && '
COMMAND += 'file=$(mktemp) && printf %s {text} > "$file" && exec archipelago serve "$file"'


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


def due(jobs: Iterable[Job], wanted: str) -> str:
    """What to do for the configuration with the digest `wanted`; `done` is nothing, as it is served already."""
    ours = sorted((job for job in jobs if job.name.startswith(PREFIX)), key=lambda job: job.start_ms)
    if any(job.status in ("PENDING", "RUNNING") for job in ours):
        return "wait"
    if not ours or not ours[-1].name.startswith(f"{PREFIX}{wanted}-"):
        return "submit"
    return "done" if ours[-1].status == "SUCCEEDED" else "clear"


def turn(text: str, client: "JobSubmissionClient", now_ns: int) -> str:
    """Look at the cluster, do what is due, say what that was. Raises whatever Ray raises when it does not answer."""
    wanted = digest(text)
    jobs = [
        Job(name=job.submission_id, status=job.status.value, start_ms=job.start_time or 0)
        for job in client.list_jobs()
        if job.submission_id
    ]
    match due(jobs, wanted):
        case "done":
            return SERVED
        case "wait":
            return "`archipelago serve` is running"
        case "clear":
            last = max((job for job in jobs if job.name.startswith(PREFIX)), key=lambda job: job.start_ms).name
            log = client.get_job_logs(last)
            client.delete_job(last)  # so that the next look submits it again
            return f"{log}\n{FAILED}; it is tried again in {RETRY_S:g} s"
    name = f"{PREFIX}{wanted}-{now_ns}"
    client.submit_job(entrypoint=entrypoint(text), submission_id=name)
    return f"submitted {name}"


def main() -> None:
    """Look again and again. Ray may be away for a while; who reads the log sees why."""
    from ray.job_submission import JobSubmissionClient

    config, dashboard, said = Path(sys.argv[1]), os.environ["RAY_DASHBOARD_URL"], ""  # noqa: TID251  (the edge)
    while True:
        try:
            state = turn(config.read_text(), JobSubmissionClient(dashboard), time.time_ns())
            if state == SERVED:
                READY.touch()
            else:
                READY.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001  (what the dashboard cannot answer now, it may with the next look)
            state = f"Ray's dashboard does not answer: {error}"
        if state != said:
            print(state, flush=True)  # noqa: T201
            said = state
        time.sleep(RETRY_S if FAILED in state else POLL_S)


if __name__ == "__main__":
    main()
