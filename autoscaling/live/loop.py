"""The loop: lease, fleet, and every model in turn. One tick after another.

Time, the network and sleep come from outside. What goes wrong with one model is said and counted, and the others go on;
what goes wrong with the control API or Prometheus is an observation like any other (`Blind`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from autoscaling.ledger.learnt import Learnt, read_learnt, write_learnt
from autoscaling.ledger.ledger import Ledger
from autoscaling.live.acting import Actor, Control
from autoscaling.live.approvals import frozen
from autoscaling.live.bulletin import Bulletin, Notices
from autoscaling.live.exported import Metrics
from autoscaling.live.fleet_client import ConflictError, FleetError, Overview
from autoscaling.live.steward import Steward, Watched
from autoscaling.settings.settings import ApprovalSettings, Mode


class Controller(Control, Notices, Protocol):
    """What `FleetClient` has. Every method raises `FleetError`."""

    def overview(self) -> Overview: ...

    def hold_lease(self, name: str, holder: str, ttl_s: float) -> float: ...

    def release_lease(self, name: str, holder: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the loop acts. The lease is called `lease`, and `holder` is what this autoscaler calls itself.

    Outcomes are measured over `settle_s`. `directory` has the ledger, answers of people, and what is learnt.
    """

    mode: Mode
    approval: ApprovalSettings
    directory: Path
    settle_s: float
    is_frozen: bool
    holder: str
    lease: str = "autoscaler"
    lease_ttl_s: float = 60.0


class Autoscaler:
    """All models of one control API. Where the disk takes no more of the ledger nothing is done, and that is said.

    Args:
        watched: the models.
        control: the control API.
        ledger: open for writing.
        terms: how to act.
        now: seconds since the epoch.
        say: takes a sentence for whoever watches.
        metrics: the autoscaler's own.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        *,
        control: Controller,
        ledger: Ledger,
        terms: Terms,
        now: Callable[[], float],
        say: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self._control, self._terms, self._now, self._say, self._metrics = control, terms, now, say, metrics
        actor = Actor(
            ledger,
            control,
            mode=terms.mode,
            approval=terms.approval,
            directory=terms.directory,
            lease=None if terms.mode == "advise" else (terms.lease, terms.holder),
            say=say,
        )
        learnt, trouble = read_learnt(terms.directory)
        steward = partial(Steward, actor=actor, ledger=ledger, settle_s=terms.settle_s, metrics=metrics)
        self._stewards = [steward(one, learnt=learnt.get(one.model, Learnt())) for one in watched]
        self._said: dict[str, str] = {}
        self._bulletin = Bulletin(
            control=control,
            ledger=ledger,
            directory=terms.directory,
            mode=terms.mode,
            holder=terms.holder,
            is_frozen=terms.is_frozen,
            now=now,
            say=self._say_once,
        )
        for sentence in (*ledger.troubles, trouble):
            if sentence:
                say(sentence)

    def tick(self) -> None:
        """Look at every model once."""
        may_act = self._may_act()
        if may_act:
            self._bulletin.take()
        is_frozen = self._terms.is_frozen or frozen(self._terms.directory) is not None
        self._metrics.ticked(may_act=may_act, is_frozen=is_frozen)
        if not may_act:
            return
        overview, why = self._overview()
        self._say_once("control", why)
        for steward in self._stewards:
            model = steward.watched.model
            try:
                steward.tick(overview, why, self._now(), is_frozen=is_frozen)
                self._say_once(model, "")
            except Exception as error:  # noqa: BLE001  (a mistake with one model must not stop the others)
                self._metrics.failed(model)
                self._say_once(model, f"{model}: this tick failed: {type(error).__name__}: {error}")
        self._keep_learnt()
        self._bulletin.post({steward.watched.model: steward.watched.rules.slo for steward in self._stewards})

    def run(self, tick_s: float, sleep: Callable[[float], object], is_over: Callable[[], bool]) -> None:
        """Tick every `tick_s` until it is over, then let another autoscaler take over at once."""
        try:
            while not is_over():
                begun_s = self._now()
                self.tick()
                # The clock may have been set back meanwhile, and nobody would watch for as long.
                sleep(min(tick_s, max(0.0, begun_s + tick_s - self._now())))
        finally:
            self.release()

    def release(self) -> None:
        """Give the lease back, so that another autoscaler may go on at once."""
        if self._terms.mode == "advise":
            return
        try:
            self._control.release_lease(self._terms.lease, self._terms.holder)
        except FleetError as error:
            self._say(f"The lease was not given back and runs out by itself: {error}")

    def _may_act(self) -> bool:
        """Whether this is the one autoscaler that acts. One that only advises does not ask, and disturbs nobody."""
        if self._terms.mode == "advise":
            return True
        try:
            self._control.hold_lease(self._terms.lease, self._terms.holder, self._terms.lease_ttl_s)
        except ConflictError as error:
            self._say_once("lease", f"Standing by: {error}")
        except FleetError as error:
            self._say_once("lease", f"Standing by, since the lease cannot be had: {error}")
        else:
            self._say_once("lease", "")
            return True
        return False

    def _overview(self) -> tuple[Overview | None, str]:
        try:
            return self._control.overview(), ""
        except FleetError as error:
            return None, str(error)

    def _keep_learnt(self) -> None:
        try:
            write_learnt(self._terms.directory, {steward.watched.model: steward.learnt for steward in self._stewards})
        except OSError as error:
            self._say_once("learnt", f"What was learnt cannot be kept in {self._terms.directory} ({error.strerror}).")
        else:
            self._say_once("learnt", "")

    def _say_once(self, about: str, sentence: str) -> None:
        """Say what is wrong when it begins, not with every tick."""
        if sentence and self._said.get(about) != sentence:
            self._say(sentence)
        self._said[about] = sentence
