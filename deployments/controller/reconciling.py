"""One turn of the controller: look, decide for each model, act, tell the ingresses."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from deployments import fleet
from deployments.control.events import EventLog
from deployments.control.wire import EventKind
from deployments.controller.executing import Executor
from deployments.controller.ingresses import has_taken_over, ingresses_of, leaving, may_end, why_failed
from deployments.controller.members import membership
from deployments.controller.observing import Observer, World, is_gone, state_of
from deployments.controller.records import Intent, ModelRecord, Store
from deployments.controller.standing import Standing
from deployments.membership import IngressReport, Membership
from deployments.reconcile import (
    Actual,
    Adjusted,
    Desired,
    Durations,
    Next,
    Phase,
    ReplicaState,
    Start,
    Step,
    Way,
    is_owed,
    next_steps,
    survive,
    wanted,
    without_nodes,
)
from placement.layout import Place

GUESSED_START_S = 60.0
GUESSED_STOP_S = 3.0

log = logging.getLogger(__name__)


class Reconciler:
    """The state of the controller between two turns, all of which can be found again after a crash.

    ``unfinished`` tells how many requests the ingresses of a model have, None while that is not known; ``heard`` what
    each of them has said last.
    """

    def __init__(
        self,
        store: Store,
        observer: Observer,
        events: EventLog,
        secret: str,
        unfinished: Callable[[str], int | None],
        heard: Callable[[str], Sequence[IngressReport]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.world = World()
        self.shortfalls: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.memberships: dict[str, Membership] = {}
        self._observer = observer
        self._events = events
        self._secret = secret
        self._executor = Executor(store, events, secret, now)
        self._unfinished = unfinished
        self._heard = heard
        self._now = now
        self._phases: dict[str, tuple[Phase, str]] = {}  # as told last, with the cause
        # Ingresses compare versions of different controllers: start above all that an earlier one has used.
        self._versions = itertools.count(time.time_ns())

    # --- what is, and what is wanted ---

    @property
    def replicas(self) -> tuple[ReplicaState, ...]:
        """All replicas as they were found last, or were changed since."""
        return tuple(state_of(record, self.world) for record in self.store.replicas.values())

    def actual(self) -> Actual:
        """The present, for the reconciler."""
        return Actual(
            now_s=self._now(),
            next_index=self.store.next_index,
            replicas=self.replicas,
            held=frozenset(name for name, record in self.store.models.items() if record.is_held),
            records={name: record.memory for name, record in self.store.models.items()},
        )

    def wish(self, record: ModelRecord, reserved: frozenset[Place] = frozenset()) -> tuple[Desired, str]:
        """What to work towards now, and why that is not the desired state where hardware is missing.

        ``reserved``: GPUs that other models are about to take.
        """
        desired = wanted(record.desired, record.memory.about(record.desired.version))
        others = [one for one in self.replicas if one.model != desired.model and one.phase is not Phase.STOPPING]
        taken = reserved | {place for one in others for place in one.layout.places}
        left = without_nodes(self.world.where.cluster, self.world.leaving)
        adjusted = survive(desired, left, lambda shape: shape in record.shapes, tuple(record.shapes), taken=taken)
        if not isinstance(adjusted, Adjusted):
            return desired, str(adjusted)
        return adjusted.applied_to(desired), adjusted.reason

    def standing(self, record: ModelRecord) -> Standing:
        """How the model is getting on."""
        model = record.plan.model
        wish, shortfall = self.wish(record)
        blocked = self.blocked.get(model, "")
        is_still = all(one.phase is Phase.SERVING for one in self.replicas if one.model == model)
        return Standing(
            pools=wish.pools,
            shortfall=shortfall or blocked or None,
            is_stuck=bool(blocked) and is_still,
            way=self._executor.ways.get(model, Way.SURGE),
            ended=self._executor.ended.get(model, {}),
        )

    def durations(self, record: ModelRecord) -> Durations:
        """What the model's last start and configured drain say about the next."""
        start_s = record.start_s or GUESSED_START_S
        return Durations(start_s=start_s, drain_s=record.limits.drain_timeout_s, stop_s=GUESSED_STOP_S)

    # --- a turn ---

    async def turn(self) -> bool:
        """Go one round; True when there was something to do, or something is on its way.

        Raises:
            ExceptionGroup: what went wrong with some models, when all that concerns the others has been done.
        """
        before, self.world = self.world, await self._observer.look(self.store.replicas)
        self._note_losses(before)
        self._remember_reports()
        await self._bury()
        await self._delete_strays()
        troubles: dict[str, Exception] = {}
        await self._hand_over(troubles)
        self._note_phases(but_of=troubles.keys())
        steps: list[Step] = []
        reserved: frozenset[Place] = frozenset()
        for model in [model for model in self._in_turn() if model not in troubles]:
            with _collected(troubles, model):
                await self._keep_ingresses(model)
                outcome = await self._reconcile(self.store.models[model], reserved)
                steps += outcome.steps
                reserved |= outcome.reserved
        self.publish()
        if troubles:
            raise ExceptionGroup(f"not looked after: {', '.join(troubles)}", list(troubles.values()))
        is_on_its_way = any(self._is_on_its_way(record) for record in self.store.models.values())
        return bool(steps) or is_on_its_way or any(one.phase is not Phase.SERVING for one in self.replicas)

    def _is_on_its_way(self, record: ModelRecord) -> bool:
        """Whether the model goes, or its clients to other ingresses."""
        is_ending = not record.desired.pools
        return is_ending or record.former is not None or bool(leaving(record, self.world.applications))

    def _in_turn(self) -> list[str]:
        """The models, those first that have given up GPUs for a moment, or lost some."""
        actual = self.actual()
        return sorted(
            self.store.models, key=lambda model: is_owed(self.wish(self.store.models[model])[0], actual), reverse=True
        )

    def _note_losses(self, before: World) -> None:
        """Tell of nodes that have gone or are about to go, for whichever models."""
        gpus = {node.name: node.gpus for node in before.where.cluster.nodes}
        for name in sorted(gpus.keys() - self.world.where.selectors.keys()):
            self._events.add("", "loss", f"Node {name} has gone, with {gpus[name]} GPUs.")
        for name in sorted(self.world.leaving.keys() - before.leaving.keys()):
            self._events.add("", "loss", f"Node {name} is about to go: Ray drains it.")

    def _remember_reports(self) -> None:
        """Store where each replica serves, and that it does, and since when.

        By the record, not by what this controller has seen: a replica that broke while there was none begins anew now.
        """
        for one in [one for one in self.store.replicas.values() if one.intent is not Intent.STOP]:
            report = self.world.reports.get(one.name)
            if (report and (report.host, report.port)) == (one.report and (one.report.host, one.report.port)):
                continue
            is_changed = one.intent is Intent.RUN and (report is None) != (one.report is None)
            if is_changed and report and self._phases.get(one.name, (None, ""))[0] is Phase.STARTING:
                model = self.store.models[one.model]
                self.store.put_model(model.with_start(one.layout.shape, self._now() - one.since_s))
            self.store.put_replica(replace(one, report=report, since_s=self._now() if is_changed else one.since_s))

    async def _bury(self) -> None:
        """Forget stopped replicas of which nothing is left, and models that have gone."""
        for one in [one for one in self.store.replicas.values() if one.intent is Intent.STOP]:
            if is_gone(one, self.world):
                self.store.drop_replica(one.name)
                self._phases.pop(one.name, None)
                self._events.add(one.model, "replica", "It has gone.", replica=one.name)
            elif one.name in self.world.applications:
                await asyncio.to_thread(fleet.delete, one.name)
        for model, record in list(self.store.models.items()):
            if record.desired.pools or any(one.model == model for one in self.store.replicas.values()):
                continue
            if ingresses := ingresses_of(record, self.world.applications):
                if self._unfinished(model) == 0:  # else some clients have not been told yet that it is over
                    for name in ingresses:
                        await asyncio.to_thread(fleet.delete, name)
                continue
            self.store.drop_model(model)
            self._executor.forget(model)
            for remembered in (self.shortfalls, self.blocked, self.memberships):
                remembered.pop(model, None)
            self._events.add(model, "reached", "The model is no longer served.")

    async def _delete_strays(self) -> None:
        """Delete replicas and ingresses without a record: nobody else would ever free their GPUs and ports."""
        known = set(self.store.replicas)
        for record in self.store.models.values():
            known |= ingresses_of(record, self.world.applications)
        for name, overview in self.world.applications.items():
            if name not in known and fleet.is_ours(name, overview) and not fleet.is_going(overview):
                self._events.add("", "controller", "It is not on record, so it is deleted.", replica=name)
                await asyncio.to_thread(fleet.delete, name)

    async def _hand_over(self, troubles: dict[str, Exception]) -> None:
        """Have Serve start what was put on record before Serve, or an earlier controller, died over it."""
        for one in self.store.replicas.values():
            is_new = one.name not in self._phases and one.name not in self.world.applications
            has_nodes = {seat.node for seat in one.layout.seats} <= self.world.where.selectors.keys()
            is_late = self._now() - one.since_s >= self.store.models[one.model].limits.start_timeout_s
            if is_new and has_nodes and not is_late and one.intent is Intent.RUN:
                with _collected(troubles, one.model):
                    await self._executor.start(one, self.world.where)
                    await self._see_applications()

    async def _see_applications(self) -> None:
        """Serve knows what was started from now on; until the next look it is as if it had been seen."""
        self.world = replace(self.world, applications=await asyncio.to_thread(fleet.applications))

    def _note_phases(self, but_of: Collection[str]) -> None:
        for one in [one for one in self.replicas if one.model not in but_of]:
            before, cause = self._phases.get(one.name, (None, ""))
            if one.phase is before and one.cause in ("", cause):
                continue
            self._phases[one.name] = one.phase, one.cause
            record = self.store.replicas[one.name]
            if one.phase is Phase.FAILED and before not in (None, one.phase) and record.intent is Intent.RUN:
                self.store.put_replica(replace(record, since_s=self._now()))
            text = f"It is {one.phase}" + (f": {one.cause}" if one.cause else ".")
            self._events.add(one.model, "failure" if one.phase is Phase.FAILED else "replica", text, replica=one.name)

    async def _keep_ingresses(self, model: str) -> None:
        """Start those that are wanted, have the clients come to them, and end those that nobody is with any more."""
        record, found = self.store.models[model], self.world.applications
        if not record.desired.pools:
            return
        former = record.former
        if former is not None and former.ingress not in found:
            await asyncio.to_thread(fleet.start_ingress, former.plan, former.ingress, self._secret)
        if record.ingress not in found:
            await asyncio.to_thread(fleet.start_ingress, record.plan, record.ingress, self._secret)
            return
        reports = self._heard(model)
        if former is not None and (cause := why_failed(record, found, self._now())):
            back = replace(
                record, ingress=former.ingress, plan=former.plan, configured_limits=former.limits, former=None
            )
            self.store.put_model(back)
            text = f"The other settings of the endpoint are given up, and clients stay where they are: {cause}."
            self._events.add(model, "failure", text, replica=record.ingress)
        elif former is not None and has_taken_over(record, found, reports, self._serving(model)):
            self.store.put_model(replace(record, former=None))
            self._events.add(model, "ingress", "New connections come here.", replica=record.ingress)
        for name in leaving(self.store.models[model], found):
            if not fleet.is_going(found[name]) and may_end(found[name], name, reports):
                self._events.add(model, "ingress", "Its last client has gone, and so does it.", replica=name)
                await asyncio.to_thread(fleet.delete, name)

    def _serving(self, model: str) -> list[str]:
        return [one.name for one in self.replicas if one.model == model and one.phase is Phase.SERVING]

    async def _reconcile(self, record: ModelRecord, reserved: frozenset[Place]) -> Next:
        model = record.plan.model
        wish, shortfall = self.wish(record, reserved)
        self._tell(self.shortfalls, model, "replan", shortfall)
        outcome = next_steps(
            self.actual(),
            [wish],
            self.world.where.cluster,
            record.limits,
            self.durations(record),
            leaving=self.world.leaving,
            reserved=reserved,
        )
        self._tell(self.blocked, model, "failure", str(outcome.blocked[model]) if model in outcome.blocked else "")
        self._executor.ways |= outcome.ways
        for step in outcome.steps:
            await self._executor.execute(step, self.world.where)
            if isinstance(step, Start):
                await self._see_applications()
        return outcome

    def _tell(self, said: dict[str, str], model: str, kind: EventKind, text: str) -> None:
        """Make an event of a state, once."""
        before = said.get(model, "")
        if text != before:
            said[model] = text
            self._events.add(model, kind if text else "step", text or f"No longer: {before}")

    # --- for the ingresses ---

    def close(self, model: str) -> None:
        """Have the ingresses refuse new requests for the model, if it is served."""
        record = self.store.models.get(model)
        if record is not None:
            self.store.put_model(replace(record, is_closing=True))
            self.publish()

    def publish(self) -> None:
        """Make a new membership of each model whose fleet looks different to ingresses."""
        for model, record in self.store.models.items():
            before = self.memberships.get(model, Membership())
            now = membership(
                record, self.store.replicas.values(), self.world.reports, self.world.applications, before.version
            )
            if now != before or model not in self.memberships:
                self.memberships[model] = replace(now, version=next(self._versions))


@contextmanager
def _collected(troubles: dict[str, Exception], model: str) -> Iterator[None]:
    """What is wrong with one model must not keep the controller from looking after the others."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  raised again at the end of the turn
        troubles[model] = error
