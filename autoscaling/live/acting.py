"""What is done about a decision: written down, proposed to a person, or carried out. The same way in every mode.

An entry is in the ledger before anything happens. While the control API is asked its state is `trying`; where there is
no answer, or the autoscaler ends just then, the fleet itself says later whether it heard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoscaling.decision import Decision
from autoscaling.ledger.entries import Basis, Entry, Outcome, State, change_of
from autoscaling.ledger.ledger import Ledger
from autoscaling.live.approvals import forget_answer, take_answer
from autoscaling.live.fleet_client import AwayError, RefusedError, Target
from autoscaling.observation import Fleet, spelled
from autoscaling.settings.settings import ApprovalSettings, Mode

RETRY_S = 60.0  # until what the control API refused is asked for again


class Control(Protocol):
    """What `FleetClient` has for changes. Raises `FleetError`."""

    def set_pools(self, model: str, target: Target) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a decision was made from. `fleet` is None where the control API did not say; then nothing is done.

    `basis` is how far off the cost model is just now.
    """

    model: str
    at_s: float
    fleet: Fleet | None
    basis: Basis | None


class Actor:
    """Carries out decisions. `lease` is sent along with every target: (name, holder), None where nothing is sent."""

    def __init__(
        self,
        ledger: Ledger,
        control: Control,
        *,
        mode: Mode,
        approval: ApprovalSettings,
        directory: Path,
        lease: tuple[str, str] | None,
        say: Callable[[str], None],
    ) -> None:
        self._ledger, self._control, self._mode, self._approval = ledger, control, mode, approval
        self._directory, self._lease, self._say = directory, lease, say

    def settle(self, model: str, fleet: Fleet, at_s: float) -> None:
        """Find out what became of a target whose answer was lost, from what the fleet wants now."""
        for entry in self._in_state(model, "trying"):
            if fleet.desired == entry.target:
                self._move(entry, "acted", at_s, f"The fleet has it as version {fleet.version}.")
            else:
                self._move(entry, "failed", at_s, f"It was not heard: the fleet wants {spelled(fleet.desired)}.")

    def handle(self, seen: Seen, decision: Decision) -> Entry | None:
        """Do what the mode says about a decision; returns the entry that was written or moved, None where none was."""
        fleet = seen.fleet
        if fleet is None or decision.kind == "hold" or decision.target == fleet.desired:
            if decision.cause != "blind":  # of what is not seen now nothing is known, so a proposal stands
                self._withdraw(seen, decision)
            return self._note(seen, decision)
        self._withdraw(seen, decision)
        if self._mode == "advise":
            return self._note(seen, decision)
        if self._mode == "approve":
            return self._propose(seen, fleet, decision)
        failed = self._failed_before(seen, decision)
        if failed is None:
            entry = self._open(seen, decision, "trying")
            self._say(_sentence(entry))
            return self._try(entry, fleet, seen.at_s)
        if 0 <= seen.at_s - failed.since_s < RETRY_S:  # below 0 the clock was set back
            return None
        return self._try(self._move(failed, "trying", seen.at_s), fleet, seen.at_s)

    def judge(self, entry: Entry, outcome: Outcome, at_s: float) -> None:
        """Write down what a change brought."""
        self._ledger.judge(entry, outcome, at_s=at_s)
        self._say(f"{entry.model}: decision {entry.number}, {change_of(entry)}: {outcome.verdict}. {outcome.why}")

    def is_rejected(self, model: str, decision: Decision, at_s: float) -> bool:
        """Whether a person has rejected that lately."""
        return any(
            entry.target == decision.target and at_s - entry.since_s < self._approval.rejected_s
            for entry in self._in_state(model, "rejected")
        )

    def _propose(self, seen: Seen, fleet: Fleet, decision: Decision) -> Entry | None:
        approved = next(iter(self._in_state(seen.model, "approved")), None)
        waiting = approved or next(iter(self._in_state(seen.model, "waiting")), None)
        if waiting is None:
            if self.is_rejected(seen.model, decision, seen.at_s):
                return None
            entry = self._open(seen, decision, "waiting")
            self._say(f"{seen.model}: proposal {entry.number}: {decision.reason} `archipelago approve {entry.number}`")
            return entry
        answered = approved or self._answered(waiting, seen.at_s)
        if answered is None or answered.state != "approved":
            return answered
        # What is known now speaks for the same, or it had been withdrawn: so the approval is for the fleet of now.
        return self._try(self._move(answered, "trying", seen.at_s), fleet, seen.at_s)

    def _answered(self, waiting: Entry, at_s: float) -> Entry | None:
        """A proposal once a person has answered it or nobody has in time; None until then."""
        given = take_answer(self._directory, waiting.number)
        if given is None:
            if at_s - waiting.at_s >= self._approval.expires_s:
                return self._move(waiting, "expired", at_s, "Nobody answered in time.")
            return None
        answered = self._move(waiting, "approved" if given.is_approved else "rejected", at_s, given.why, given.by)
        forget_answer(self._directory, waiting.number)
        return answered

    def _try(self, entry: Entry, fleet: Fleet, at_s: float) -> Entry:
        name, holder = self._lease or (None, None)
        target = Target(
            pools=entry.target,
            reason=f"autoscaler, decision {entry.number}: {entry.decision.reason}",
            if_version=fleet.version,
            lease=name,
            holder=holder,
        )
        try:
            version = self._control.set_pools(entry.model, target)
        except RefusedError as error:
            return self._move(entry, "failed", at_s, str(error))
        except AwayError as error:
            self._say(f"{entry.model}: decision {entry.number}: {error} The fleet will say whether it heard.")
            return entry
        return self._move(entry, "acted", at_s, f"Version {version} of the fleet.")

    def _note(self, seen: Seen, decision: Decision) -> Entry | None:
        """Write down what nothing is done about, unless that is what was written last."""
        last = next(reversed(self._ledger.of(seen.model)), None)
        if last is not None and last.state == "noted" and last.mode == self._mode:
            was = last.decision
            if (was.kind, was.cause, was.target) == (decision.kind, decision.cause, decision.target):
                return None
        entry = self._open(seen, decision, "noted")
        self._say(_sentence(entry))
        return entry

    def _withdraw(self, seen: Seen, decision: Decision) -> None:
        """Take back proposals of anything else, and all of them where there is nobody to be asked any more."""
        for entry in [*self._in_state(seen.model, "waiting"), *self._in_state(seen.model, "approved")]:
            if self._mode != "approve" or entry.target != decision.target:
                self._move(entry, "withdrawn", seen.at_s, f"Now: {decision.reason}")
                forget_answer(self._directory, entry.number)

    def _failed_before(self, seen: Seen, decision: Decision) -> Entry | None:
        last = next(reversed(self._ledger.of(seen.model)), None)
        return last if last is not None and last.state == "failed" and last.target == decision.target else None

    def _open(self, seen: Seen, decision: Decision, state: State) -> Entry:
        return self._ledger.open(
            at_s=seen.at_s,
            model=seen.model,
            mode=self._mode,
            version=seen.fleet.version if seen.fleet else 0,
            before=seen.fleet.desired if seen.fleet else {},
            decision=decision,
            state=state,
            basis=seen.basis,
        )

    def _move(self, entry: Entry, state: State, at_s: float, why: str = "", by: str = "") -> Entry:
        moved = self._ledger.move(entry, state, at_s=at_s, why=why, by=by)
        if state != "trying":
            self._say(f"{entry.model}: decision {entry.number}, {change_of(entry)}, is {state}. {why}".rstrip())
        return moved

    def _in_state(self, model: str, state: State) -> list[Entry]:
        return [entry for entry in self._ledger.of(model) if entry.state == state]


def _sentence(entry: Entry) -> str:
    """A decision with its reason."""
    decision = entry.decision
    return f"{entry.model}: decision {entry.number} ({decision.cause}): {change_of(entry)}. {decision.reason}"
