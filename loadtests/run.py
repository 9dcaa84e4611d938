"""Runs a scenario: sees that something answers, starts Locust, brings about the events, merges the records."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from loadtests.answers import said
from loadtests.chaos import Actor, Chaos
from loadtests.merging import merged
from loadtests.plan import PLAN_ENV, Folder, Plan
from loadtests.records import Record, Run, read_run, write_run
from loadtests.scenario import Scenario
from loadtests.schedule import Request, requests_of

_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_ANSWER_S = 10.0
_START_S = 120.0  # until all workers are ready
_END_S = 60.0  # from the last moment a request may take to the end of all processes
_POLL_S = 0.1
_LOG_CHARACTERS = 2000


class LoadError(Exception):
    """A run that cannot be, or was not; the message is a sentence for the user."""


def run(
    scenario: Scenario, out_dir: Path, environ: Mapping[str, str] = os.environ, *, ui_port: int | None = None
) -> Path:
    """Run a scenario and return the path of its records, in `out_dir`, which is made.

    With `ui_port`, Locust's own page is there while the run goes on. Raises LoadError, TraceError and RecordsError, all
    but the first before anything is sent.
    """
    requests = tuple(requests_of(scenario)) if scenario.is_open else ()
    if scenario.is_open and not requests:
        raise LoadError(
            f"{scenario.name}: no request arrives in {scenario.duration_s:g} s; raise the rate or duration_s"
        )
    reference = _reference(scenario, requests)
    parts = urlsplit(scenario.url)
    model = _model(scenario, environ)
    folder = Folder(path=out_dir)
    _clear(folder, scenario.workers)
    host = f"{parts.scheme}://{parts.netloc}"
    plan = Plan(scenario=scenario.model_copy(update={"url": host}), model=model, base_path=parts.path)
    folder.plan.write_text(plan.to_json(), encoding="utf-8")

    def actor(wait: Callable[[float], bool]) -> Actor:
        return Actor(model=model, control=scenario.control, environ=environ, wait=wait)

    with Chaos(scenario.events, actor) as chaos:
        with _locust(scenario, folder, environ, ui_port) as locust:
            started_at = _wait_for_start(locust, folder)
            chaos.start(started_at)
            _wait_for_end(locust, started_at + scenario.duration_s + scenario.drain_s + _END_S)
        events = chaos.finish()
    header, records = merged(scenario, folder, requests, reference)
    header |= {"model": model, "started_at": datetime.fromtimestamp(started_at, UTC).isoformat()}
    write_run(folder.records, Run(header=header, events=events, records=records))
    return folder.records


def _model(scenario: Scenario, environ: Mapping[str, str]) -> str:
    """The model to ask for, once the endpoint has answered."""
    url = f"{scenario.url}/v1/models"
    key = environ.get(scenario.api_key_env) if scenario.api_key_env else None
    if scenario.api_key_env and not key:
        raise LoadError(f"api_key_env: the environment variable {scenario.api_key_env} is not set")
    try:
        answer = httpx.get(
            url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=_ANSWER_S, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise LoadError(
                f"the certificate of {scenario.url} is not trusted ({error}); give a --url with one that a known "
                "authority has signed"
            ) from error
        raise LoadError(
            f"nothing answers at {scenario.url} ({error}); start a server there (`make serve`), or give another --url"
        ) from error
    if answer.is_redirect:
        raise LoadError(f"{url} leads to {answer.headers.get('location')}; give the URL that it leads to")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        remedy = f"the key in {scenario.api_key_env} is not accepted" if key else "it needs an API key"
        raise LoadError(
            f"{url} refuses us (HTTP 401: {said(answer.content)}); {remedy}: name the environment "
            "variable that has the right one in the scenario's api_key_env"
        )
    if scenario.model:
        return scenario.model
    try:
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
        raise LoadError(f"{url} does not name a model (HTTP {answer.status_code}); give one with --model") from error


def _reference(scenario: Scenario, requests: Sequence[Request]) -> Mapping[int, Record]:
    """The records whose texts must come again, by request. Raises LoadError where they are of other requests."""
    if scenario.check_text is None:
        return {}
    found = {record.id: record for record in read_run(Path(scenario.check_text)).records if record.text_sha}
    for request in requests:
        record = found.get(request.id)
        asked = (request.input_tokens, request.output_tokens)
        if record and (record.asked_input_tokens, record.asked_output_tokens) != asked:
            raise LoadError(
                f"check_text: {scenario.check_text} is of another scenario or seed: its request {request.id} has other "
                "lengths"
            )
    if not found:
        raise LoadError(f"check_text: {scenario.check_text} has no hashes of texts; run it with greedy: true")
    return found


def _clear(folder: Folder, workers: int) -> None:
    """A folder without traces of an earlier run."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadError(f"the results cannot be written to {folder.path}: {error.strerror}") from error
    old = [folder.started, folder.records]
    for worker in range(workers):
        old += [folder.worker_records(worker), folder.worker_figures(worker)]
    for path in old:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locust(
    scenario: Scenario, folder: Folder, environ: Mapping[str, str], ui_port: int | None
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--host", scenario.url, "--only-summary"]
    command += ["-u", str(scenario.workers), "-r", str(scenario.workers), "--csv", str(folder.path / "locust")]
    command += (
        ["--headless"] if ui_port is None else ["--autostart", "--web-host", "127.0.0.1", "--web-port", str(ui_port)]
    )
    if scenario.workers > 1:
        command += ["--processes", str(scenario.workers)]
    # Locust reads LOCUST_* and its configuration files; only what is said here shall count.
    env = {name: value for name, value in environ.items() if not name.startswith("LOCUST_")}
    env |= {PLAN_ENV: str(folder.path.resolve())}
    with folder.log.open("wb") as log:
        locust = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield locust
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(locust.pid, signal.SIGKILL)  # a worker that outlived its master, too
            locust.wait()


def _wait_for_start(locust: subprocess.Popen[bytes], folder: Folder) -> float:
    until_s = time.monotonic() + _START_S
    while not folder.started.exists():
        if locust.poll() is not None or time.monotonic() > until_s:
            said = folder.log.read_text(errors="replace").strip()[-_LOG_CHARACTERS:]
            raise LoadError(f"Locust did not start:\n{said}")
        time.sleep(_POLL_S)
    return float(json.loads(folder.started.read_text(encoding="utf-8"))["at"])


def _wait_for_end(locust: subprocess.Popen[bytes], until: float) -> None:
    """Wait for Locust; what goes on after `until` (wall clock) is ended by who started it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        locust.wait(max(0.0, until - time.time()))
