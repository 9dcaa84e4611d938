from hypothesis import given, settings
from hypothesis import strategies as st
from link_builders import FakeReplica, request, run, settled

from deployments.link import FleetLink, Lost

# Each pair is an action and what it acts on: a request (modulo those there are) or a replica.
actions = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "finish", "compute", "abort", "break", "connect", "turn"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


class Played:
    """What a link is told, and by plain book-keeping what must follow."""

    def __init__(self, link: FleetLink, replicas: tuple[FakeReplica, ...]) -> None:
        self.link = link
        self.replicas = replicas
        self.load: dict[str, dict[str, int]] = {name: {} for name in link.replicas}  # -> unfinished request -> tokens
        self.sent: list[str] = []
        self.ended: list[str] = []

    @property
    def unfinished(self) -> list[str]:
        return [request_id for held in self.load.values() for request_id in held]

    async def play(self, action: str, number: int) -> None:
        if action == "submit" and self.link.ready:
            self.submit(number)
        elif action in ("break", "connect"):
            await self.change(action, number % len(self.replicas))
        elif action in ("compute", "finish", "abort") and self.unfinished:
            self.go_on(action, self.unfinished[number % len(self.unfinished)])
        elif action == "turn":
            await settled()

    def submit(self, prompt_tokens: int) -> None:
        sums = {name: sum(self.load[name].values()) for name in self.link.ready}
        chosen = min(name for name in sums if sums[name] == min(sums.values()))
        self.sent.append(f"r{len(self.sent)}")
        self.link.submit(request(self.sent[-1], prompt_tokens, 7))
        self.load[chosen][self.sent[-1]] = prompt_tokens + 7

    def go_on(self, action: str, request_id: str) -> None:
        (held,) = [held for held in self.load.values() if request_id in held]
        if action == "compute":
            self.link.settle(request_id, 3, finished=False)
            held[request_id] = max(1, held[request_id] - 3)
            return
        if action == "finish":
            self.link.settle(request_id, 3, finished=True)
        else:
            self.link.abort([request_id])
        del held[request_id]
        self.ended.append(request_id)

    async def change(self, action: str, index: int) -> None:
        name = self.link.replicas[index]
        if action == "connect":
            self.replicas[index].say()
        else:
            self.replicas[index].break_stream()
        await settled()
        assert (name in self.link.ready) == (action == "connect")
        if action == "break" and self.load[name]:
            assert await self.link.next_event() == Lost(name, tuple(self.load[name]))
            self.ended += self.load[name]
            self.load[name] = {}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(actions)
def test_every_request_goes_to_a_least_loaded_ready_replica_and_ends_once(actions: list[tuple[str, int]]) -> None:
    async def scenario(link: FleetLink, *replicas: FakeReplica) -> None:
        played = Played(link, replicas)
        for action, number in actions:
            await played.play(action, number)
        assert sorted(played.ended + played.unfinished) == sorted(played.sent)
        await settled()
        for name, replica in zip(link.replicas, replicas, strict=True):
            arrived = [frames[0].decode() for taken in replica.batches for frames in taken.requests]
            assert set(played.load[name]) <= set(arrived)
            assert len(arrived) == len(set(arrived))
        assert_aborts_follow(replicas)

    run(scenario, "a", "b", "c")


def assert_aborts_follow(replicas: tuple[FakeReplica, ...]) -> None:
    """No request was sent twice or after its abort; within a batch a replica takes the requests first."""
    sent: set[str] = set()
    for replica in replicas:
        for taken in replica.batches:
            names = [frames[0].decode() for frames in taken.requests]
            assert not sent.intersection(names)
            sent.update(names)
            assert sent.issuperset(taken.aborts)
