"""The autoscaler's side of the fleet page: it posts the end of its ledger, and takes what people ask for there.

What is asked for becomes the same files that the command line writes, so there is one way from an answer to the ledger.
Where the control API is away, or knows no such page, the autoscaler goes on without.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from autoscaling.ledger.entries import Entry, entry_json
from autoscaling.ledger.ledger import Ledger
from autoscaling.live.approvals import Answer, ApprovalError, Freeze, answer, freeze, frozen, thaw
from autoscaling.live.asked import AskedAnswer, AskedFreeze
from autoscaling.live.fleet_client import AwayError, FleetError
from placement import Slo

MOST_ENTRIES = 12
MOST_OPTIONS = 12
MOST_CHARACTERS = 2000
MOST_NAME_CHARACTERS = 200
MOST_BYTES = 60_000  # the control API takes 64 KiB
_KEPT = ("number", "at_s", "state", "since_s", "before")
_SETTINGS = Freeze(since_s=0.0, by="the settings")


class Notices(Protocol):
    """What `FleetClient` has for the page. Raises `FleetError`."""

    def post_decisions(self, model: str, document: Mapping[str, Any]) -> None: ...

    def answers(self) -> tuple[AskedAnswer, ...]: ...

    def freeze_asked(self) -> AskedFreeze | None: ...

    def freeze_taken(self, number: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulletin:
    """Of one autoscaler. `say` takes what it is about and what is wrong, `""` where nothing is any more.

    That the control API is away the loop says already. `is_frozen` is what the settings say.
    """

    control: Notices
    ledger: Ledger
    directory: Path
    mode: str
    holder: str
    is_frozen: bool
    now: Callable[[], float]
    say: Callable[[str, str], None]

    def take(self) -> None:
        """Take what people have asked for. Who only advises leaves that to the one that acts."""
        if self.mode == "advise":
            return
        try:
            for one in self.control.answers():
                entry = self.ledger.entries.get(one.number)
                # The number alone could be of another ledger, from before this one.
                if entry is not None and (entry.model, entry.at_s, entry.state) == (one.model, one.at_s, "waiting"):
                    given = Answer(is_approved=one.is_approved, by=one.by, why=one.why)
                    answer(self.directory, one.number, given)
            self._take_freeze(self.control.freeze_asked())
        except AwayError:
            return
        except (FleetError, ApprovalError, OSError) as error:
            self.say("asked", f"What people ask for on the fleet page is not taken: {error}")
        else:
            self.say("asked", "")

    def post(self, slos: Mapping[str, Slo]) -> None:
        """Show the last entries of each model."""
        try:
            for model, slo in slos.items():
                self.control.post_decisions(model, self._document(self.ledger.of(model), slo))
        except AwayError:
            return
        except (FleetError, ValueError) as error:  # a figure that is none has no place in JSON
            self.say("shown", f"The fleet page does not show the decisions: {error}")
        else:
            self.say("shown", "")

    def _take_freeze(self, asked: AskedFreeze | None) -> None:
        if asked is None:
            return
        if not asked.is_frozen:
            thaw(self.directory)
        elif frozen(self.directory) is None:
            freeze(self.directory, Freeze(since_s=self.now(), by=asked.by, why=asked.why))
        self.control.freeze_taken(asked.number)

    def _document(self, entries: Sequence[Entry], slo: Slo) -> dict[str, Any]:
        still = _SETTINGS if self.is_frozen else frozen(self.directory)
        shown = [_entry(entry) for entry in entries[-MOST_ENTRIES:]]
        document = {
            "holder": self.holder,
            "mode": self.mode,
            "slo": asdict(slo),
            "frozen": still
            and {"since_s": still.since_s, "by": _short(still.by, MOST_NAME_CHARACTERS), "why": _short(still.why)},
            "entries": shown,
        }
        while shown and len(json.dumps(document)) > MOST_BYTES:
            del shown[0]
        return document


def _entry(entry: Entry) -> dict[str, Any]:
    """An entry as the control API takes it."""
    whole = entry_json(entry)
    decision, outcome = whole["decision"], whole["outcome"]
    options: list[dict[str, Any]] = decision["options"]
    return {
        **{name: whole[name] for name in _KEPT},
        "by": _short(entry.by, MOST_NAME_CHARACTERS),
        "why": _short(entry.why),
        "kind": decision["kind"],
        "cause": decision["cause"],
        "reason": _short(decision["reason"]),
        "target": decision["target"],
        "expected": decision["expected"] and _known(decision["expected"]),
        "options": [_option(option) for option in options[:MOST_OPTIONS]],
        "options_left_out": max(0, len(options) - MOST_OPTIONS),
        "outcome": outcome
        and {"verdict": outcome["verdict"], "why": _short(outcome["why"]), "is_regretted": outcome["is_regretted"]},
    }


def _option(option: Mapping[str, Any]) -> dict[str, Any]:
    return {**option, "price": _known(option["price"]), "why": _short(option["why"])}


def _known(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}


def _short(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
