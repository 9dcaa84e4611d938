"""`archipelago serve`, `status` and `stop`: what is started, asked and ended, in order."""

import contextlib
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatusOverview

from deployments import fleet, local_cluster, run_record
from deployments.access.checking import absolute, tls_of
from deployments.app import HEAD_NODE
from deployments.check import Checked
from deployments.cluster_access import (
    LaunchError,
    Say,
    address_of,
    connect,
    connected,
    discover,
    given_memory_bytes,
    is_reachable,
    start_cluster,
)
from deployments.config import Config
from deployments.config_messages import ConfigError, refused, shown
from deployments.configured_model import model_records, refuse_clashes
from deployments.control.gate import Caller
from deployments.control.wire import Event
from deployments.controller.actor import FleetController
from deployments.controller.records import Intent, ModelRecord, Settings, Store
from deployments.fleet import FleetPlan
from deployments.gpu_memory import GpuMemoryUnknownError
from deployments.ingress import CONTROLLER, NAMESPACE
from deployments.islands import NoGpusError
from deployments.local_cluster import LocalCluster
from deployments.replica import ReplicaReport
from deployments.run_record import RunRecord, ServedModel
from deployments.tiny_models import cache_root, make_model
from placement import Cluster, Layout

POLL_S = 0.25
GONE_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 60.0  # a controller that was killed is back by then, and has heard of the ingresses
Controller = Any  # a handle of the actor FleetController: Ray's types do not follow its methods


def serve(
    checked: Checked, record_path: Path, environ: Mapping[str, str], say: Say, running: RunRecord | None = None
) -> RunRecord:
    """Start everything a checked configuration asks for; returns when requests are answered.

    Where something is ``running`` already, what is configured otherwise is changed, and what is new is added.
    Whatever was started is ended again when a later step fails or the user interrupts.

    Raises:
        LaunchError: a step failed.
        ConfigError: the discovered cluster cannot hold what is configured, or serves it by another engine.
    """
    if running is not None:
        _refuse_other_cluster(checked.config, running)
    for made in sorted({model.source.made for model in checked.models if model.source.made is not None}):
        say(f"making the model {made} (kept for the next time)")
        make_model(made, cache_root(environ))
    begun: list[str] = []
    started = None if running else start_cluster(checked.config.cluster, environ, say)
    cluster = running.cluster if running else started
    if cluster is not None:
        local_cluster.present_token(cluster)
    try:
        connect(cluster.address if cluster else address_of(checked.config))
        where = discover(checked.config)
        served = Store()  # to read only: the controller is the one that writes
        wanted = _wanted(checked, where.cluster, served)
        controller = _controller(checked.config, record_path)
        record = _record(checked.config, wanted, controller, cluster, running)
        run_record.write(record_path, record)
        begun += [one.plan.model for one in wanted if one.plan.model not in served.models]
        _deploy(wanted, controller, say)
    except BaseException as error:
        if started is not None or begun:
            say("taking back what was started")
        with _undisturbed():
            _take_back(started, begun, say)
            run_record.write(record_path, running) if running else run_record.remove(record_path)
        if isinstance(error, NoGpusError | GpuMemoryUnknownError | RayError):
            raise LaunchError(str(error)) from error
        raise
    finally:
        ray.shutdown()
    return record


def stop(record_path: Path, say: Say) -> bool:
    """End what `serve` started, and nothing else; False when nothing was running."""
    record = run_record.read(record_path)
    if record is None:
        return False
    say(f"stopping {', '.join(model.name for model in record.models)}")
    if not is_reachable(record.ray_address):
        say(f"the Ray cluster at {record.ray_address} is gone, and the deployment with it")
    else:
        with connected(record.ray_address, record.cluster):
            _drain(record, say)
            if record.cluster is None:
                _remove([model.name for model in record.models], record.drain_timeout_s, say)
    if record.cluster is not None:
        say(f"{local_cluster.stop(record.cluster)} processes have ended")
    run_record.remove(record_path)
    return True


def _drain(record: RunRecord, say: Say) -> None:
    """Let clients finish, as long as the configuration allows."""
    try:
        controller: Controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        waiting = _close(record, controller, 0, CLOSE_TIMEOUT_S)
        if waiting:
            say(f"waiting for {waiting} requests, for {record.drain_timeout_s:g} s at the most")
            waiting = _close(record, controller, record.drain_timeout_s)
            say(f"{waiting} requests are cut off" if waiting else "all requests are answered")
    except (RayError, ValueError) as error:
        say(f"the fleet controller does not answer, so nothing is waited for: {error}")


def _close(record: RunRecord, controller: Controller, wait_s: float, timeout_s: float | None = None) -> int:
    """Let no model take new requests; how many are left after ``wait_s``."""
    calls = [controller.close.remote(model.name, wait_s) for model in record.models]
    return sum(ray.get(calls, timeout=timeout_s))


def _remove(models: Sequence[str], drain_timeout_s: float, say: Say) -> None:
    """Have the controller end models, and the controller too when those were the last ones."""
    try:
        controller: Controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return
    ray.get([controller.remove.remote(model) for model in models])
    deadline_s = time.monotonic() + drain_timeout_s + GONE_TIMEOUT_S
    while (going := set(models) & set(left := ray.get(controller.models.remote()))) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    if going:
        say(f"not gone yet: {', '.join(sorted(going))}; the fleet controller goes on with it")
    elif not left:
        ray.get(controller.forget_everything.remote())
        ray.kill(controller)
        if not fleet.applications():
            fleet.stop_serve()


def status(record_path: Path) -> list[tuple[ServedModel, dict[str, ReplicaReport | str] | None]] | None:
    """Ask every replica of the running deployment where it is, model by model; None when nothing is running.

    A model that was removed since has None.
    """
    record = run_record.read(record_path)
    if record is None or not run_record.is_alive(record):
        return None
    with connected(record.ray_address, record.cluster):
        controller: Controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        served = ray.get(controller.models.remote())
        return [
            (model, fleet.reports(ray.get(controller.names.remote(model.name))) if model.name in served else None)
            for model in record.models
        ]


def is_serving(url: str) -> bool:
    """Whether an endpoint answers requests now."""
    return run_record.health(url) == httpx.codes.OK


def start_controller(settings: Settings) -> Controller:
    """The fleet controller of the cluster, started if there is none."""
    actor = ray.remote(FleetController).options(
        name=CONTROLLER,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        resources=HEAD_NODE,
    )
    controller: Controller = actor.remote(settings)
    return controller


def _controller(config: Config, record_path: Path) -> Controller:
    token = secrets.token_urlsafe(32)
    settings = Settings(
        secret=secrets.token_urlsafe(32),
        tokens={token: Caller(name="operator", role="operate")},
        host=config.control.host,
        port=config.control.port,
        gpu_memory_bytes=given_memory_bytes(config.cluster),
        state_dir=str(record_path.parent.absolute()),
        keys=absolute(config.control.api_keys),
        tls=tls_of(config.control.tls),
    )
    controller = start_controller(settings)
    there: Settings = ray.get(controller.settings.remote())
    _refuse_other_control(settings, there)
    token, _ = next(iter(there.tokens.items()))
    run_record.write_token(run_record.token_path(record_path), token)
    return controller


def _refuse_other_control(wanted: Settings, there: Settings) -> None:
    """Raise ConfigError where the controller of the cluster, which others may have started, listens otherwise."""
    fields = {"host": "host", "port": "port", "api_keys": "keys", "tls": "tls"}
    here = {field: (getattr(wanted, name), getattr(there, name)) for field, name in fields.items()}
    problems = [
        refused(f"control.{field}", new, f"this cluster's control API has {shown(old)}; give that, or stop it first")
        for field, (new, old) in here.items()
        if new != old
    ]
    if problems:
        raise ConfigError(problems)


def _wanted(checked: Checked, cluster: Cluster, served: Store) -> tuple[ModelRecord, ...]:
    """What to ask the controller for, beside what is served. Raises ConfigError."""
    own = {model.config.name for model in checked.models}
    held: dict[str, list[Layout]] = {}
    for replica in served.replicas.values():
        if replica.model not in own and replica.intent is Intent.RUN:
            held.setdefault(replica.model, []).append(replica.layout)
    wanted = model_records(checked, cluster, held)
    refuse_clashes(wanted, served.models)
    return wanted


def _deploy(wanted: Sequence[ModelRecord], controller: Controller, say: Say) -> None:
    """Have the models served, all at once, and tell what happens until requests to each are answered."""
    newest = ray.get(controller.events.remote(None, None, 0)).newest  # what was before is not our business
    # In this order they choose their places.
    ingresses: dict[str, str] = {record.plan.model: ray.get(controller.serve.remote(record)) for record in wanted}
    timeout_s = max(record.limits.start_timeout_s for record in wanted)
    deadline_s = time.monotonic() + timeout_s
    while waiting := [record.plan for record in wanted if not _is_ready(record.plan, controller)]:
        page = ray.get(controller.events.remote(newest, None, POLL_S))
        newest = page.newest
        for event in page.events:
            if event.model in ingresses:
                _tell(event, say)
        applications = fleet.applications()
        overviews = {plan.model: applications.get(ingresses[plan.model]) for plan in waiting}
        for model, overview in overviews.items():
            if overview is not None and fleet.has_failed(overview):
                raise LaunchError(f"{ingresses[model]} did not start: {fleet.cause_of(overview)}")
        if time.monotonic() > deadline_s:
            late = ", ".join(_late(model, overview) for model, overview in overviews.items())
            raise LaunchError(f"not ready after limits.start_timeout_s = {timeout_s:g} s: {late}")


def _late(model: str, overview: ApplicationStatusOverview | None) -> str:
    why = "" if overview is None else fleet.waits_for(overview)
    return f"{model} ({why})" if why else model


def _is_ready(plan: FleetPlan, controller: Controller) -> bool:
    return is_settled(controller, plan.model) and is_serving(url_of(plan))


def _tell(event: Event, say: Say) -> None:
    if event.kind == "failure":
        who = f"{event.replica} did not start" if event.replica else event.model
        raise LaunchError(f"{who}: {event.text.removeprefix('It is failed: ')}")
    if event.kind != "target":  # what was asked for here
        say(f"{event.replica}: {event.text}" if event.replica else event.text)


def is_settled(controller: Controller, model: str) -> bool:
    """Whether all replicas of the model that are wanted serve, and the ingresses that are wanted have its clients."""
    view = ray.get(controller.read.remote()).fleet(model)
    return view is not None and view.phase == "steady" and view.next_ingress is None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Do not let a second Ctrl-C leave half of it running."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_back(started: LocalCluster | None, begun: Sequence[str], say: Say) -> None:
    if started is not None:
        local_cluster.stop(started)
    elif begun:
        _remove(begun, 0.0, say)


def _refuse_other_cluster(config: Config, running: RunRecord) -> None:
    """Raise ConfigError where what runs was served on another cluster than is configured now."""
    here = config.cluster.model_dump_json()
    if running.configured_cluster not in (None, here):
        there = f"{', '.join(model.name for model in running.models)} is served on {running.configured_cluster}"
        raise ConfigError(
            [refused("cluster", here, f"{there} from this directory; end that first with `archipelago stop`")]
        )


def _record(
    config: Config,
    wanted: Sequence[ModelRecord],
    controller: Controller,
    cluster: LocalCluster | None,
    running: RunRecord | None,
) -> RunRecord:
    settings: Settings = ray.get(controller.settings.remote())
    served = {one.plan.model: ServedModel(name=one.plan.model, url=url_of(one.plan)) for one in wanted}
    others = [model for model in running.models if model.name not in served] if running else []
    drains_s = [one.plan.drain_timeout_s for one in wanted] + ([running.drain_timeout_s] if others and running else [])
    return RunRecord(
        ray_address=ray.get_runtime_context().gcs_address,
        cluster=cluster,
        models=(*served.values(), *others),
        control_url=_url(settings.host, settings.port, is_tls=settings.tls is not None),
        control_certificate=settings.tls.certificate if settings.tls else None,
        drain_timeout_s=max(drains_s),
        configured_cluster=config.cluster.model_dump_json(),
    )


def url_of(plan: FleetPlan) -> str:
    """Where a client on this machine finds the endpoint."""
    return _url(plan.host, plan.port, is_tls=plan.access.tls is not None)


def _url(host: str, port: int, *, is_tls: bool) -> str:
    scheme = "https" if is_tls else "http"
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
