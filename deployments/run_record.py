"""What `archipelago serve` leaves on disk, so that `status` and `stop` in another process find the same system."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from deployments.local_cluster import LocalCluster, processes

HTTP_TIMEOUT_S = 5.0
STATE_DIR_ENV = "ARCHIPELAGO_STATE_DIR"


class RunRecordError(Exception):
    """The record cannot be read; the message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One running deployment. ``cluster`` is the simulated cluster that was started for it, if one was."""

    ray_address: str
    cluster: LocalCluster | None
    model: str
    url: str
    ingress: str
    replicas: tuple[str, ...]
    drain_timeout_s: float


def record_path(environ: Mapping[str, str], cwd: Path) -> Path:
    """Where the record is: ``$ARCHIPELAGO_STATE_DIR``, or ``.archipelago`` in the working directory."""
    return Path(environ.get(STATE_DIR_ENV) or cwd / ".archipelago") / "run.json"


def write(path: Path, record: RunRecord) -> None:
    """Replace the record in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(record), indent=2))
    draft.replace(path)


def read(path: Path) -> RunRecord | None:
    """Read the record; None when nothing was started.

    Raises:
        RunRecordError: the file is none that this version writes.
    """
    try:
        fields = json.loads(path.read_text())
        cluster = fields.pop("cluster")
        replicas = tuple(fields.pop("replicas"))
        return RunRecord(**fields, replicas=replicas, cluster=LocalCluster(**cluster) if cluster else None)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} is not a record of a deployment ({error}); end what it was about by hand and delete it"
        raise RunRecordError(message) from error


def is_alive(record: RunRecord) -> bool:
    """Whether anything of a recorded deployment is still there."""
    if record.cluster is not None:
        return any(True for _ in processes(record.cluster))
    return health(record.url) is not None


def health(url: str) -> int | None:
    """The status code of an endpoint's ``/health``; None when nothing answers."""
    try:
        # A proxy of the environment would be asked for its own 127.0.0.1.
        return httpx.get(f"{url}/health", timeout=HTTP_TIMEOUT_S, trust_env=False).status_code
    except httpx.HTTPError:
        return None
