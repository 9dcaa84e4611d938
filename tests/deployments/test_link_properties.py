"""Whatever happens to three replicas, every client gets exactly its tokens, once, and then is forgotten."""

import asyncio
import json
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st
from link_builders import BACK_S, FakeConnection, FakeReplica, Fleet, member, passed, request, run, settled

from deployments.link import Failed, Step
from deployments.peer import Batch
from deployments.stream import SUSPECT_AFTER

NAMES = ("a", "b", "c")
MOST_ROUNDS = 400

Action = tuple[str, int]

# Each pair is an action and what it acts on: a replica, or a request of those there are.
actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit"] * 4 + ["step"] * 6 + ["read"] * 3 + ["turn"] * 2 + ["wait", "abort", "die", "come back"]
            + ["leave", "drain", "accept", "remove", "restart"]
        ),
        st.integers(0, 11),
    ),
    max_size=60,
)  # fmt: skip


def answer(name: str, length: int) -> list[int]:
    """The tokens of a request, the same whoever computes them."""
    return [int(name[1:]) * 100 + index for index in range(length)]


class Engine:
    """Computes a token a step for each request of the connection that is open."""

    def __init__(self, replica: FakeReplica, lengths: dict[str, int]) -> None:
        self.replica = replica
        self._lengths = lengths
        self._connection: FakeConnection | None = None
        self._taken = 0
        self.running: dict[str, list[int]] = {}  # wire id -> tokens so far

    def take(self) -> None:
        """Read the mail; a new connection begins with nothing."""
        if self.replica.connection is not self._connection:
            self._connection, self._taken, self.running = self.replica.connection, 0, {}
        if self._connection is not None:
            for batch in self._connection.sent[self._taken :]:
                self._obey(batch)
            self._taken = len(self._connection.sent)

    def _obey(self, batch: Batch) -> None:
        for wire_id, *token_ids in batch.requests:
            name = _name(wire_id.decode())
            known = [int(token_id) for token_id in token_ids]
            assert known == answer(name, self._lengths[name])[: len(known)]
            assert len(known) < self._lengths[name], "it was complete"
            assert wire_id.decode() not in self.running
            self.running[wire_id.decode()] = known
        for wire_id_to_abort in batch.aborts:
            self.running.pop(wire_id_to_abort, None)

    def step(self) -> None:
        self.take()
        outputs = []
        for wire_id, known in list(self.running.items()):
            name = _name(wire_id)
            known.append(answer(name, self._lengths[name])[len(known)])
            finished = len(known) == self._lengths[name]
            outputs.append((wire_id, known[-1:], finished))
            if finished:
                del self.running[wire_id]
        self.replica.say(json.dumps(outputs).encode())


def _name(wire_id: str) -> str:
    return wire_id.partition("~")[0]


class Played:
    """What clients see, and what they must see."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.lengths: dict[str, int] = {}
        self.unmovable: set[str] = set()
        self.engines = {name: Engine(replica, self.lengths) for name, replica in fleet.replicas.items()}
        self.got: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}
        self.losses = 0
        self.events: list[Step | Failed] = []
        self.reader = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            self.events.append(await self.fleet.link.next_event())

    @property
    def unfinished(self) -> list[str]:
        return [name for name in self.lengths if name not in self.ends]

    async def act(self, action: str, number: int) -> None:
        name = NAMES[number % len(NAMES)]
        match action:
            case "submit" if self.fleet.link.is_open:
                self.submit(number)
            case "abort" if self.unfinished:
                self.abort(self.unfinished[number % len(self.unfinished)])
            case "step":
                self.engines[name].step()
            case "read":
                self.read()
            case "turn":
                await self.rest()
            case "wait":
                await passed(BACK_S)
            case "die" | "come back":
                self.change_power(name, is_up=action == "come back")
            case _:
                self.change_membership(action, name)

    def submit(self, number: int) -> None:
        name = f"r{len(self.lengths)}"
        self.lengths[name] = 1 + number % 5
        self.got[name] = []
        if number == 11:
            self.unmovable.add(name)
        self.fleet.link.submit(
            request(
                name,
                max_tokens=self.lengths[name],
                priority=number % 2,
                unmovable="why" if name in self.unmovable else None,
            )
        )

    def abort(self, name: str) -> None:
        self.fleet.link.abort([name])
        self.end(name, "aborted")

    def end(self, name: str, how: str) -> None:
        assert name not in self.ends
        self.ends[name] = how

    def change_power(self, name: str, *, is_up: bool) -> None:
        replica = self.fleet[name]
        if is_up:
            replica.come_back()
        elif replica.is_up:
            self.losses += 1
            replica.die()

    def change_membership(self, action: str, name: str) -> None:
        is_member = any(one.replica == name for one in self.fleet.membership.members)
        match action:
            case "accept" if not is_member:
                self.fleet.add(member(name))
            case "accept":
                self.fleet.change(name, accepts=True, leaves=False)
            case "drain":
                self.fleet.change(name, accepts=False)
            case "leave":
                self.fleet.change(name, accepts=False, leaves=True)
            case "remove":
                self.losses += is_member
                self.fleet.remove(name)
            case "restart":
                self.losses += is_member
                self.fleet.change(name, port=1 + self.losses)

    def read(self) -> None:
        """Read what has come, however long ago it was."""
        events, self.events[:] = self.events.copy(), []
        for event in events:
            if isinstance(event, Failed):
                if event.request_id not in self.ends:  # else its client has gone in the meantime
                    self.end(event.request_id, "failed")
                    assert event.request_id in self.unmovable or self.losses > SUSPECT_AFTER, event
                continue
            for wire_id, token_ids, is_finished in json.loads(event.frames[0]):
                self.settle(event.replica, wire_id, token_ids, is_finished)

    def settle(self, replica: str, wire_id: str, token_ids: list[int], is_finished: bool) -> None:
        name = self.fleet.settle(replica, wire_id, *token_ids, is_finished=is_finished)
        if name is None:
            return
        assert name not in self.ends
        self.got[name] += token_ids
        assert self.got[name] == answer(name, self.lengths[name])[: len(self.got[name])]
        if is_finished:
            self.end(name, "finished")

    async def rest(self) -> None:
        await settled()
        for engine in self.engines.values():
            engine.take()
        running = Counter(_name(wire_id) for engine in self.engines.values() for wire_id in engine.running)
        assert max(running.values(), default=0) <= 1, "a request is computed twice"

    async def finish(self) -> None:
        """Repair everything, and let all requests end."""
        for name in NAMES:
            self.change_power(name, is_up=True)
            self.change_membership("accept", name)
        for _ in range(MOST_ROUNDS):
            await passed(BACK_S)
            for engine in self.engines.values():
                engine.step()
            await self.rest()
            self.read()
            if not self.unfinished:
                break
        await self.rest()
        self.reader.cancel()


@settings(max_examples=300, derandomize=True)
@example([("submit", 4), ("turn", 0)] + [("die", n) for n in range(3)] + [("wait", 0), ("submit", 0)])
@example([("submit", 4), ("step", 0), ("step", 1), ("step", 2), ("die", 0), ("die", 1), ("die", 2), ("read", 0)])
@given(actions)
def test_every_request_ends_once_with_exactly_its_tokens_whatever_happens(actions: list[Action]) -> None:
    async def scenario(fleet: Fleet) -> None:
        played = Played(fleet)
        for action, number in actions:
            await played.act(action, number)
        await played.finish()
        assert played.ends.keys() == played.lengths.keys()
        for name, how in played.ends.items():
            if how == "finished":
                assert played.got[name] == answer(name, played.lengths[name])
        fleet.assert_nothing_is_left()
        assert [engine.running for engine in played.engines.values()] == [{}, {}, {}]

    run(scenario, *NAMES, hold_s=3000, holds_new=True)
