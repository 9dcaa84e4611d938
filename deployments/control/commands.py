"""The commands `archipelago fleet`, `repartition`, `scale`, `remove`, `events` and `audit`, over the control API."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from deployments.config_messages import problems_of
from deployments.control.client import ControlClient, ControlError
from deployments.control.fleet_table import audit_shown, event_lines, fleets_shown, forecast_shown, plain
from deployments.control.progress import follow, patiently
from deployments.control.wire import Accepted, EventPage, FleetView, Limits, PoolsTarget, Way
from deployments.program import INTERRUPTED
from placement import Shape, ShapeError
from placement.quantities import QuantityError, fraction, seconds

NARROWEST = 140  # columns; where there is no terminal rich would wrap at 80
REFRESH_S = 2.0
REASON = "asked for on the command line"
Connect = Callable[[], ControlClient]
Command = Callable[[argparse.Namespace, ControlClient], int]

FLEET_EXAMPLES = """\
examples:
  archipelago fleet                         the hardware and every model
  archipelago fleet my-model --watch        one model, drawn again when something happens
  archipelago fleet --json | jq '.fleets[].desired_pools'
"""
REPARTITION_EXAMPLES = """\
examples:
  archipelago repartition my-model tp4pp2 --dry-run       the steps, the stall and the GPUs it takes
  archipelago repartition my-model tp4pp2                 the same, then asks, then follows it to its end
  archipelago repartition my-model tp2 --replicas 3 --way rolling --floor 50% --yes
Ends with 0 when the new shape serves, with 1 when it was refused or rolled back. Ctrl-C ends only this command (130).
"""
SCALE_EXAMPLES = """\
examples:
  archipelago scale my-model tp2=3                three replicas of tp2; pools that are not named stay as they are
  archipelago scale my-model tp2=0 tp4=2          no replica of tp2, two of tp4
"""
REMOVE_EXAMPLES = """\
examples:
  archipelago remove my-model --dry-run           what would be drained and stopped
  archipelago remove my-model --reason 'replaced by my-model-2' --drain-timeout 60
New requests are refused at once. Those that run may finish; what still runs after the drain timeout ends with an error.
Ends with 0 when nothing is left of the model. Other models go on; `archipelago serve` brings this one back.
"""
EVENTS_EXAMPLES = """\
examples:
  archipelago events                              what happened lately
  archipelago events my-model --follow            and what happens from now on, of one model
"""
AUDIT_EXAMPLES = """\
examples:
  archipelago audit                               the last 20 requests to change something, and what came of them
  archipelago audit --limit 500 --json            one JSON value a line
"""


def add_fleet_commands(commands: Any, connect: Connect) -> None:
    """Add the commands to the command line; `connect` reaches the control API, and raises `ControlError`."""

    def add(name: str, summary: str, examples: str, run: Command) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="print JSON, one value a line")
        command.set_defaults(run=_guarded(run, connect))
        return command

    fleet = add("fleet", "show the replicas of every model: shape, place, load, health", FLEET_EXAMPLES, _fleet)
    fleet.add_argument("model", nargs="?", metavar="MODEL", help="only this model")
    fleet.add_argument("--watch", action="store_true", help="show it again when something happens, until Ctrl-C")

    repartition = add("repartition", "cut a model anew while it serves", REPARTITION_EXAMPLES, _repartition)
    repartition.add_argument("model", metavar="MODEL")
    repartition.add_argument("shape", metavar="SHAPE", help="how each replica is to be cut: tp4, tp2pp2, ...")
    repartition.add_argument(
        "--replicas", type=int, metavar="N", help="replicas of that shape (default: what the model's GPUs now hold)"
    )
    _add_change(repartition)

    scale = add("scale", "say how many replicas of a shape a model has", SCALE_EXAMPLES, _scale)
    scale.add_argument("model", metavar="MODEL")
    scale.add_argument("pools", nargs="+", metavar="SHAPE=N", help="a shape and its number of replicas: tp2=3")
    _add_change(scale)

    remove = add("remove", "serve a model no longer, and free its GPUs", REMOVE_EXAMPLES, _remove)
    remove.add_argument("model", metavar="MODEL")
    remove.set_defaults(way=None, floor=None, max_stall=None)
    _add_asking(remove)

    events = add("events", "show what happened to the fleets", EVENTS_EXAMPLES, _events)
    events.add_argument("model", nargs="?", metavar="MODEL", help="only of this model")
    events.add_argument("--follow", action="store_true", help="go on until Ctrl-C")

    audit = add("audit", "show who asked for what, and what came of it", AUDIT_EXAMPLES, _audit)
    audit.add_argument("--limit", type=int, default=20, metavar="N", help="entries to show (default 20)")


def _add_change(command: argparse.ArgumentParser) -> None:
    command.add_argument("--way", choices=get_args(Way), help="how to get there (default: the best the limits allow)")
    command.add_argument("--floor", metavar="F", help="share of the capacity that keeps serving: 0.5, 50%%")
    command.add_argument("--max-stall", metavar="S", help="longest time a stream may stand still: 2, 500ms")
    _add_asking(command)


def _add_asking(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--drain-timeout", metavar="S", help="how long a replica that goes may finish requests (default: as configured)"
    )
    command.add_argument("--reason", metavar="TEXT", default=REASON, help="why, for the events and the audit log")
    command.add_argument("--dry-run", action="store_true", help="show the steps and change nothing")
    command.add_argument("--yes", action="store_true", help="do not ask before it begins")


def _guarded(run: Command, connect: Connect) -> Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            with connect() as client:
                return run(arguments, client)
        except ValidationError as error:
            message = "; ".join(problems_of(error, PoolsTarget.model_json_schema()))
        except (ControlError, ShapeError, QuantityError) as error:
            message = str(error)
        _console(stderr=True).print(plain(f"archipelago: {message}"), soft_wrap=True)
        return 1

    return guarded


def _fleet(arguments: argparse.Namespace, client: ControlClient) -> int:
    def show() -> RenderableType | str:
        found = client.overview()
        chosen = found.fleets if arguments.model is None else (client.fleet(arguments.model),)
        if arguments.json:
            return _json(found if arguments.model is None else chosen[0])
        return fleets_shown(found.cluster, chosen)

    if not arguments.watch:
        _print(show())
        return 0
    return _until_interrupted(lambda: _watch(arguments, client, show))


def _watch(arguments: argparse.Namespace, client: ControlClient, show: Callable[[], RenderableType | str]) -> None:
    newest = client.events().newest
    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown = patiently(show, time.sleep)
            if isinstance(shown, str) or not console.is_terminal:
                _print(shown)
            else:
                live.update(shown, refresh=True)
            newest = patiently(lambda: client.events(newest, wait_s=REFRESH_S), time.sleep).newest  # noqa: B023


def _repartition(arguments: argparse.Namespace, client: ControlClient) -> int:
    shape = Shape.parse(arguments.shape)
    now = client.fleet(arguments.model)
    held_gpus = sum(Shape.parse(text).gpus * replicas for text, replicas in now.desired_pools.items())
    replicas = max(1, held_gpus // shape.gpus) if arguments.replicas is None else arguments.replicas
    if replicas < 1:
        raise ControlError(f"--replicas: {replicas} is not accepted; give a whole number above 0.")
    return _change(arguments, client, now, {str(shape): replicas})


def _scale(arguments: argparse.Namespace, client: ControlClient) -> int:
    wanted: dict[str, int] = {}
    for text in arguments.pools:
        shape_text, _, count = text.partition("=")
        shape = str(Shape.parse(shape_text))
        if not count.isdecimal() or shape in wanted:
            raise ControlError(f"{text!r} is not accepted; give each shape once, with its replicas: tp2=3.")
        wanted[shape] = int(count)
    now = client.fleet(arguments.model)
    return _change(arguments, client, now, {**now.desired_pools, **wanted})


def _remove(arguments: argparse.Namespace, client: ControlClient) -> int:
    return _change(arguments, client, client.fleet(arguments.model), {})


def _change(arguments: argparse.Namespace, client: ControlClient, now: FleetView, pools: Mapping[str, int]) -> int:
    """Show what a change would do, ask, ask for it, and follow it to its end."""
    limits = Limits(
        floor=None if arguments.floor is None else fraction(arguments.floor, field="--floor"),
        max_stall_s=_seconds(arguments.max_stall, "--max-stall"),
        drain_timeout_s=_seconds(arguments.drain_timeout, "--drain-timeout"),
    )
    # With the version that was looked at: whoever says yes says it to this forecast.
    target = PoolsTarget(
        pools=pools, reason=arguments.reason, way=arguments.way, limits=limits, if_version=now.version, retry=True
    )
    preview = client.set_pools(now.model, target.model_copy(update={"dry_run": True}))
    _print(_json({"preview": preview}) if arguments.json else forecast_shown(now.model, target.pools, preview))
    if preview.forecast.infeasible is not None or arguments.dry_run:
        return 0 if preview.forecast.infeasible is None else 1
    if preview.changed and not arguments.yes and not _agreed(arguments, target, now):
        return 1
    newest = client.events(model=now.model).newest
    return _followed(arguments, client, now.model, target, client.set_pools(now.model, target), newest)


def _agreed(arguments: argparse.Namespace, target: PoolsTarget, now: FleetView) -> bool:
    if arguments.json or not sys.stdin.isatty():
        raise ControlError("There is nobody to ask; give --yes to begin, or --dry-run to see only this.")
    if not target.pools:
        running = sum(replica.unfinished_requests for replica in now.replicas)
        _print(plain(f"This stops every replica and deletes the model. New requests are refused; {running} run now."))
    return _console().input("Go ahead? [y/N] ").strip().lower() in {"y", "yes"}


def _followed(
    arguments: argparse.Namespace, client: ControlClient, model: str, target: PoolsTarget, taken: Accepted, after: int
) -> int:
    def say(page: EventPage) -> None:
        _print_page(page, as_json=arguments.json)

    if arguments.json:
        _print(_json({"accepted": taken}))
    try:
        outcome = follow(client, model, target.pools, after, say=say, sleep=time.sleep)
    except KeyboardInterrupt:
        _console(stderr=True).print(
            plain(f"archipelago: the change of {model} goes on; see `archipelago fleet {model} --watch`"),
            soft_wrap=True,
        )
        return INTERRUPTED
    _print(_json({"outcome": outcome}) if arguments.json else plain(outcome.sentence))
    return 0 if outcome.reached else 1


def _events(arguments: argparse.Namespace, client: ControlClient) -> int:
    page = client.events(model=arguments.model)
    _print_page(page, as_json=arguments.json)
    if not arguments.follow:
        return 0

    def follow_on() -> None:
        newest = page.newest
        while True:
            more = patiently(lambda: client.events(newest, model=arguments.model, wait_s=30.0), time.sleep)  # noqa: B023
            _print_page(more, as_json=arguments.json)
            newest = more.newest

    return _until_interrupted(follow_on)


def _audit(arguments: argparse.Namespace, client: ControlClient) -> int:
    entries = client.audit(arguments.limit)
    for shown in map(_json, entries) if arguments.json else [audit_shown(entries)]:
        _print(shown)
    return 0


def _until_interrupted(work: Callable[[], None]) -> int:
    with suppress(KeyboardInterrupt):
        work()
    return 0


def _print_page(page: EventPage, *, as_json: bool) -> None:
    if as_json and page.gap is not None:
        _print(_json({"gap": page.gap}))
    for shown in [_json({"event": event}) for event in page.events] if as_json else event_lines(page):
        _print(shown)


def _seconds(text: str | None, field: str) -> float | None:
    return None if text is None else seconds(text, field=field, unit="s", zero_ok=True)


def _json(value: BaseModel | Mapping[str, Any]) -> str:
    return to_json(value).decode()


def _print(shown: RenderableType | str) -> None:
    """Lines as long as they are, for those that come after a pipe; tables as wide as the terminal."""
    _console().print(shown, markup=False, soft_wrap=isinstance(shown, str | Text))


def _console(*, stderr: bool = False) -> Console:
    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST)
    return console
