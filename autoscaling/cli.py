"""The commands `archipelago autoscale`, `decisions`, `approve` and `freeze`.

All but the first only read and write files beside the ledger, so they work whether the autoscaler runs or not. What is
wrong is told in one sentence and ends with 1.
"""

import argparse
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from autoscaling.ledger.ledger import Ledger, LedgerError
from autoscaling.live.approvals import ApprovalError
from autoscaling.live.commands import approve, console, decisions, freeze_or_thaw, show, user_name
from autoscaling.live.decisions_table import entries_shown, plain
from autoscaling.live.exported import Metrics
from autoscaling.live.fleet_client import FleetClient, FleetError
from autoscaling.live.loop import Autoscaler, Terms
from autoscaling.live.watching import watched
from autoscaling.observing.prometheus import Prometheus
from autoscaling.policy.rules import RulesError
from autoscaling.settings.messages import SettingsError, reference
from autoscaling.settings.settings import Mode, PrometheusSettings, Settings, read_settings
from placement.given import ERRORS, FindConfig, cluster, model

SETTINGS_FILE = "autoscaler.yaml"
LEAST_LEASE_S, MOST_LEASE_S = 30.0, 3600.0
Connect = Callable[[], FleetClient]
Command = Callable[[argparse.Namespace], int]
_ERRORS = (ApprovalError, FleetError, LedgerError, RulesError, SettingsError, *ERRORS)

AUTOSCALE_EXAMPLES = """\
examples:
  archipelago autoscale                       as autoscaler.yaml says; by default it only writes what it would do
  archipelago autoscale my.yaml --once        one look at every model, and what it would do
  archipelago autoscale --mode approve        ask a person before anything is changed
  archipelago autoscale --fields              every field of the settings
Ctrl-C or SIGTERM ends it; the fleets stay as they are.
"""
DECISIONS_EXAMPLES = """\
examples:
  archipelago decisions                       the last 20 decisions and what came of them
  archipelago decisions --why 17              everything decision 17 weighed, with prices, and its outcome
  archipelago decisions --follow              and those that come
  archipelago decisions -n 500 --json | jq 'select(.outcome.verdict == "worse")'
"""
APPROVE_EXAMPLES = """\
examples:
  archipelago approve 17                      carry out proposal 17, if it is still the right thing to do
  archipelago approve 17 --reject --reason 'a demo at noon'
"""
FREEZE_EXAMPLES = """\
examples:
  archipelago freeze --reason 'a demo at noon'
  archipelago freeze --off
"""


def add_commands(commands: Any, connect: Connect, find_config: FindConfig) -> None:
    """Add the commands to the command line.

    Args:
        commands: of argparse.
        connect: makes a client of the control API where the settings name none; raises `FleetError`.
        find_config: looks up the config.json of a hub id outside the catalogue.
    """

    autoscale = _add(
        commands,
        "autoscale",
        "watch the models and say, or do, what demand asks for",
        AUTOSCALE_EXAMPLES,
        lambda arguments: _autoscale(arguments, connect, find_config),
    )
    autoscale.add_argument("config", nargs="?", metavar="CONFIG", help=f"a YAML file (default {SETTINGS_FILE})")
    autoscale.add_argument("--mode", choices=get_args(Mode), help="instead of the one in the settings")
    autoscale.add_argument("--once", action="store_true", help="look once, show what was decided, and end")
    autoscale.add_argument("--fields", action="store_true", help="describe every field of the settings instead")

    _add_ledger_commands(commands)


def _add_ledger_commands(commands: Any) -> None:
    listing = _add(
        commands, "decisions", "show what the autoscaler decided, and what came of it", DECISIONS_EXAMPLES, decisions
    )
    _add_directory(listing)
    listing.add_argument("-n", type=int, default=20, metavar="N", help="decisions to show (default 20)")
    listing.add_argument("--model", metavar="MODEL", help="only of this model")
    listing.add_argument("--why", type=int, metavar="NUMBER", help="one decision with everything that it weighed")
    listing.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    listing.add_argument("--json", action="store_true", help="print JSON, one value a line")

    answering = _add(commands, "approve", "say yes or no to a proposal of the autoscaler", APPROVE_EXAMPLES, approve)
    _add_directory(answering)
    answering.add_argument("number", type=int, metavar="NUMBER", help="of the proposal")
    answering.add_argument("--reject", action="store_true", help="say no")
    answering.add_argument("--reason", default="", metavar="TEXT", help="why, for the ledger")

    stop = _add(
        commands,
        "freeze",
        "have the autoscaler change nothing until further notice",
        FREEZE_EXAMPLES,
        lambda arguments: freeze_or_thaw(arguments, time.time()),
    )
    _add_directory(stop)
    stop.add_argument("--off", action="store_true", help="allow changes again")
    stop.add_argument("--reason", default="", metavar="TEXT", help="why, for others")


def _add(commands: Any, name: str, summary: str, examples: str, run: Command) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_guarded(run))
    return command


def _add_directory(command: argparse.ArgumentParser) -> None:
    default = Settings.model_fields["directory"].default
    command.add_argument(
        "--directory", type=Path, default=Path(default), metavar="DIR", help=f"of the ledger (default {default})"
    )


def _guarded(run: Command) -> Command:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except _ERRORS as error:
            console(stderr=True).print(plain("archipelago: "), plain(str(error)), sep="", soft_wrap=True)
            return 1

    return guarded


def _autoscale(arguments: argparse.Namespace, connect: Connect, find_config: FindConfig) -> int:
    if arguments.fields:
        show(reference(Settings))
        return 0
    settings = read_settings(Path(arguments.config or SETTINGS_FILE))
    if arguments.mode is not None:
        settings = settings.model_copy(update={"mode": arguments.mode})
    directory = Path(settings.directory)
    with _prometheus(settings.prometheus) as ask, _control(settings, connect) as control, Ledger(directory) as ledger:
        metrics = Metrics()
        autoscaler = Autoscaler(
            [
                watched(
                    one,
                    model=model(one.source, None, find_config),
                    hardware=cluster(one.cluster, field=f"models[{index}].cluster") if one.cluster else None,
                    ask=ask,
                    scrape_interval_s=settings.prometheus.scrape_interval_s,
                )
                for index, one in enumerate(settings.models)
            ],
            control=control,
            ledger=ledger,
            terms=_terms(settings, directory),
            now=time.time,
            say=_say,
            metrics=metrics,
        )
        _serve_metrics(metrics, settings)
        if arguments.once:
            return _once(autoscaler, ledger, settings)
        _say(f"watching {', '.join(one.model for one in settings.models)} in mode {settings.mode}; Ctrl-C ends it")
        is_over = _ended_by_signals()
        autoscaler.run(settings.tick_s, is_over.wait, is_over.is_set)
    return 0


def _once(autoscaler: Autoscaler, ledger: Ledger, settings: Settings) -> int:
    autoscaler.tick()
    autoscaler.release()
    last = [entries[-1] for one in settings.models if (entries := ledger.of(one.model))]
    show(entries_shown(last) if last else "Nothing was decided.")
    return 0 if any(entry.decision.cause != "blind" for entry in last) else 1


def _terms(settings: Settings, directory: Path) -> Terms:
    return Terms(
        mode=settings.mode,
        approval=settings.approval,
        directory=directory,
        settle_s=settings.settle_s,
        is_frozen=settings.freeze,
        holder=f"{user_name()}@{socket.gethostname()}, process {os.getpid()}",
        # Longer than the longest tick, so that it does not go to another while this one is alive: the first look at a
        # model tries every shape, which takes seconds.
        lease_ttl_s=min(MOST_LEASE_S, LEAST_LEASE_S + 3 * settings.tick_s + 10 * len(settings.models)),
    )


def _control(settings: Settings, connect: Connect) -> FleetClient:
    if settings.control is None:
        return connect()
    token = _secret(settings.control.token_env, field="control.token_env", what="token")
    return FleetClient(settings.control.url, token, tls=_authorities(settings.control.ca))


def _secret(variable: str, *, field: str, what: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise SettingsError([f"{field}: ${variable} is not set; give it the {what}"])
    return value


def _authorities(path: str | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError([f"control.ca: {path} cannot be read as certificates; give a file in PEM"]) from error


def _prometheus(settings: PrometheusSettings) -> Prometheus:
    token, password = settings.token_env, settings.password_env
    try:
        return Prometheus(
            settings.url,
            token=None if token is None else _secret(token, field="prometheus.token_env", what="token"),
            user=settings.user,
            password="" if password is None else _secret(password, field="prometheus.password_env", what="password"),
            ca_file=Path(settings.ca) if settings.ca else None,
            timeout_s=settings.timeout_s,
        )
    except ValueError as error:
        raise SettingsError([f"prometheus: {error}"]) from error


def _serve_metrics(metrics: Metrics, settings: Settings) -> None:
    if settings.metrics_port is None:
        return
    try:
        metrics.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        message = f"metrics_port: {settings.metrics_port} cannot be listened on ({error.strerror}); give a free one"
        raise SettingsError([message]) from error


def _ended_by_signals() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM, so that a tick is never torn; a second Ctrl-C ends at once."""
    is_over = threading.Event()

    def end(number: int, frame: object) -> None:
        is_over.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return is_over


def _say(sentence: str) -> None:
    show(plain(f"[{time.strftime('%H:%M:%S')}] {sentence}"))
