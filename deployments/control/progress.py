"""Follows a change that was asked for until it is done, over a restart of the controller."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from deployments.control.client import ControlError
from deployments.control.refusals import named
from deployments.control.values import Pools
from deployments.control.wire import EventPage, FleetView

WAIT_S = 5.0  # between two looks at the fleet, where nothing happens
TRIES = 30
PAUSE_S = 2.0  # with TRIES, a minute: a controller that was killed is back by then
_BAD_NEWS = frozenset({"failure", "rollback", "rolled-back"})
Answer = TypeVar("Answer")


class Reader(Protocol):
    """What `ControlClient` has for readers."""

    def fleet(self, model: str) -> FleetView: ...

    def events(self, after: int | None = None, *, model: str | None = None, wait_s: float = 0.0) -> EventPage: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a change ended; the sentence is for people."""

    reached: bool
    sentence: str


def follow(
    client: Reader,
    model: str,
    pools: Pools,
    after: int,
    *,
    say: Callable[[EventPage], None],
    sleep: Callable[[float], None],
) -> Outcome:
    """Say what happens to a model after event number `after`, until it is not being repartitioned any more, or is gone.

    Raises `ControlError` where the control API is away for more than a minute.
    """
    bad_news = ""
    while True:
        view = patiently(lambda: _fleet(client, model), sleep)
        is_over = view is None or _has_ended(view, pools)
        # Read after the fleet, so that what ended it is among these.
        page = patiently(lambda: client.events(after, model=model, wait_s=0.0 if is_over else WAIT_S), sleep)  # noqa: B023
        say(page)
        after = page.newest
        bad_news = next((event.text for event in reversed(page.events) if event.kind in _BAD_NEWS), bad_news)
        if is_over:
            return _outcome(model, view, pools, bad_news)


def patiently(ask: Callable[[], Answer], sleep: Callable[[float], None]) -> Answer:
    """Ask until there is an answer, for about a minute. Raises the last `ControlError`, or at once one that stays."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except ControlError as error:
            if not error.may_pass:
                raise
            sleep(PAUSE_S)
    return ask()


def _fleet(client: Reader, model: str) -> FleetView | None:
    try:
        return client.fleet(model)
    except ControlError as error:
        if error.problem is not None and error.problem.known_models is not None:
            return None  # it is deleted
        raise


def _has_ended(view: FleetView, pools: Pools) -> bool:
    """A model that is removed is there until nothing is left of it, its ingress too."""
    is_going = not pools and not view.desired_pools
    return view.repartition is None and not is_going


def _outcome(model: str, view: FleetView | None, pools: Pools, bad_news: str) -> Outcome:
    if view is None or view.effective_pools == pools:
        is_wanted = view is not None or not pools
        return Outcome(reached=is_wanted, sentence=f"{model} is {'deleted' if view is None else 'at ' + named(pools)}.")
    cause = view.shortfall if view.desired_pools == pools else bad_news
    return Outcome(
        reached=False,
        sentence=f"{model} was not brought to {named(pools)}; it is at {named(view.effective_pools)}: "
        f"{cause or '`archipelago events` has what happened'}.",
    )
