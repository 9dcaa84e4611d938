"""What `archipelago serve` leaves on disk, so that `status` and `stop` in another process find the same system."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from deployments.local_cluster import LocalCluster, processes

HTTP_TIMEOUT_S = 5.0
STATE_DIR_ENV = "ARCHIPELAGO_STATE_DIR"


class RunRecordError(Exception):
    """The record cannot be read; the message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model and where clients find it."""

    name: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One running deployment. ``cluster`` is the cluster that was started for it, if one was.

    ``control_certificate`` is what the control API shows where it speaks TLS. ``configured_cluster`` is the section
    `cluster` that it was served with, as JSON.
    """

    ray_address: str
    cluster: LocalCluster | None
    models: tuple[ServedModel, ...]
    control_url: str
    drain_timeout_s: float
    control_certificate: str | None = None
    configured_cluster: str | None = None


def record_path(environ: Mapping[str, str], cwd: Path) -> Path:
    """Where the record is: ``$ARCHIPELAGO_STATE_DIR``, or ``.archipelago`` in the working directory."""
    return Path(environ.get(STATE_DIR_ENV) or cwd / ".archipelago") / "run.json"


def token_path(record: Path) -> Path:
    """Where the token for the control API is, beside the record."""
    return record.with_name("control-token")


def write_token(path: Path, token: str) -> None:
    """Keep the token where only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)


def read_token(path: Path) -> str:
    """The token. Raises RunRecordError where there is none."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise RunRecordError(
            f"{path} cannot be read ({error.strerror}); it is written by `archipelago serve`"
        ) from error


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
        models = tuple(ServedModel(**model) for model in fields.pop("models"))
        return RunRecord(**fields, models=models, cluster=LocalCluster(**cluster) if cluster else None)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} is not a record of a deployment ({error}); end what it was about by hand and delete it"
        raise RunRecordError(message) from error


def remove(path: Path) -> None:
    """Leave neither the record nor its token behind."""
    path.unlink(missing_ok=True)
    token_path(path).unlink(missing_ok=True)


def is_alive(record: RunRecord) -> bool:
    """Whether anything of a recorded deployment is still there."""
    if record.cluster is not None:
        return any(True for _ in processes(record.cluster))
    return any(health(model.url) is not None for model in record.models)


def ports(record: RunRecord) -> frozenset[int]:
    """Where it listens."""
    found = (urlsplit(url).port for url in (record.control_url, *(model.url for model in record.models)))
    return frozenset(port for port in found if port is not None)


def health(url: str) -> int | None:
    """The status code of an endpoint's ``/health``; None when nothing answers."""
    try:
        # A proxy of the environment would be asked for its own 127.0.0.1.
        # And whose certificate it is does not matter: nothing is sent, and only the status is read.
        return httpx.get(f"{url}/health", timeout=HTTP_TIMEOUT_S, trust_env=False, verify=False).status_code
    except httpx.HTTPError:
        return None
