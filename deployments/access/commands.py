"""The command `archipelago keys`: make API keys, list them, remove them."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from deployments.access.keys import KeyFileError, KeyRecord, Role, digest, new_key, read_keys, sole_writer, write_keys
from deployments.access.priorities import MOST, UNASKED

EXAMPLES = """\
examples:
  archipelago keys add alice                                       prints the key, which is stored nowhere
  archipelago keys add nightly --priority 1                        batch: goes behind all that is interactive
  archipelago keys add ci --requests-per-minute 60 --tokens-per-minute 200000 --expires 30d
  archipelago keys add dashboard --role read                       for the control API
  archipelago keys list
  archipelago keys remove alice                                    takes effect within a second where the file is in use
The file is used where the configuration names it: endpoint.api_keys (role use), control.api_keys (read, operate).
To change a key without a gap: add another one, hand it out, remove the old one.
"""
NARROWEST = 130  # columns; where there is no terminal rich would wrap at 80
_FILE = "api-keys.json"
_AGE = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_ACCEPTED = {
    "name": "letters, digits and . _ @ -, at most 64",
    "priority": f"a whole number from {-MOST} to {MOST}",
}
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
Keys = tuple[KeyRecord, ...]
Command = Callable[[argparse.Namespace, Path], int]


def add_key_commands(commands: Any, state_dir: Callable[[], Path]) -> None:
    """Add `keys`; without --file the keys are in `state_dir`."""
    keys = commands.add_parser(
        "keys",
        help="API keys: make, list and remove them",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = keys.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = actions.add_parser("add", help="make a key; it is printed once and stored nowhere")
    add.add_argument("name", metavar="NAME", help="whose it is; appears in logs and metrics")
    add.add_argument("--role", choices=get_args(Role), default="use", help="what it is for (default: use the endpoint)")
    for unit in ("requests", "tokens"):
        add.add_argument(f"--{unit}-per-minute", type=int, metavar="N", help=f"at most so many {unit}, at each ingress")
    add.add_argument(
        "--priority",
        type=int,
        default=UNASKED,
        metavar="N",
        help="the least priority number that its requests get; lower goes first, above 0 is batch (default: 0)",
    )
    add.add_argument("--expires", metavar="T", help="90m, 12h, 30d, or a date such as 2030-12-31 (UTC)")
    shown = actions.add_parser("list", help="names, limits and ages; never a key")
    shown.add_argument("--json", action="store_true", help="as JSON")
    remove = actions.add_parser("remove", help="let a key in no longer")
    remove.add_argument("name", metavar="NAME", help="as in the list")
    for parser, command in ((add, _add), (shown, _list), (remove, _remove)):
        parser.add_argument("--file", metavar="F", help=f"the key file (default: {_FILE} in the state directory)")
        parser.set_defaults(run=_on_file(command, state_dir))


def _on_file(command: Command, state_dir: Callable[[], Path]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        path = Path(arguments.file) if arguments.file else state_dir() / _FILE
        try:
            return command(arguments, path)
        except KeyFileError as error:
            _say(f"archipelago: {error}")
        except OSError as error:
            _say(f"archipelago: {path}: cannot be written ({error.strerror})")
        return 1

    return run


def _add(arguments: argparse.Namespace, path: Path) -> int:
    now = datetime.now(UTC)
    key, key_id = new_key()
    with sole_writer(path):
        keys = read_keys(path) if path.exists() else ()
        if any(other.name == arguments.name for other in keys):
            raise KeyFileError(f"{path}: there is a key {arguments.name!r} already; give another name, or remove it")
        try:
            record = KeyRecord(
                id=key_id,
                name=arguments.name,
                sha256=digest(key),
                role=arguments.role,
                requests_per_minute=arguments.requests_per_minute,
                tokens_per_minute=arguments.tokens_per_minute,
                priority=arguments.priority,
                created_at=now,
                expires_at=_moment(arguments.expires, now),
            )
        except ValidationError as error:
            raise KeyFileError(_mistake(error)) from error
        write_keys(path, (*keys, record))
    sys.stdout.write(f"{key}\n")  # nothing else, so that KEY=$(archipelago keys add ...) works
    _say(f"{record.name} is in {path}; the key is shown only now")
    return 0


def _mistake(error: ValidationError) -> str:
    detail = error.errors()[0]
    field = str(detail["loc"][0])
    accepted = _ACCEPTED.get(field, "a whole number of at least 1")
    option = "NAME" if field == "name" else f"--{field.replace('_', '-')}"
    return f"{option}: {detail['input']!r} is not accepted; give {accepted}"


def _moment(text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    if match := _AGE.fullmatch(text):
        return now + timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = now
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise KeyFileError(f"--expires: {text!r} is not accepted; give 90m, 12h, 30d, or a date that is to come")
    return moment


def _list(arguments: argparse.Namespace, path: Path) -> int:
    keys = read_keys(path)
    if arguments.json:
        listed = [key.model_dump(mode="json", exclude={"sha256"}) for key in keys]
        sys.stdout.write(f"{json.dumps(listed, indent=2)}\n")
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "ID", "ROLE", "REQUESTS/MIN", "TOKENS/MIN", "PRIORITY", "MADE", "EXPIRES"):
        table.add_column(title, no_wrap=True)
    now = datetime.now(UTC)
    for key in keys:
        limits = (key.requests_per_minute, key.tokens_per_minute)
        end = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}"
        table.add_row(
            key.name,
            key.id,
            key.role,
            *("no limit" if limit is None else f"{limit:,}" for limit in limits),
            str(key.priority),
            f"{key.created_at:%Y-%m-%d %H:%M}",
            f"{end} (past)" if key.is_expired(now) else end,
        )
    Console(width=max(Console().width, NARROWEST)).print(table)
    return 0


def _remove(arguments: argparse.Namespace, path: Path) -> int:
    with sole_writer(path):
        keys = read_keys(path)
        left = tuple(key for key in keys if key.name != arguments.name)
        if len(left) == len(keys):
            names = ", ".join(key.name for key in keys) or "none"
            raise KeyFileError(f"{path}: there is no key {arguments.name!r}; there is {names}")
        write_keys(path, left)
    _say(f"{arguments.name} has gone from {path}")
    return 0


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
