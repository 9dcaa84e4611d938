"""Whatever dies, hangs, leaves or comes back, in whatever order: the controller brings the fleet where it should be.

The real controller over a Serve in memory, which refuses to start anything twice or on GPUs that are taken.
"""

import math
from contextlib import suppress
from typing import Any

import pytest
from controller_builders import MODEL, START_S, Crash, MemoryServe, model_record, without
from controller_running import Controller, check_nothing_is_left_over, members, membership
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_builders import cluster_of

WHOLE = cluster_of(2, 2)
NODES = [node.name for node in WHOLE.nodes]
POOLS = ["1 tp1", "2 tp1", "4 tp1", "1 tp2", "2 tp2", "2 pp2", "1 tp2pp2", "1 tp1, 1 tp2"]

Action = tuple[str, int]

# Each pair is an action and what it acts on: a node, a replica, or pools.
actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["turn"] * 6 + ["ask"] * 2 + ["crash", "crash_soon", "die", "fail", "lose", "come_back", "give_notice"]
            + ["serve_dies", "serve_is_back", "hang", "answer", "refuse", "take"]
        ),
        st.integers(0, 7),
    ),
    max_size=30,
)  # fmt: skip


class Played:
    """A controller, and all that happens to it."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.serve = controller.serve
        self.excused: set[str] = set()  # replicas that may vanish without having been drained

    def act(self, action: str, number: int) -> None:
        getattr(self, action)(number)

    def ask(self, number: int) -> None:
        try:
            self.controller.ask(POOLS[number])
        except Crash:
            self.controller.begin()

    def crash(self, number: int) -> None:
        self.controller.begin()

    def crash_soon(self, number: int) -> None:
        self.serve.crash_before = self.serve.calls + number

    def die(self, number: int) -> None:
        """The process of a replica."""
        names = sorted(name for name, app in self.serve.apps.items() if app.layout)
        if names:
            self.serve.apps[names[number % len(names)]].die(self.serve.now_s)
            self.excused.add(names[number % len(names)])

    def fail(self, number: int) -> None:
        """Some starts, from now on, and some of what runs."""
        self.serve.doomed = lambda name: name[-1] in "0123456789"[number % 3 :: 3]
        self.excused |= self.serve.apps.keys()

    def lose(self, number: int) -> None:
        self.serve.cluster = without(WHOLE, [self.leave(number)])

    def give_notice(self, number: int) -> None:
        self.serve.leaving = {self.leave(number): self.serve.now_s + (0.0, 120.0, math.inf)[number % 3]}

    def leave(self, number: int) -> str:
        """A node that goes, and all that is there with it."""
        node = NODES[number % len(NODES)]
        on_it = (name for name, app in self.serve.apps.items() if node in {where for where, _ in app.seats})
        self.excused |= set(on_it)
        return node

    def come_back(self, number: int) -> None:
        self.serve.cluster, self.serve.leaving = WHOLE, {}

    def serve_dies(self, number: int) -> None:
        self.serve.recovers = True

    def serve_is_back(self, number: int) -> None:
        self.serve.recovers = False

    def hang(self, number: int) -> None:
        """Some replicas are too busy to answer the controller."""
        self.serve.silent = lambda name: name[-1] in "0123456789"[number % 2 :: 2]

    def answer(self, number: int) -> None:
        self.serve.silent = lambda name: False

    def refuse(self, number: int) -> None:
        self.serve.refuses = lambda name: True

    def take(self, number: int) -> None:
        self.serve.refuses = lambda name: False

    def turn(self, number: int = 0) -> None:
        """One turn. Nobody who takes requests is cut off, but by what has happened to it."""
        reconciler = self.controller.reconciler
        before = reconciler.memberships[MODEL].members if MODEL in reconciler.memberships else ()
        with suppress(ExceptionGroup):
            self.controller.turn()
        memberships = self.controller.reconciler.memberships
        now = {member.replica for member in memberships[MODEL].members} if MODEL in memberships else None
        for member in before:
            is_cut_off = now is not None and member.replica not in now
            assert not (is_cut_off and member.accepts and member.replica not in self.excused), (
                f"{member.replica}: {self.controller.texts()}"
            )

    def mend(self) -> None:
        for action in ("come_back", "serve_is_back", "answer", "take"):
            self.act(action, 0)
        self.serve.doomed = lambda name: False
        self.serve.crash_before = None


@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions, st.sampled_from(POOLS))
def test_whatever_happens_the_fleet_ends_as_wanted(
    monkeypatch: pytest.MonkeyPatch, actions: list[Action], pools: str
) -> None:
    with monkeypatch.context() as patches:
        controller = Controller(MemoryServe(cluster=WHOLE), patches)
        controller.store.put_model(model_record("1 tp2"))
        for _ in range(int(START_S) + 3):
            controller.turn()
        played = Played(controller)
        for action, number in actions:
            played.act(action, number)
        played.mend()
        for _ in range(30):
            played.turn()
        controller.ask(pools)
        controller.settle()
        check_reached(controller, pools)


def check_reached(controller: Controller, pools: str) -> None:
    wanted: dict[str, Any] = {shape: int(count) for count, shape in (part.split() for part in pools.split(", "))}
    assert controller.serve.serving() == wanted, controller.texts()[-12:]
    assert set(controller.phases().values()) == {"serving"}
    assert set(members(controller)) == set(controller.phases())
    assert all(member.accepts for member in members(controller).values())
    assert not membership(controller).holds_new
    check_nothing_is_left_over(controller)
