"""What `archipelago decisions`, `approve` and `freeze` do: read and write files beside the ledger, and print."""

import argparse
import getpass
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from autoscaling.ledger.entries import Entry, entry_json
from autoscaling.ledger.ledger import LedgerError, read_ledger
from autoscaling.live.approvals import Answer, ApprovalError, Freeze, answer, freeze, frozen, thaw
from autoscaling.live.decisions_table import entries_shown, entry_line, entry_shown, plain

NARROWEST = 140  # columns; where there is no terminal rich would wrap at 80
POLL_S = 2.0


def decisions(arguments: argparse.Namespace) -> int:
    """Show the ledger. Raises `LedgerError`."""
    if arguments.n < 1:
        raise LedgerError(f"-n: {arguments.n} is not accepted; give a number of decisions above 0.")
    if arguments.why is not None:
        entry = _entry(arguments.directory, arguments.why)
        show(json.dumps(entry_json(entry)) if arguments.json else entry_shown(entry))
        return 0
    # Of one model there may be few among many.
    reading = read_ledger(arguments.directory, last=arguments.n if arguments.model is None else 100_000)
    for trouble in reading.troubles:
        console(stderr=True).print(plain(f"archipelago: {trouble}"), soft_wrap=True)
    entries = [entry for entry in reading.entries.values() if arguments.model in (None, entry.model)][-arguments.n :]
    if arguments.json:
        for entry in entries:
            show(json.dumps(entry_json(entry)))
    elif entries or not arguments.follow:
        show(entries_shown(entries) if entries else f"No decisions in {arguments.directory} yet.")
    if arguments.follow:
        with suppress(KeyboardInterrupt):
            _follow(arguments, {entry.number: entry for entry in entries})
    return 0


def _follow(arguments: argparse.Namespace, known: dict[int, Entry]) -> None:
    while True:
        time.sleep(POLL_S)
        for number, entry in read_ledger(arguments.directory, last=500).entries.items():
            is_old = known and number < min(known)
            if is_old or known.get(number) == entry or arguments.model not in (None, entry.model):
                continue
            known[number] = entry
            show(json.dumps(entry_json(entry)) if arguments.json else entry_line(entry))


def approve(arguments: argparse.Namespace) -> int:
    """Answer a proposal. Raises `ApprovalError` or `LedgerError`."""
    entry = _entry(arguments.directory, arguments.number)
    if entry.state != "waiting":
        raise ApprovalError(
            f"Decision {entry.number} is {entry.state}, not waiting to be approved. "
            f"{entry.why or '`archipelago decisions` has those that are.'}"
        )
    given = Answer(is_approved=not arguments.reject, by=user_name(), why=arguments.reason)
    answer(arguments.directory, entry.number, given)
    carried_out = (
        "approved: with its next look the autoscaler carries it out, unless what it sees then speaks for something else"
    )
    show(plain(f"Proposal {entry.number} is {'rejected' if arguments.reject else carried_out}."))
    return 0


def freeze_or_thaw(arguments: argparse.Namespace, now_s: float) -> int:
    """Have nothing changed, or allow changes again. Raises `ApprovalError`."""
    if arguments.off:
        was_frozen = thaw(arguments.directory)
        show(plain("Changes are allowed again." if was_frozen else "Changes were allowed already."))
        return 0
    now = frozen(arguments.directory)
    if now is None:
        freeze(arguments.directory, Freeze(since_s=now_s, by=user_name(), why=arguments.reason))
    if not read_ledger(arguments.directory, last=1).entries:  # the wrong directory would freeze nobody
        show(plain(f"No autoscaler has decided anything in {arguments.directory} so far; --directory names another."))
    show(plain("Nothing is changed until `archipelago freeze --off`." + (f" {now.by} said so." if now else "")))
    return 0


def _entry(directory: Path, number: int) -> Entry:
    entries = read_ledger(directory, number=number).entries
    if number not in entries:
        newest = max(read_ledger(directory, last=1).entries, default=None)
        there = f"the newest is {newest}" if newest else f"{directory} has none yet"
        raise LedgerError(f"There is no decision {number}: {there}.")
    return entries[number]


def user_name() -> str:
    """Whoever runs this command, for the ledger and the lease."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def show(shown: RenderableType) -> None:
    """Lines as long as they are, for those that come after a pipe; tables as wide as the terminal."""
    console().print(shown, markup=False, soft_wrap=isinstance(shown, str | Text))


def console(*, stderr: bool = False) -> Console:
    """A terminal, or lines wide enough to be read where there is none."""
    found = Console(highlight=False, stderr=stderr)
    if not found.is_terminal:
        found.width = max(found.width, NARROWEST)
    return found
